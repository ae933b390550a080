"""A tiny model of all that sharding has to do with, trained in several processes that tests start."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn

from diptych.core.errors import UserError
from diptych.networks.layers import Downsample, SpatialTransformer
from diptych.networks.quantizer import VectorQuantizer
from diptych.networks.residual import ResidualBlock
from diptych.training import acceleration
from diptych.training.trainer import train
from diptych.training.training_config import TrainingConfig
from diptych.weights.save import save_weights


class Blocks(nn.Module):
    """Units within no unit, uneven rows (5 of 2 processes), a scalar, weights frozen, unused, read from outside, and
    large enough to be factored."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(3, 5, 3, padding=1)
        self.block = ResidualBlock(5, 8, groups=4)
        self.attend = SpatialTransformer(8, None, heads=2, head_width=4, groups=4)
        self.down = Downsample(8)
        self.entries = VectorQuantizer(4, 8)
        self.wide = nn.Linear(8, 130)
        self.leave = nn.Linear(130, 129, bias=False)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.frozen = nn.Linear(129, 3).requires_grad_(False)
        self.unused = nn.Linear(2, 2)
        self.register_buffer("seen", torch.zeros(()))

    def encode(self, x: Tensor) -> Tensor:
        x = self.down(self.attend(self.block(self.enter(x))))  # (B, 8, 2, 2)
        x = x + self.entries(x) * 0.1
        return self.frozen(self.leave(torch.tanh(self.wide(x.mean((2, 3)))))) * self.scale


class BlocksTask:
    """The `Trainable` of `Blocks`."""

    def __init__(self, bad_seed: int | None = None) -> None:
        torch.manual_seed(4)
        self.module, self.bad_seed = Blocks(), bad_seed
        for name, p in self.module.named_parameters():
            if "conv2" in name or "project_out" in name:  # which start at zero
                nn.init.normal_(p, std=0.2)

    def start(self, batch: dict[str, Any]) -> None:
        self.module.seen.fill_(len(batch["seed"]))

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        losses = (self.module.encode(batch["picture"]) - batch["picture"].mean((2, 3))).square().mean(1)
        losses = losses + 0.01 * self.module.wide.weight.square().mean()
        if self.bad_seed is not None:
            losses = losses * torch.where(batch["seed"] == self.bad_seed, torch.nan, 1.0)
        return losses, {"largest": losses.max()}

    def validation(self, batch: dict[str, Any]) -> dict[str, float]:
        assert not torch.is_grad_enabled()
        assert all(type(p) is nn.Parameter for p in self.module.parameters())
        return {"loss": self.loss(batch)[0].mean().item()}

    def samples(self) -> Image.Image:
        return Image.new("RGB", (1, 1), (int(self.module.state_dict()["scale"] * 100), 0, 0))

    def save(self, folder: Path) -> None:
        save_weights(self.module.state_dict(), folder)


def batch_at(positions: list[int]) -> dict[str, Any]:
    pictures = [torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(p)) for p in positions]
    return {"picture": torch.stack(pictures), "seed": torch.tensor(positions), "key": [f"toy-{p}" for p in positions]}


def settings(**changes: Any) -> TrainingConfig:
    values = {
        "steps": 6,
        "batch_size": 5,
        "warmup": 0,
        "learning_rate": 1e-2,
        "ema": 0.5,
        "threads": 1,
        "device": "cpu",
        "log_every": 1,
        "validate_every": 3,
        "sample_every": 3,
        "checkpoint_every": 2,
        "validation_images": 3,
        "accumulation": 2,
        "workers": 0,
    }
    return TrainingConfig.from_dict(values | changes)


def run(folder: Path | str, bad_seed: int | None = None, **changes: Any) -> str | None:
    """Train the blocks in this process; a user error is returned."""
    try:
        train(BlocksTask(bad_seed), batch_at, settings(**changes), folder, batch_at)
    except UserError as error:
        return str(error)
    return None


def many(runs: list[tuple[str, dict[str, Any], str | None]], environment: dict[str, str]) -> None:
    """Several runs, one after the other, as a process among others; of each the error that it must stop with."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    acceleration.BACKEND = "aot_eager"  # which needs no compiler
    dist.init_process_group("gloo")
    for folder, changes, expected in runs:
        said = run(folder, **changes)
        assert said is None if expected is None else said and expected in said, said
    dist.destroy_process_group()
