"""Training a diffusion model: the common objective for every system that can `prepare` a batch and `generate`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from diptych.config import Config
from diptych.diffusion.denoiser import Cond, Denoiser
from diptych.diffusion.objective import ObjectiveConfig, training_times
from diptych.pictures import grid
from diptych.training.randomness import normal, uniform

VALIDATION_TIMES = 8
DROP, TIME, NOISE, POSTERIOR = 1, 2, 3, 4  # independent streams of an example's random numbers


class Diffusable(Protocol):
    """A system that can be trained by `DiffusionTask`: the latent panel, or one stage of the cascade."""

    denoiser: Denoiser

    def start(self, batch: dict[str, Any]) -> None:
        """Look at a first batch (its scale)."""
        ...

    def prepare(self, batch: dict[str, Any], noise: Callable[[Tensor], Tensor], dropped: Tensor) -> tuple[Tensor, Cond]:
        """x0 (B, ...) and its condition. `noise(like)` draws normal numbers; dropped (B,) bool marks empty captions."""
        ...

    def generate(self, prompts: list[str], *, seeds: list[int]) -> Any: ...

    def save(self, folder: Path, dtype: str) -> None: ...


@dataclass(frozen=True, kw_only=True)
class DiffusionTraining(Config):
    """What is particular to training a diffusion model."""

    objective: ObjectiveConfig = ObjectiveConfig()
    """Which times are trained and how they are weighted."""
    caption_dropout: float = 0.1
    """Share of the captions replaced by the empty one, for classifier-free guidance (Ho & Salimans 2022)."""
    prompts: tuple[str, ...] = ()
    """Fixed prompts of the sample grid; none for no grid."""
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """How the finished model's matrices and kernels are stored."""

    def check(self) -> None:
        self.require(0 <= self.caption_dropout < 1, "caption_dropout", "lie between 0 and 1, 1 left out")


class DiffusionTask:
    """A diffusion system as the training loop sees it."""

    def __init__(self, system: Diffusable, config: DiffusionTraining) -> None:
        assert isinstance(system, nn.Module)
        self.system, self.config, self.module = system, config, system

    def start(self, batch: dict[str, Any]) -> None:
        self.system.start(batch)

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        dropped = uniform(batch["seed"], stream=DROP) < self.config.caption_dropout
        times = training_times(
            uniform(batch["seed"], stream=TIME), self.config.objective, self.system.denoiser.schedule
        )
        return self._losses(batch, times, dropped, self.config.objective.weighting), {}

    def _losses(self, batch: dict[str, Any], times: Tensor, dropped: Tensor, weighting) -> Tensor:
        def draw(like: Tensor, stream: int = POSTERIOR) -> Tensor:
            return normal(batch["seed"], like.shape[1:], like.device, stream)

        x0, cond = self.system.prepare(batch, draw, dropped)
        noise = draw(x0, NOISE)
        return self.system.denoiser.loss(x0, noise, times, cond, weighting, self.config.objective.gamma)

    @torch.no_grad()
    def validation(self, batch: dict[str, Any]) -> dict[str, float]:
        """The unweighted loss at 8 equidistant times with fixed noise, and their mean: comparable between runs."""
        none = torch.zeros(len(batch["seed"]), dtype=torch.bool)
        losses = {}
        for i in range(VALIDATION_TIMES):
            time = (i + 0.5) / VALIDATION_TIMES
            times = torch.full((len(batch["seed"]),), time, dtype=torch.float64)
            losses[f"loss_at_{time:.4f}"] = self._losses(batch, times, none, "none").mean().item()
        return {"loss": sum(losses.values()) / len(losses), **losses}

    def samples(self) -> Image.Image | None:
        if not self.config.prompts:
            return None
        prompts = list(self.config.prompts)
        was_training = self.module.training
        self.module.eval()
        images = self.system.generate(prompts, seeds=list(range(len(prompts)))).images
        self.module.train(was_training)
        return grid(images, columns=min(len(images), 8))

    def save(self, folder: Path) -> None:
        self.system.save(folder, self.config.save_dtype)
