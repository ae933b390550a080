"""Twenty steps of every kind of training, by the command line, on tiny networks and a few 16-px images.

`record_runs.py` writes what they give to `runs/`, and `tests/test_saved_runs.py` compares.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diptych.cli import main as cli

RECORDED = Path(__file__).parent / "runs"
MODELS = RECORDED / "models"
"""Small model folders on which trainings stand: first stages, a latent model, a stage."""
STEPS, SIZE = 20, 16
NOT_RECORDED = {"step", "kind", "images_per_second", "pictures_per_second"}
COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200), "green": (20, 160, 60)}


def write_data(folder: Path, count: int = 18, held_out: int = 3) -> None:
    """A coloured square on a ramp of grey, captions, class and boxes; every third example is a scene of two things."""
    folder.mkdir(parents=True)
    y, x = np.mgrid[:SIZE, :SIZE]
    names = list(COLOURS)
    for i in range(count):
        name, other, scene = names[i % 3], names[(i + 1) % 3], i % 6 == 5
        pixels = np.stack([200 + (x + y * (c + 1) + 3 * i) % 50 for c in range(3)], -1)
        left, top = 1 + i % 5, 1 + 2 * i % 5
        pixels[top : top + 8, left : left + 7] = np.array(COLOURS[name]) + (i * 5) % 25
        boxes = [(name, left, top, left + 7, top + 8)]
        if scene:
            pixels[11:15, 10:15] = COLOURS[other]
            boxes.append((other, 10, 11, 15, 15))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:02d}.png")
        told = f"a {name} square" + (f" and a {other} one" if scene else "")
        meta: dict[str, Any] = {
            "captions": [told, told.removeprefix("a ")],
            "split": "held-out" if i >= count - held_out else "train",
            "kind": "scene" if scene else "single",
            "concept": name,
            "style": ("noto", "twemoji")[i % 2],
            "layout": "; ".join(" ".join([n, *(f"{side / SIZE:g}" for side in sides)]) for n, *sides in boxes),
            "foils": [told.replace(name, "black")],
        }
        (folder / f"{i:02d}.json").write_text(json.dumps(meta))


@dataclass(frozen=True)
class Training:
    """A recipe and what is changed in it."""

    recipe: str
    changes: tuple[str, ...]
    precompute: str | None = None
    """Folder that `diptych precompute` writes first."""

    @property
    def arguments(self) -> list[str]:
        return [self.recipe, *COMMON, *self.changes]


COMMON = (
    *("data.path=images", f"data.size={SIZE}", f"training.steps={STEPS}", "training.batch_size=4"),
    *("training.device=cpu", "training.precision=fp32", "training.threads=1", "training.warmup=3"),
    *("training.log_every=1", f"training.validate_every={STEPS}", "training.validation_images=3"),
    *("training.sample_every=0", "training.checkpoint_every=10", "training.seed=5", "training.learning_rate=2e-3"),
)


def under(prefix: str, **values: Any) -> tuple[str, ...]:
    """Assignments of fields below `prefix`."""
    return tuple(f"{prefix}.{k}={v if isinstance(v, str) else json.dumps(v)}" for k, v in values.items())


KL: dict[str, Any] = {"latent_channels": 4, "channels": 4, "multipliers": [1, 2], "blocks": 1, "norm_groups": 2}
KL |= {"patch": 1, "codebook": None, "attention_levels": [], "attention": False}
VQ = KL | {"multipliers": [1, 1, 2], "codebook": 24}
UNET: dict[str, Any] = {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention_levels": [1], "heads": 2}
UNET |= {"head_width": None, "norm_groups": 4, "in_channels": 4, "out_channels": 4}
ADM: dict[str, Any] = {"channels": 8, "multipliers": [1, 2], "blocks": 1, "attention_levels": [1], "head_width": 8}
ADM |= {"norm_groups": 4, "heads": None}
EFFICIENT: dict[str, Any] = {"channels": 8, "multipliers": [1, 2], "blocks": [1, 1], "norm_groups": 4}
TRANSFORMER: dict[str, Any] = {"vocabulary": 64, "max_tokens": 24, "width": 16, "layers": 1, "heads": 2}
TRANSFORMER |= {"head_width": 8}
JOINT = {"kind": "transformer", "network": TRANSFORMER}
CODES: dict[str, Any] = {"vocabulary": 24, "length": 16, "width": 32, "layers": 2, "heads": 4, "dropout": 0.1}
DISCRIMINATOR = {"channels": 4, "layers": 2, "norm": "group", "norm_groups": 4}
ADVERSARIAL = {"discriminator": DISCRIMINATOR, "weight": 0.5, "start": 2, "lead": 3, "warmup": 8}
JUDGE = {"features": "judge", "path": None, "weight": 0.1}
SPOKEN = {"context_width": 16, "pooled_width": 16}
SILENT = {"context_width": None, "pooled_width": None}
CLASSES = {"kind": "class", "classes": 3, "null": 3, "named": True}


def latent(recipe: str, unet: dict[str, Any], *changes: str, first: str = "kl", precomputed: Any = None, **system: Any):
    """A latent model over the recorded first stage."""
    kinds = {"kl": KL, "vq": VQ}
    system = {"autoencoder": f"models/{first}", "precomputed": precomputed, "initial": None, **system}
    parts = (
        *under("system.model.autoencoder", **kinds[first]),
        *under("system.model.unet", **{**UNET, **unet}),
        *under("system.model", size=SIZE),
        *under("system.diffusion", prompts=[]),
        *under("system", **system),
    )
    return Training(recipe, (*parts, *changes), precomputed)


def stage(recipe: str, network: dict[str, Any], *changes: str, **model: Any) -> Training:
    """A pixel model."""
    shape = under("system.model.network", **network)
    return Training(recipe, (*shape, *under("system.model", **{"size": SIZE, **model}), *changes))


def codes(recipe: str, *changes: str, **transformer: Any) -> Training:
    """A transformer over the recorded codes."""
    shape = {**CODES, "classes": None, "shared_start": False, **transformer}
    return Training(
        recipe,
        (
            *under("system.model", autoencoder=VQ, transformer=shape, size=SIZE),
            *under("system.codes", prompts=[]),
            *under("system", autoencoder="models/vq", precomputed=None),
            *changes,
        ),
    )


def guide(recipe: str, outputs: int, *changes: str, **encoder: Any) -> Training:
    """A noisy classifier, or a noisy pair."""
    return Training(
        recipe,
        (
            *under("system.network.encoder", **{**ADM, "dropout": 0.1, **encoder}),
            *under("system.network", classes=outputs),
            *changes,
        ),
    )


OF_CLASSES = under("data", caption_field="concept", kinds=[], least=1)
WORDS = under("system.model", text=JOINT)
LAYOUT_NETWORK = {**TRANSFORMER, "vocabulary": 300}
LAYOUTS = {"kind": "layout", "boxes": 4, "grid": 8}
SHORT, LONG = LAYOUT_NETWORK | {"max_tokens": 4}, LAYOUT_NETWORK | {"max_tokens": 14}

TRAININGS: dict[str, Training] = {
    # First stages.
    "autoencoder": Training("emoji-autoencoder", under("system.network", **KL)),
    "autoencoder-adversarial": Training(
        "emoji-autoencoder", (*under("system.network", **KL), *under("system", adversarial=ADVERSARIAL))
    ),
    "autoencoder-vq": Training(
        "emoji-vq", (*under("system.network", **VQ), *under("system", perceptual=JUDGE, adversarial=ADVERSARIAL))
    ),
    "autoencoder-vq-published": Training(
        "vq-f8",
        (
            *under("system.network", **VQ),
            *under("system", perceptual=None, adversarial=ADVERSARIAL, learned_variance=True),
            *("data.size=24", "data.crop=16", "data.flip=0.5"),
        ),
    ),
    "autoencoder-decoder": Training(
        "emoji-decoder",
        (
            *under("system.network", **KL),
            *under("system", initial="models/kl", perceptual=None, adversarial=ADVERSARIAL),
        ),
    ),
    "tiny-decoder": Training(
        "emoji-tiny-decoder",
        (
            *under("system.network", latent_channels=4, channels=[8, 8], blocks=1, patch=1),
            *under("system", teacher="models/kl"),
        ),
    ),
    # Latent diffusion.
    "latent": latent("emoji-latent", SPOKEN, *WORDS),
    "latent-initial": latent("emoji-latent", SPOKEN, *WORDS, initial="models/latent"),
    "latent-frozen-text": latent("emoji-64-latent", {}, precomputed="cache/latent"),
    "latent-min-snr": latent(
        "emoji-latent",
        SPOKEN,
        *WORDS,
        *under("system.model", prediction="v", schedule={"kind": "cosine"}),
        *under("system.diffusion", objective={"weighting": "min-snr", "gamma": 5.0}),
    ),
    "latent-accumulated": latent(
        "emoji-latent",
        SPOKEN,
        *WORDS,
        *under("training", accumulation=2, clip=0.05, ema=0.9, schedule="cosine", optimizer="adam", decayed="all"),
    ),
    "latent-masked": latent(
        "emoji-inpainting", SILENT | {"concat_channels": 8}, *under("system.model.beside", fine=True)
    ),
    "latent-masked-published": latent(
        "ldm-inpainting", ADM | {"concat_channels": 5, "heads": 2, "head_width": None}, "data.size=24", "data.crop=16"
    ),
    "latent-low": latent("emoji-super-resolution", SILENT | {"concat_channels": 7}),
    "latent-low-degraded": latent("emoji-super-resolution-bsr", SILENT | {"concat_channels": 7}),
    "latent-classes": latent(
        "emoji-class", {"classes": 4, "context_width": 16}, *under("system.model", text=CLASSES), *OF_CLASSES
    ),
    "latent-unconditional": latent("emoji-free", SILENT, *OF_CLASSES),
    "latent-layouts": latent(
        "emoji-layout",
        SPOKEN,
        *under("system.model", text={**LAYOUTS, "network": SHORT, "shared": False, "joined": True, "padded": False}),
        *under("data", styles=[]),
    ),
    "latent-layouts-published": latent(
        "ldm-layout-coco",
        SPOKEN | {"pooled_width": None, "dropout": 0.1},
        *under("system.model", text={**LAYOUTS, "network": LONG}),
        first="vq",
    ),
    # Pixels.
    "stage-base": stage("emoji-base", UNET | {"in_channels": 3, "out_channels": 3}),
    "stage-base-efficient": stage(
        "emoji-base-efficient",
        EFFICIENT | {"self_attention_levels": [1], "cross_attention_levels": [1], "head_width": 8},
    ),
    "stage-adafactor": stage(
        "emoji-base",
        UNET | {"in_channels": 3, "out_channels": 3},
        *under("training", optimizer="adafactor", learning_rate=0.2),  # relative to the size of the weights
    ),
    "stage-low": stage("emoji-sr-128", EFFICIENT, "data.crop=none", low_size=8),
    "stage-low-noised-small": stage(
        "imagen-sr-1024",
        EFFICIENT | {"self_attention_levels": [], "cross_attention_levels": [1], "context_width": 384},
        *under("system.model.network", pooled_width=384, head_width=8),
        *("data.crop=8", "training.learning_rate=0.05"),
        text={"kind": "minilm"},
        low_size=4,
    ),
    "stage-low-sr3": stage("sr3", ADM | {"dropout": 0.1}, low_size=4),
    "stage-low-blurred": stage("sr3-imagenet", ADM | {"dropout": 0.0}, "data.crop=none", low_size=4),
    "stage-pixels-degraded": stage("emoji-super-resolution-pixels", EFFICIENT, low_size=4),
    "stage-ddpm": stage("ddpm", {**UNET, "in_channels": 3, "out_channels": 3, "dropout": 0.1}),
    "stage-learned-variance": stage(
        "adm-64", ADM | {"classes": 3}, *OF_CLASSES, text={"kind": "class", "classes": 3, "named": True}
    ),
    "stage-joint-text": stage(
        "emoji-glide", ADM | SPOKEN, *under("system.model.text.network", **TRANSFORMER), *under("data", kinds=[])
    ),
    "stage-masked": stage(
        "emoji-glide",
        ADM | SPOKEN | {"concat_channels": 4},
        *under("system.model.text.network", **TRANSFORMER),
        *("system.model.masks.thin=1", "system.initial=models/stage"),
    ),
    # Codes, the judge, guides.
    "codes": codes("emoji-codes", context_width=384),
    "codes-classes": codes(
        "emoji-codes-class",
        *under("system.model", text={**CLASSES, "named": False, "names": list(COLOURS)}),
        *OF_CLASSES,
        classes=4,
    ),
    "codes-unconditional": codes("emoji-codes-free"),
    "judge": Training(
        "judge",
        under("system.judge", size=16, widths=[8, 16], blocks=[1, 1], text_width=16, text_layers=1, embedding=16),
    ),
    "classifier": guide(
        "emoji-classifier",
        3,
        *under("system.classes", classes=3),
        *under("system", guided="models/latent", precomputed=None),
        *OF_CLASSES,
        in_channels=4,
    ),
    "classifier-pixels": guide(
        "emoji-classifier-pixels", 3, *under("system.classes", classes=3), *OF_CLASSES, in_channels=3
    ),
    "noisy-clip": guide(
        "emoji-noisy-clip", 16, *under("system", guided="models/latent", precomputed=None), *OF_CLASSES, in_channels=4
    ),
}
INTERRUPTED = ("autoencoder-adversarial", "latent", "stage-masked")
"""Those of which a run folder after ten steps is recorded."""
INTERRUPTED_AT = 10
GENERATOR = "training.random=generator"
"""Random numbers as earlier versions drew them, and all records but those of `COUNTER`."""
COUNTER = ("autoencoder", "tiny-decoder", "latent", "latent-masked", "stage-low", "codes", "noisy-clip")
"""Those that are recorded a second time, with random numbers by hashing: one of each place where some are drawn."""


def workshop(folder: Path) -> None:
    """The data, and the model folders that trainings stand on."""
    write_data(folder / "images")
    if MODELS.is_dir():
        shutil.copytree(MODELS, folder / "models")


def train(name: str, run: str | None = None, *changes: str) -> Path:
    """Train in the working directory, a `workshop`, and give the run folder.

    changes: further assignments, such as `GENERATOR`, by which most are recorded.

    Each has a cache of text embeddings of its own: their last bits depend on which others were embedded with them.
    """
    training, folder = TRAININGS[name], run or f"runs/{name}"
    os.environ["DIPTYCH_CACHE"] = str(Path("cache", folder).resolve())
    if training.precompute is not None and not Path(training.precompute).exists():
        assert cli.main(["precompute", *training.arguments, "--out", training.precompute]) == 0
    assert cli.main(["train", *training.arguments, *changes, "--run-dir", folder]) == 0
    return Path(folder)


def history(run: Path) -> dict[str, Any]:
    """What a run logged: the values of all steps, by name, and those of its validation."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    names = [name for name in dict.fromkeys(name for line in steps for name in line) if name not in NOT_RECORDED]
    [validation] = [line for line in lines if line["kind"] == "validation"]
    return {
        **{name: [line.get(name) for line in steps] for name in names},
        "validation": {key: value for key, value in validation.items() if key not in NOT_RECORDED},
    }


def machine() -> dict[str, Any]:
    """What the last bits of a result depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if os.path.exists("/proc/cpuinfo") else []
    about = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = [flag for flag in about.get("flags", "").split() if flag.startswith(("avx", "amx", "fma"))]
    return {
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cpu": about.get("model name", platform.processor()),
        "model": [about.get(key) for key in ("cpu family", "model", "stepping")],
        "instructions": " ".join(sorted(flags)),
        "machine": platform.machine(),
    }
