"""One small model of every published family, as files: what they are made of is in each family's own module."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from diptych.pretrained.families import open_published
from diptych.pretrained.load import read_options
from tests.pretrained import ldm_models, sd_models, test_compvis, test_guided_diffusion, tiny_if

WEIGHTS = "diffusion_pytorch_model.safetensors"


class Kind(NamedTuple):
    """A published model: what writes it into a folder, and the file of it that is damaged."""

    write: Callable[[Path], Any]
    file: str
    opened: str = ""
    """What is opened, where that is the folder `opened` and not the file."""
    networks: tuple[str, ...] = ()
    """What `info` counts."""


def ldm(name: str) -> Kind:
    def write(folder: Path) -> None:
        if told:
            ldm_models.tokenizer_folder(folder / "tokenizer")
        ldm_models.write(folder / "model.safetensors", test_compvis.tensors(name))

    told = ("text",) if name.startswith("text") else ()
    return Kind(write, "model.safetensors", networks=("autoencoder", *told, "unet"))


def first_stage(name: str) -> Kind:
    shapes = test_compvis.first_stage_shapes(test_compvis.FIRST[name])
    write = lambda folder: ldm_models.write(folder / "model.safetensors", ldm_models.drawn(shapes))  # noqa: E731
    return Kind(write, "model.safetensors", networks=("autoencoder",))


def adm(name: str) -> Kind:
    network = "classifier" if name.startswith("classifier") else "network"
    return Kind(
        lambda folder: test_guided_diffusion.write(folder, name, test_guided_diffusion.CALM),
        "model.safetensors",
        networks=(network,),
    )


def sd_single(kind: sd_models.Kind) -> Kind:
    def write(folder: Path) -> None:
        sd_models.single(folder / "model.safetensors", kind)
        sd_models.tokenizer("!" if kind == "sd2" else sd_models.END).save_pretrained(folder / "tokenizer")

    return Kind(write, "model.safetensors", networks=("autoencoder", "text", "unet"))


def sd_folder(kind: sd_models.Kind, file: str) -> Kind:
    counted = ("autoencoder", "text", "unet")
    return Kind(lambda folder: sd_models.folder(folder / "model", kind), f"model/{file}", "model", counted)


def deepfloyd(shape: dict[str, Any]) -> Kind:
    write = lambda folder: tiny_if.pipeline(shape).save_pretrained(folder / "model")  # noqa: E731
    return Kind(write, f"model/unet/{WEIGHTS}", "model", ("network", "text"))


KINDS = {
    "sd1-folder-unet": sd_folder("sd1", f"unet/{WEIGHTS}"),
    "sd1-folder-text": sd_folder("sd1", "text_encoder/model.safetensors"),
    "sd1-file": sd_single("sd1"),
    "sd2-file": sd_single("sd2"),
    "if-base": deepfloyd(tiny_if.BASE),
    "if-enlarging": deepfloyd(tiny_if.ENLARGING),
    **{f"ldm-{name}": ldm(name) for name in ("text-kl", "class-vq4", "plain-kl")},
    "first-stage-vq": first_stage("vq"),
    "adm-classes": adm("classes"),
    "adm-upsampler": adm("upsampler"),
    "adm-classifier": adm("classifier, attention"),
}


def place(kind: Kind, folder: Path) -> Path:
    """What is opened of a model in `folder`."""
    return folder / (kind.opened or kind.file)


def tokenizer(folder: Path) -> Path | None:
    return found if (found := folder / "tokenizer").is_dir() else None


def opened(kind: Kind, folder: Path, **options: Any) -> Any:
    return open_published(place(kind, folder), read_options(tokenizer=tokenizer(folder), **options))
