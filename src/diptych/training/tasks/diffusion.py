"""Training a diffusion model: the common objective for every system that can `prepare` a batch and `generate`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor, nn

from diptych.core.config import Config
from diptych.core.counter_random import Draws, draws_of
from diptych.core.images import grid, to_images
from diptych.core.random import DROP, NOISE, TIME
from diptych.data.stream import pictures
from diptych.diffusion.denoiser import Cond, Denoiser
from diptych.diffusion.losses import ObjectiveConfig, training_times
from diptych.training.tasks.from_captions import generated_from_captions
from diptych.training.trainable import Generated

VALIDATION_TIMES = 8
PLACES = {"middles": 0.5, "beginnings": 0.0}
"""Where in its part of [0, 1] each of these times lies."""
PREVIEWS = 8
"""Validation images in the sample grid of models for super-resolution and inpainting."""


class Diffusable(Protocol):
    """A model that `DiffusionTask` trains: latent diffusion, or one stage of a cascade."""

    denoiser: Denoiser
    config: Any

    def start(self, batch: dict[str, Any]) -> None:
        """Initialise what depends on data, such as the latent scale, from a first batch."""
        ...

    def prepare(self, batch: dict[str, Any], draws: Draws, dropped: Tensor) -> tuple[Tensor, Cond]:
        """x0 (B, ...) and its condition; dropped (B,) bool, on the CPU, marks captions that are left out."""
        ...

    def generate(self, prompts: list[str], *, seeds: list[int]) -> Any: ...

    def save(self, folder: Path, dtype: str) -> None: ...


@runtime_checkable
class ImageToImage(Protocol):
    """Further methods of models for super-resolution and inpainting."""

    @property
    def image_to_image(self) -> bool:
        """Whether it is such a model; a base model is not."""
        ...

    def drawn(self, images: Tensor, seeds: Tensor) -> dict[str, Tensor]:
        """What `prepare` else makes on the CPU of images (B, 3, H, W) with seeds (B,), for their batch."""
        ...

    def sample_from_images(self, images: Tensor, captions: list[str], seeds: list[int]) -> tuple[Tensor, Tensor]:
        """The inputs made of images (B, 3, H, W), which may be smaller, and the outputs (B, 3, H, W)."""
        ...


@dataclass(frozen=True, kw_only=True)
class DiffusionTraining(Config):
    """What is particular to training a diffusion model."""

    objective: ObjectiveConfig = ObjectiveConfig()
    """Which times are trained and how they are weighted."""
    caption_dropout: float = 0.1
    """Share of the captions replaced by the empty one, for classifier-free guidance (Ho & Salimans 2022)."""
    prompts: tuple[str, ...] = ()
    """Fixed prompts of the sample grid; none for no grid."""
    validation_times: Literal["middles", "beginnings"] = "middles"
    """The 8 equidistant times of the validation loss: 1/16, 3/16 ... 15/16, or 0, 1/8 ... 7/8 as MLPerf Training has
    them. The noise of an image is the same at each and in each validation."""
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """How the finished model's matrices and kernels are stored."""

    def check(self) -> None:
        self.require(0 <= self.caption_dropout < 1, "caption_dropout", "lie between 0 and 1, 1 left out")


class DiffusionTask:
    """The `Trainable` of a diffusion model."""

    def __init__(self, system: Diffusable, config: DiffusionTraining) -> None:
        assert isinstance(system, nn.Module)
        self.system, self.config, self.module = system, config, system
        self._examples: dict[str, Any] | None = None

    def start(self, batch: dict[str, Any]) -> None:
        self.system.start(batch)

    def prepared(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch with what of its condition is made on the CPU: masks, degraded images."""
        if not (isinstance(self.system, ImageToImage) and self.system.image_to_image):
            return batch
        images = batch["picture"] if "picture" in batch else pictures(batch["pixels"])
        return {**batch, **self.system.drawn(images, batch["seed"])}

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        draws, objective = draws_of(batch), self.config.objective
        dropped = draws.host.uniform(DROP) < self.config.caption_dropout
        times = training_times(draws.uniform(TIME), objective, self.system.denoiser.schedule)
        return self._losses(batch, draws, times, dropped, objective.weighting), {}

    def _losses(self, batch: dict[str, Any], draws: Draws, times: Tensor, dropped: Tensor, weighting) -> Tensor:
        x0, cond = self.system.prepare(batch, draws, dropped)
        noise = draws.normal(x0, NOISE)
        objective = self.config.objective
        return self.system.denoiser.loss(x0, noise, times, cond, weighting, objective.gamma, objective.loss)

    @torch.no_grad()
    def validation(self, batch: dict[str, Any]) -> dict[str, float]:
        """The unweighted loss at 8 equidistant times with fixed noise, and their mean: comparable between runs."""
        if self._examples is None and "picture" in batch:
            self._examples = {key: batch[key][:PREVIEWS] for key in ("picture", "caption", "seed")}
        none, draws = torch.zeros(len(batch["seed"]), dtype=torch.bool), draws_of(batch)
        losses = {}
        for i in range(VALIDATION_TIMES):
            time = (i + PLACES[self.config.validation_times]) / VALIDATION_TIMES
            times = torch.full((len(batch["seed"]),), time, dtype=torch.float64)
            losses[f"loss_at_{time:.4f}"] = self._losses(batch, draws, times, none, "none").mean().item()
        return {"loss": sum(losses.values()) / len(losses), **losses}

    @torch.no_grad()
    def generated(self, batch: dict[str, Any], seeds: list[int]) -> Generated:
        """Images of the captions of a batch; of models for super-resolution and inpainting, what they make of its
        images, made small or masked."""
        if not (isinstance(self.system, ImageToImage) and self.system.image_to_image):
            return generated_from_captions(self.system, batch, seeds)
        _, outputs = self.system.sample_from_images(batch["picture"], list(batch["caption"]), seeds)
        return Generated(to_images(outputs), to_images(batch["picture"]), paired=True)

    def samples(self) -> Image.Image | None:
        """Images of the fixed prompts; of models for super-resolution and inpainting, rows of inputs, outputs and
        originals."""
        was_training = self.module.training
        self.module.eval()
        try:
            if isinstance(self.system, ImageToImage) and self.system.image_to_image:
                if self._examples is None:
                    return None
                return self._image_to_image_grid(self.system, *self._examples.values())
            if not self.config.prompts:
                return None
            prompts = list(self.config.prompts)
            images = self.system.generate(prompts, seeds=list(range(len(prompts)))).images
            return grid(images, columns=min(len(images), 8))
        finally:
            self.module.train(was_training)

    def _image_to_image_grid(
        self, system: ImageToImage, images: Tensor, captions: list[str], seeds: Tensor
    ) -> Image.Image:
        inputs, outputs = system.sample_from_images(images, captions, seeds.tolist())
        inputs = nn.functional.interpolate(inputs, images.shape[-2:], mode="nearest")
        return grid([image for row in (inputs, outputs, images) for image in to_images(row)], columns=len(images))

    def save(self, folder: Path) -> None:
        self.system.save(folder, self.config.save_dtype)
