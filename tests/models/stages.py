"""Tiny stages with random weights, a reader of words to go with them, and a toy world of coloured edges."""

from __future__ import annotations

import os
import zlib
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from diptych.conditioning.lowres_augmentation import AugmentationConfig
from diptych.diffusion.schedules import ScheduleConfig
from diptych.diffusion.thresholding import ThresholdConfig
from diptych.encoders.base import TextEmbedding
from diptych.encoders.configs import FrozenConfig, T5Config
from diptych.models.cascade import Cascade
from diptych.models.pixel_config import PixelDiffusionConfig
from diptych.models.pixel_diffusion import PixelDiffusion
from diptych.networks.adm_config import AdmUNetConfig
from diptych.networks.efficient_unet import EfficientUNetConfig
from diptych.networks.unet import UNetConfig
from diptych.training.tasks.diffusion import DiffusionTask, DiffusionTraining
from diptych.training.trainer import train
from diptych.training.training_config import TrainingConfig
from tests.networks.reference import randomised

WIDTH = 24
TEXT = T5Config(width=WIDTH, max_tokens=8)
SMALL, MIDDLE, LARGE = 8, 16, 32
CAPTIONS = ("red left", "a blue image, all blue")


class Words:
    """A frozen text encoder: a vector for each word and a closing one, each moved a little by the one before."""

    width, max_tokens = WIDTH, TEXT.max_tokens

    def __init__(self) -> None:
        self.model = randomised(nn.Embedding(64, WIDTH), seed=9).requires_grad_(False)
        self.model.weight.mul_(WIDTH**0.5)
        self.seen: list[str] = []

    def encode(self, prompts: list[str]) -> TextEmbedding:
        self.seen += prompts
        rows = [torch.tensor([zlib.crc32(word.encode()) % 63 + 1 for word in text.split()] + [0]) for text in prompts]
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
        tokens = self.model(ids.to(self.model.weight.device)) * mask[..., None]
        before = nn.functional.pad(tokens, (0, 0, 1, 0))[:, :-1] * mask[..., None]
        return TextEmbedding.from_sequence(tokens + 0.3 * before, mask)


def unet(**changes: Any) -> EfficientUNetConfig:
    values: dict[str, Any] = {"channels": 8, "multipliers": (1, 2), "blocks": (1, 1), "head_width": 8, "norm_groups": 4}
    values |= {"self_attention_levels": (), "cross_attention_levels": (), "feed_forward": 1, "pooled_width": WIDTH}
    return EfficientUNetConfig(**{**values, **changes})


def attentive(**changes: Any) -> EfficientUNetConfig:
    """A network that reads every token."""
    return unet(**{"self_attention_levels": (1,), "cross_attention_levels": (1,), "context_width": WIDTH, **changes})


def base(**changes: Any) -> PixelDiffusionConfig:
    """Words to 8 pixels."""
    network = attentive(concat_channels=0, augmented=False)
    values: dict[str, Any] = {"network": network, "text": TEXT, "size": SMALL, "low_size": None, "prediction": "v"}
    return PixelDiffusionConfig(**{**values, "steps": 3, "guidance": 3.0, "sampler": "dpmpp-2m", **changes})


def enlarging(low_size: int | None = SMALL, **changes: Any) -> PixelDiffusionConfig:
    """Twice as large; every such stage has the shapes of every other."""
    values: dict[str, Any] = {"network": unet(), "text": TEXT, "size": 2 * (low_size or SMALL), "low_size": low_size}
    values |= {"prediction": "v", "steps": 2, "guidance": 1.0, "sampler": "dpmpp-2m"}
    values |= {"threshold": ThresholdConfig(kind="static"), "augmentation": AugmentationConfig(level=0.2)}
    return PixelDiffusionConfig(**{**values, **changes})


def wordless(**changes: Any) -> PixelDiffusionConfig:
    """As SR3: no text, an untouched low-resolution image, a plain U-Net and a linear schedule."""
    network = plain(concat_channels=3, context_width=None)
    values: dict[str, Any] = {"network": network, "text": None, "augmentation": AugmentationConfig(kind="none")}
    values |= {
        "schedule": ScheduleConfig(kind="linear", beta_start=1e-4, beta_end=0.02),
        "threshold": ThresholdConfig(),
    }
    return enlarging(**{**values, "prediction": "eps", "sampler": "ddpm", **changes})


def plain(**changes: Any) -> UNetConfig:
    values: dict[str, Any] = {"in_channels": 3, "out_channels": 3, "channels": 8, "multipliers": (1, 2), "blocks": 1}
    values |= {"attention_levels": (1,), "heads": 2, "context_width": WIDTH, "norm_groups": 4}
    return UNetConfig(**{**values, **changes})


