"""A tiny decoder, trained to give what the decoder of a trained autoencoder gives."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from PIL import Image
from torch import Tensor, nn

from diptych.core.config import Within
from diptych.core.counter_random import draws_of
from diptych.core.devices import settled
from diptych.core.errors import UserError
from diptych.core.images import grid, psnr, to_images
from diptych.core.random import ANY
from diptych.data.dataset import DataConfig
from diptych.models.first_stage import KIND, save_tiny_decoder
from diptych.networks.autoencoder import Autoencoder
from diptych.networks.tiny_decoder import TinyDecoder, TinyDecoderConfig
from diptych.pretrained.load import open_autoencoder
from diptych.training.system import TrainingData, TrainingSystem, first_weights, require_multiple
from diptych.training.tasks.perceptual import PerceptualConfig
from diptych.training.trainable import Generated
from diptych.weights.fingerprint import fingerprint


@dataclass(frozen=True, kw_only=True)
class DistillationConfig(TrainingSystem):
    """A tiny decoder, its teacher, and the weights of the terms of its loss."""

    renamed: ClassVar[dict[str, str]] = {"after_teacher": "l1_teacher", "after_truth": "l1_image"}

    kind: Literal["tiny-decoder"] = KIND
    """Which system this is."""
    network: TinyDecoderConfig = TinyDecoderConfig()
    """The tiny decoder; its latents must be those of the teacher, in channels and factor."""
    teacher: str | None = None
    """What holds the autoencoder whose decoder is the teacher: a run or model folder, or a published model; none for
    the default model in the package."""
    l1_teacher: Annotated[float, Within(0)] = 1.0
    """Weight of the mean absolute difference from what the teacher decodes."""
    l1_image: Annotated[float, Within(0)] = 0.2
    """Weight of the mean absolute difference from the true image."""
    perceptual: PerceptualConfig | None = None
    """A perceptual distance from what the teacher decodes, or none."""
    save_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """How the finished model's kernels are stored."""

    def check(self) -> None:
        some = self.l1_teacher > 0 or self.l1_image > 0 or self.perceptual is not None
        self.require(some, "l1_teacher", "be more than 0, or l1_image, or perceptual be set: nothing is learned")

    def networks(self) -> dict[str, nn.Module]:
        return self.network.networks()

    @property
    def bucket_multiple(self) -> int:
        return self.network.factor

    def check_data(self, data: DataConfig) -> None:
        require_multiple(data, self.network.factor)

    def build(self, data: TrainingData, seed: int, resuming: bool = False) -> Distillation:
        teacher = open_autoencoder(self.teacher)
        distance = None if self.perceptual is None else self.perceptual.build()
        with first_weights(seed):
            return Distillation(self, teacher, distance)


class Distillation:
    """The `Trainable` of a tiny decoder. Latents are samples of the posterior, as diffusion ends with them.
    The loss of an image: l1_teacher * |y - teacher(z)| + l1_image * |y - x|, averaged over its values, plus
    perceptual.weight * d(y, teacher(z)).
    """

    def __init__(self, config: DistillationConfig, teacher: Autoencoder, perceptual: nn.Module | None = None) -> None:
        """perceptual: forward(first, second), images (B, 3, H, W) in [-1, 1] -> (B,)."""
        for field in ("latent_channels", "image_channels", "factor"):
            if (value := getattr(config.network, field)) != (expected := getattr(teacher.config, field)):
                raise UserError(f"network.{field} must be {expected}, as the teacher's, not {value}: set the network")
        self.config = config
        self.module = TinyDecoder(config.network)
        self.teacher = teacher.eval().requires_grad_(False)
        self.perceptual = perceptual.eval().requires_grad_(False) if perceptual is not None else None
        self._examples: Tensor | None = None

    @torch.no_grad()
    def start(self, batch: dict[str, Any]) -> None:
        """Set `scale` from the first batch, as a latent model does."""
        self.module.scale.copy_(1 / self.targets(batch)[0].std())

    @torch.no_grad()
    def targets(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Latents (B, C, h, w) of the batch's images, and what the teacher decodes, clipped as images are."""
        images = batch["picture"]  # (B, 3, H, W)
        posterior = settled(self.teacher, images.device).encode(images)
        latents = posterior.sample(draws_of(batch).normal(posterior.mean, ANY))
        return latents, self.teacher.decode(latents).clamp(-1, 1)

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        latents, target = self.targets(batch)
        decoded = self.module.decode(latents)
        after_teacher = (decoded - target).abs().flatten(1).mean(1)  # (B,)
        after_truth = (decoded - batch["picture"]).abs().flatten(1).mean(1)
        losses = self.config.l1_teacher * after_teacher + self.config.l1_image * after_truth
        scalars = {"after_teacher": after_teacher.mean(), "after_truth": after_truth.mean()}
        if self.perceptual is not None and self.config.perceptual is not None:
            distance = settled(self.perceptual, decoded.device)(decoded, target)  # (B,)
            losses, scalars["perceptual"] = losses + self.config.perceptual.weight * distance, distance.mean()
        return losses, scalars

    @torch.no_grad()
    def validation(self, batch: dict[str, Any]) -> dict[str, float]:
        """Peak signal-to-noise ratios in dB: from the teacher's images, from the true ones, and the teacher's own."""
        if self._examples is None:
            self._examples = batch["picture"][:16]
        latents, target = self.targets(batch)
        decoded = self.module.decode(latents).clamp(-1, 1)
        pairs = {"psnr_teacher": (decoded, target), "psnr": (decoded, batch["picture"])}
        return {
            name: psnr(*pair).mean().item()
            for name, pair in {**pairs, "teacher_psnr": (target, batch["picture"])}.items()
        }

    @torch.no_grad()
    def generated(self, batch: dict[str, Any], seeds: list[int]) -> Generated:
        """What it decodes of the latents of a batch's images, which are drawn as in training."""
        decoded = self.module.decode(self.targets(batch)[0])
        return Generated(to_images(decoded), to_images(batch["picture"]), paired=True)

    @torch.no_grad()
    def samples(self) -> Image.Image | None:
        """Originals, below them what the teacher decodes, below it what the tiny decoder does."""
        if self._examples is None:
            return None
        latents = self.teacher.encode(self._examples).mean
        rows = (self._examples, self.teacher.decode(latents), self.module.decode(latents))
        return grid([image for row in rows for image in to_images(row)], columns=len(self._examples))

    def save(self, folder: Path) -> None:
        network = dataclasses.replace(self.config.network, teacher=fingerprint(self.teacher))
        save_tiny_decoder(self.module, folder, dataclasses.replace(self.config, network=network).to_dict())
