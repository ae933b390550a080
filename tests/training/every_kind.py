"""Every kind of recipe, tiny, trained with every option of a run: in processes that a test starts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch.distributed as dist
from torch._dynamo.utils import counters

from diptych.recipes import get
from diptych.training import acceleration
from diptych.training.planning.outline import outlined
from diptych.training.trainer import train
from tests.training.test_trainer import metrics


def of(place: str, *values: str) -> tuple[str, ...]:
    return tuple(f"{place}.{value}" for value in values)


SMALL = ("data.size=32", "system.model.size=32")
FIRST_STAGE = of("system.model.autoencoder", "channels=8", "norm_groups=4")
UNET = of("system.model.unet", "channels=16", "multipliers=1,2", "blocks=1", "attention_levels=1", "norm_groups=4",
          "head_width=8")  # fmt: skip
TEXT = of("system.model.text.network", "width=16", "layers=1", "heads=2", "head_width=8")
LATENT = (*SMALL, *FIRST_STAGE, *UNET)
STORED = "system.precomputed=cache/any"
EFFICIENT = of("system.model.network", "channels=16", "multipliers=1,2", "blocks=1,1", "norm_groups=4")
AUTOENCODER = ("data.size=32", *of("system.network", "channels=8", "norm_groups=4"), "system.adversarial.start=0",
               *of("system.adversarial.discriminator", "channels=4", "layers=1"))  # fmt: skip
GUIDE = of("system.network.encoder", "channels=16", "multipliers=1,2", "blocks=1", "attention_levels=1",
           "norm_groups=4", "head_width=8")  # fmt: skip
CODES = of("system.model.transformer", "width=32", "layers=2", "heads=2", "length=16")
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "latent, classes": ("emoji-class", (*LATENT, STORED)),
    "latent, text that is trained": (
        "emoji-latent-joint", (*LATENT, *TEXT, *of("system.model.unet", "context_width=16", "pooled_width=16"))),
    "latent, layouts": (
        "emoji-layout", (*LATENT, *TEXT, STORED, *of("system.model.unet", "context_width=16", "pooled_width=16"))),
    "latent, inpainting": ("emoji-inpainting", LATENT),
    "latent, super-resolution": ("emoji-super-resolution", LATENT),
    "pixels, learned variance": (
        "adm-64", (*SMALL, *of("system.model.network", "channels=16", "multipliers=1,2", "blocks=1",
                               "attention_levels=1", "norm_groups=4", "head_width=8"))),
    "pixels, text that is trained": (
        "emoji-glide", (*SMALL, *TEXT, *of("system.model.network", "channels=16", "multipliers=1,2", "norm_groups=4",
                                           "attention_levels=1", "head_width=8", "context_width=16",
                                           "pooled_width=16"))),
    "cascade, base": (
        "emoji-base-efficient", (*SMALL, *EFFICIENT, *of("system.model.network", "self_attention_levels=1",
                                                         "cross_attention_levels=1", "head_width=8"))),
    "cascade, super-resolution": (
        "emoji-sr-128", (*EFFICIENT, "data.size=64", "data.crop=32", *of("system.model", "size=64", "low_size=16"))),
    "autoencoder, KL, adversary": ("kl-f8", (*AUTOENCODER, "system.perceptual=none", "data.crop=none")),
    "autoencoder, codes, adversary": ("vq-f4", (*AUTOENCODER, "system.perceptual=none", "data.crop=none")),
    "autoencoder, codes": (
        "emoji-vq", ("data.size=32", "system.perceptual=none", *of("system.network", "channels=8", "norm_groups=4"))),
    "decoder": ("emoji-tiny-decoder", ("data.size=32", "system.network.channels=8,8,8")),
    "classifier": ("emoji-classifier-pixels", ("data.size=32", *GUIDE)),
    "classifier of latents": ("emoji-classifier", ("data.size=64", *GUIDE)),
    "noisy CLIP": ("emoji-noisy-clip", ("data.size=64", *GUIDE)),
    "judge": ("judge", ("data.size=64", *of("system.judge", "widths=8,8,8,8", "blocks=1,1,1,1", "text_width=16",
                                            "embedding=16"))),
    "codes": ("emoji-codes-class", (*SMALL, *FIRST_STAGE, *CODES)),
}  # fmt: skip
"""A recipe of each kind, and what makes it small."""
RUN = {
    "steps": "3", "batch_size": "5", "accumulation": "1", "workers": "0", "device": "cpu", "precision": "fp32",
    "threads": "1", "log_every": "1", "validate_every": "0", "sample_every": "0", "checkpoint_every": "2",
    "warmup": "0", "schedule": "constant", "minutes": "none", "learning_rate": "0.001", "initial_learning_rate": "0",
    "final_learning_rate": "0", "cooldown": "0",
}  # fmt: skip
FSDP, RECOMPUTED, COMPILED = "shard=fsdp", "activation_checkpointing=blocks", "compile=blocks"


class Unsaved:
    """A task without what a finished model is saved with: names and files that an outline does not have."""

    def __init__(self, task: Any) -> None:
        self._task = task

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def start(self, batch: dict[str, Any]) -> None:
        """The scale of latents that are random is 1."""

    def save(self, folder: Path) -> None:
        (folder / "model.safetensors").touch()


def learned(folder: Path, kind: str, *options: str) -> list[list[float]]:
    """Losses and gradient norms of the steps of a run of that kind."""
    name, small = KINDS[kind]
    settings = RUN | dict(option.split("=") for option in options)
    recipe = get(name).override([*small, *(f"training.{field}={value}" for field, value in settings.items())])
    torch.manual_seed(3)
    outline = outlined(recipe, device="cpu", place="cpu")

    def batch_at(positions: list[int]) -> dict[str, Any]:
        batch = outline.batch(recipe, len(positions))
        batch["seed"] = torch.tensor(positions)
        if kind == "noisy CLIP":
            batch["caption"] = [str(p) for p in positions]
        for key in batch.keys() & {"picture", "latent"}:
            drawn = [torch.rand(batch[key].shape[1:], generator=torch.Generator().manual_seed(p)) for p in positions]
            batch[key] = torch.stack(drawn).to(batch[key]) * 2 - 1
        return batch

    train(Unsaved(outline.task), batch_at, recipe.training, folder)  # type: ignore[arg-type]
    return [[*metrics(folder, name).values()] for name in ("loss", "grad_norm")] if folder.exists() else []


def compare(folder: str, kinds: list[str], runs: list[tuple[str, ...]], environment: dict[str, str]) -> None:
    """Of each kind, runs with these options as one process among others, beside one without; fails where they learn
    something else, or a block is not compiled as a whole."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    acceleration.BACKEND = "aot_eager"  # which needs no compiler, and recomputes the same dropout
    dist.init_process_group("gloo")
    wrong = list[str]()
    for kind in kinds:
        plain = learned(Path(folder, kind), kind)
        for options in runs:
            what = f"{kind}, {', '.join(options)}"
            torch._dynamo.reset()
            counters.clear()
            found = learned(Path(folder, what), kind, *options)
            try:
                torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
            except AssertionError as error:
                wrong.append(f"{what}: {error}")
            if COMPILED in options:
                frames = counters["frames"]
                if counters["graph_break"] or not frames["total"] or frames["total"] != frames["ok"]:
                    wrong.append(f"{what}: {dict(frames)}, {dict(counters['graph_break'])}")
    dist.destroy_process_group()
    assert not wrong, "\n".join(wrong)