def stage(config: PixelDiffusionConfig, seed: int = 2, text: Any = None) -> PixelDiffusion:
    """A stage with random weights in every layer; it reads `Words` unless told otherwise."""
    it = PixelDiffusion(config, (text or Words()) if config.encoder is not None else None)
    randomised(it.network, seed)
    return it.eval()


def drawing(width: int = 8, height: int = 8, seed: int = 0) -> Image.Image:
    """A small RGB image of large values."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return Image.fromarray(values.astype(np.uint8))


def configs(text: FrozenConfig = TEXT) -> list[PixelDiffusionConfig]:
    """8 -> 16 -> 32."""
    return [base(text=text), enlarging(SMALL, text=text, guidance=2.0), enlarging(MIDDLE, text=text)]


def cascade() -> Cascade:
    words = Words()
    return Cascade.of([stage(config, seed, words) for seed, config in enumerate(configs())])


def cascade_of_pixels() -> Cascade:
    """8 -> 16 -> 32 without words, as files hold it."""
    first = wordless(network=plain(context_width=None), low_size=None, size=SMALL, augmentation=AugmentationConfig())
    sizes = [first, wordless(low_size=SMALL, size=MIDDLE), wordless(low_size=MIDDLE, size=LARGE)]
    return Cascade.of([stage(config, config.size) for config in sizes])


def toy_batch(seeds: list[int], size: int = MIDDLE) -> dict[str, Any]:
    """Images of two colours with an upright edge between them; the seed decides where, and the caption."""
    columns = torch.arange(size)
    rows = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        edge = int(torch.randint(2, size - 1, (), generator=generator))
        colours = torch.tensor([[0.8, -0.8, -0.8], [-0.8, -0.8, 0.8]])[[seed % 2, 1 - seed % 2]]
        rows.append(
            torch.where(columns < edge, colours[0][:, None, None], colours[1][:, None, None]).expand(3, size, size)
        )
    return {
        "picture": torch.stack(rows).contiguous(),
        "caption": [CAPTIONS[seed % 2] for seed in seeds],
        "seed": torch.tensor(seeds),
        "key": [str(seed) for seed in seeds],
    }


def settings(**changes: Any) -> TrainingConfig:
    values: dict[str, Any] = {
        "steps": 4,
        "batch_size": 5,
        "learning_rate": 1e-2,
        "warmup": 2,
        "ema": 0.9,
        "log_every": 1,
    }
    values |= {"validate_every": 4, "sample_every": 4, "checkpoint_every": 4, "validation_images": 4}
    return TrainingConfig(**{**values, "threads": 1, "device": "cpu", **changes})


def run(folder: str, changes: dict[str, Any], environment: dict[str, str] | None = None) -> None:
    """Train a super-resolution stage in this process."""
    os.environ.update(environment or {})
    torch.manual_seed(0)
    task = DiffusionTask(PixelDiffusion(enlarging(), Words()), DiffusionTraining())
    train(task, toy_batch, settings(**changes), folder, lambda positions: toy_batch([10_000 + p for p in positions]))


def fused(**changes: Any) -> AdmUNetConfig:
    """As Imagen's base: pixels and words in one attention, words pooled by another."""
    values: dict[str, Any] = {"out_channels": 3, "channels": 8, "multipliers": (1, 2), "blocks": 1, "head_width": 8}
    values |= {"attention_levels": (1,), "context_width": WIDTH, "context_norm_kind": "layer", "text_pooling_heads": 2}
    return AdmUNetConfig(**{**values, "norm_groups": 4, **changes})


UNET = {"network": plain(pooled_width=WIDTH), "schedule": ScheduleConfig(kind="scaled-linear"), "prediction": "eps"}
KINDS: dict[str, PixelDiffusionConfig] = {
    "base": base(),
    "base, plain U-Net": base(**UNET),
    "base, fused attention": base(network=fused()),
    "noise": enlarging(network=attentive(), guidance=2.0),
    "noise before": enlarging(augmentation=AugmentationConfig(where="low", level=0.3)),
    "blur": enlarging(augmentation=AugmentationConfig(kind="blur", level=0.3)),
    "SR3": wordless(),
}
"""A stage of each kind."""


def lows(config: PixelDiffusionConfig, count: int) -> dict[str, Any]:
    return {} if config.low_size is None else {"low": [drawing(seed=i) for i in range(count)]}


def equal(a: list[Image.Image], b: list[Image.Image]) -> bool:
    """Bit for bit."""
    return len(a) == len(b) and all(x.tobytes() == y.tobytes() and x.size == y.size for x, y in zip(a, b, strict=True))


def close(a: Image.Image, b: Image.Image) -> bool:
    """As `same_image`, but for the few values that a rounded one of an earlier stage moves."""
    apart = np.abs(np.asarray(a, dtype=int) - np.asarray(b, dtype=int))
    return a.size == b.size and apart.max() <= 6 and float((apart > 1).mean()) < 0.01
