"""A tiny trainable for the tests of the loop: also a script, so that a test can kill it."""

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

from diptych.errors import UserError
from diptych.training.config import TrainingConfig
from diptych.training.loop import train
from diptych.weights.files import save_weights


class Toy:
    """Denoises points; noise comes from the batch's seeds, dropout from the global generator."""

    def __init__(self, dropout: float = 0.0, bad_step: int | None = None) -> None:
        torch.manual_seed(1)
        self.module = nn.Sequential(nn.Linear(8, 32), nn.SiLU(), nn.Dropout(dropout), nn.Linear(32, 8))
        self.module.register_buffer("scale", torch.ones(()))
        self.bad_step, self.seen = bad_step, 0

    def start(self, batch: dict) -> None:
        self.module.get_buffer("scale").copy_(1 / batch["picture"].std())

    def loss(self, batch: dict) -> tuple[Tensor, dict[str, Tensor]]:
        x = batch["picture"] * self.module.get_buffer("scale")
        noise = torch.stack([torch.randn(8, generator=torch.Generator().manual_seed(int(s))) for s in batch["seed"]])
        losses = (self.module(x + noise) - x).square().mean(1)  # (B,)
        if self.bad_step is not None and int(batch["seed"].min()) >= self.bad_step:
            losses = losses * torch.where(batch["seed"] == batch["seed"].min(), torch.nan, 1.0)
        return losses, {"largest": losses.detach().max()}

    def validation(self, batch: dict) -> dict[str, float]:
        return {"loss": self.loss(batch)[0].mean().item()}

    def samples(self) -> Image.Image:
        return Image.new("RGB", (4, 4), (int(255 * torch.rand(())), 0, 0))

    def save(self, folder: Path) -> None:
        save_weights(self.module.state_dict(), folder)


def batch_at(positions: list[int]) -> dict:
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
        "validation_pictures": 10,
        "threads": 1,
        "device": "cpu",
    }
    return TrainingConfig.from_dict(values | changes)


def slow_batch_at(positions: list[int]) -> dict:
    time.sleep(float(os.environ.get("TOY_SLEEP", 0)))
    return batch_at(positions)


if __name__ == "__main__":
    folder, changes = Path(sys.argv[1]), json.loads(sys.argv[2])
    toy = Toy(dropout=changes.pop("dropout", 0.0), bad_step=changes.pop("bad_step", None))
    try:
        train(toy, slow_batch_at, settings(**changes), folder, batch_at)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(2) from None
