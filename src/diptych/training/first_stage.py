"""Training the autoencoder of the latent panel (Rombach et al. 2022, section 3.1 and appendix G)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor

from diptych.config import Config
from diptych.networks.autoencoder import Autoencoder, AutoencoderConfig
from diptych.pictures import grid, to_images
from diptych.training.randomness import normal
from diptych.weights.files import load_into, load_weights, save_weights, write_text


@dataclass(frozen=True, kw_only=True)
class FirstStageConfig(Config):
    """An autoencoder and the weights of the terms of its loss."""

    kind: Literal["autoencoder"] = "autoencoder"
    """Which system this is."""
    network: AutoencoderConfig = AutoencoderConfig()
    """The autoencoder."""
    l1: float = 1.0
    """Weight of the mean absolute error."""
    l2: float = 0.0
    """Weight of the mean squared error."""
    kl: float = 1e-6
    """Weight of the KL divergence (summed over a latent) against the reconstruction error (summed over a picture)."""
    save_dtype: Literal["float32", "bfloat16"] = "float32"
    """How the finished model's matrices and kernels are stored."""


class FirstStage:
    """The autoencoder as the training loop sees it. The loss of a picture is taken per component, so that it does not
    grow with the picture: l1 * |x - x'| + l2 * (x - x')^2 averaged, plus kl * KL / (3 H W).
    """

    def __init__(self, config: FirstStageConfig) -> None:
        self.config = config
        self.module = Autoencoder(config.network)
        self._shown: Tensor | None = None

    def start(self, batch: dict[str, Any]) -> None:
        """Nothing to prepare."""

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        pictures = batch["picture"]  # (B, 3, H, W)
        posterior = self.module.encode(pictures)
        latents = posterior.sample(normal(batch["seed"], posterior.mean.shape[1:], pictures.device))
        error = self.module.decode(latents) - pictures
        l1, l2 = error.abs().flatten(1).mean(1), error.square().flatten(1).mean(1)  # (B,)
        kl = posterior.kl() / pictures[0].numel()
        scalars = {"l1": l1.mean(), "l2": l2.mean(), "kl": posterior.kl().mean(), "deviation": latents.std()}
        return self.config.l1 * l1 + self.config.l2 * l2 + self.config.kl * kl, scalars

    @torch.no_grad()
    def validation(self, batch: dict[str, Any]) -> dict[str, float]:
        pictures = batch["picture"]
        posterior = self.module.encode(pictures)
        if self._shown is None:
            self._shown = pictures[:16]
        error = self.module.decode(posterior.mean).clamp(-1, 1) - pictures
        squared = (error / 2).square().flatten(1).mean(1)  # of values in [0, 1]
        return {"l1": error.abs().mean().item(), "psnr": (-10 * squared.clamp(min=1e-10).log10()).mean().item()}

    @torch.no_grad()
    def samples(self) -> Image.Image | None:
        """Originals above, reconstructions below."""
        if self._shown is None:
            return None
        rebuilt = self.module.decode(self.module.encode(self._shown).mean)
        return grid(to_images(self._shown) + to_images(rebuilt), columns=len(self._shown))

    def save(self, folder: Path) -> None:
        save_autoencoder(self.module, folder, self.config.save_dtype)
        write_text(folder / "config.json", self.config.to_json())


def save_autoencoder(module: Autoencoder, folder: Path, dtype: str = "float32") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(module.state_dict(), folder / "autoencoder", dtype=getattr(torch, dtype))


def load_autoencoder(config: AutoencoderConfig, folder: Path) -> Autoencoder:
    """Build an autoencoder and fill it from `folder`/autoencoder; raises a `UserError` that names what does not fit."""
    module = Autoencoder(config)
    load_into(module, load_weights(folder / "autoencoder"), str(folder / "autoencoder"))
    return module.eval()
