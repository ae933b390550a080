"""A tiny trainable for the tests of the loop; also a script, so that tests can start, kill and torchrun it."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from diptych.core.errors import UserError
from diptych.training import readback
from diptych.training.trainer import train
from diptych.training.training_config import TrainingConfig
from diptych.weights.save import save_weights


class Toy:
    """Denoises points; noise comes from the batch's seeds, dropout from the global generator."""

    def __init__(self, dropout: float = 0.0, bad_seed: int | None = None) -> None:
        torch.manual_seed(1)
        self.module = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Dropout(dropout), nn.Linear(32, 8))
        self.module.register_buffer("scale", torch.ones(()))
        self.bad_seed = bad_seed

    def start(self, batch: dict[str, Any]) -> None:
        self.module.get_buffer("scale").copy_(1 / batch["picture"].std())

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        x = batch["picture"] * self.module.get_buffer("scale")
        noise = torch.stack([torch.randn(8, generator=torch.Generator().manual_seed(int(s))) for s in batch["seed"]])
        losses = (self.module(x + noise) - x).square().mean(1)  # (B,)
        if self.bad_seed is not None:
            losses = losses * torch.where(batch["seed"] == self.bad_seed, torch.nan, 1.0)
        return losses, {"largest": losses.detach().max()}

    def validation(self, batch: dict[str, Any]) -> dict[str, float]:
        assert not self.module.training
        assert not torch.is_grad_enabled()
        return {"loss": self.loss(batch)[0].mean().item()}

    def samples(self) -> Image.Image:
        return Image.new("RGB", (4, 4), (int(255 * torch.rand(())), 0, 0))

    def save(self, folder: Path) -> None:
        save_weights(self.module.state_dict(), folder)


def batch_at(positions: list[int]) -> dict[str, Any]:
    generators = [torch.Generator().manual_seed(p % 50) for p in positions]
    return {
        "picture": torch.stack([torch.randn(8, generator=g) for g in generators]),
        "seed": torch.tensor(positions),
        "key": [f"toy-{p % 50}" for p in positions],
        "caption": ["a toy"] * len(positions),
    }


def settings(**changes: Any) -> TrainingConfig:
    values = {
        "steps": 40,
        "batch_size": 6,
        "warmup": 4,
        "schedule": "cosine",
        "learning_rate": 1e-2,
        "ema": 0.9,
        "log_every": 5,
        "validate_every": 20,
        "sample_every": 20,
        "checkpoint_every": 4,
        "validation_images": 10,
        "threads": 1,
        "device": "cpu",
    }
    return TrainingConfig.from_dict(values | changes)


def run(folder: str, changes: dict[str, Any], sleep: float = 0.0, environment: dict[str, str] | None = None) -> None:
    """Train a toy in this process; a user error exits with 2."""
    os.environ.update(environment or {})
    changes = dict(changes)
    readback.LAG["cpu"] = changes.pop("lag", 0)
    toy = Toy(dropout=changes.pop("dropout", 0.0), bad_seed=changes.pop("bad_seed", None))

    def slow_batch_at(positions: list[int]) -> dict[str, Any]:
        time.sleep(sleep)
        return batch_at(positions)

    try:
        train(toy, slow_batch_at, settings(**changes), folder, batch_at)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None


if __name__ == "__main__":
    run(sys.argv[1], json.loads(sys.argv[2]), *map(float, sys.argv[3:4]))
