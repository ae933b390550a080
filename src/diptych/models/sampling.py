"""Sampling with a denoiser: what latent and pixel models share between preparing an input and decoding."""

from __future__ import annotations

from typing import Any

from diptych.diffusion.denoiser import Denoising


class Cost:
    """Network calls since its construction, for the metadata of a batch of images."""

    def __init__(self, denoiser: Denoising, images: int) -> None:
        self.denoiser, self.images = denoiser, images
        self.before = denoiser.calls, denoiser.gradients

    def metadata(self) -> dict[str, Any]:
        """One image's share: `calls` of the network, `gradients` of guides (each a forward and a backward pass)."""
        counts = self.denoiser.calls - self.before[0], self.denoiser.gradients - self.before[1]
        shares = (-(-count // self.images) for count in counts)
        return {"cost": dict(zip(("calls", "gradients"), shares, strict=True))}
