"""Configs of concat conditioning, and of the masks and degradations of training images; light to import."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from diptych.core.config import Config

if TYPE_CHECKING:
    from diptych.conditioning.concat import LowResCondition, MaskCondition
    from diptych.networks.autoencoder import AutoencoderConfig


@dataclass(frozen=True, kw_only=True)
class MaskConfig(Config):
    """How often each kind of masks is drawn. The weights need not sum to 1."""

    thin: float = 1.0
    """Weight of many thin strokes (LaMa's random_thin_256)."""
    medium: float = 1.0
    """Weight of some strokes and boxes (random_medium_256)."""
    thick: float = 1.0
    """Weight of few thick strokes and large boxes (random_thick_256)."""
    thick_512: float = 0.0
    """Weight of thicker ones still (random_thick_512)."""

    def check(self) -> None:
        for name, weight in self.weights.items():
            self.require(math.isfinite(weight) and weight >= 0, name, "be at least 0")
        self.require(sum(self.weights.values()) > 0, "thick", "be more than 0 where the other weights are 0")

    @property
    def weights(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("thin", "medium", "thick", "thick_512")}


@dataclass(frozen=True, kw_only=True)
class DegradationConfig(Config):
    """How images are made small."""

    kind: Literal["bicubic", "bsr", "bsr-light"] = "bicubic"
    """bicubic: antialiased, as Pillow does it to 8 bits (SR3, and the paper's comparison with it); bsr: blurs,
    resizing, noise and JPEG, in order and strength at random (BSRGAN); bsr-light: milder (LDM-SR as published)."""


@dataclass(frozen=True, kw_only=True)
class MaskConcat(Config):
    """A mask and the latent of the masked image: the model inpaints (Rombach et al. 2022, section 4.5)."""

    renamed: ClassVar[dict[str, str]] = {"fine": "full_resolution_mask"}

    kind: Literal["masked"] = "masked"
    """Which condition this is."""
    masks: MaskConfig = MaskConfig()
    """How masks are drawn in training."""
    fill: Literal["grey", "smooth"] = "grey"
    """The masked pixels when the first stage encodes the image: grey, as published, or a smooth continuation of the
    colours around them (`smooth_fill`)."""
    full_resolution_mask: bool = False
    """Give all pixels of the mask, those of a latent's square in channels; else the first of each, as published."""

    def channels(self, autoencoder: AutoencoderConfig) -> int:
        """Channels that it takes: one, or a latent's square of pixels, for the mask, and those of a latent."""
        return (autoencoder.factor**2 if self.full_resolution_mask else 1) + autoencoder.latent_channels

    def build(self, autoencoder: AutoencoderConfig) -> MaskCondition:
        """The condition, for latents of this first stage."""
        from diptych.conditioning.concat import MaskCondition

        return MaskCondition(self, autoencoder)


@dataclass(frozen=True, kw_only=True)
class LowResConcat(Config):
    """An image `factor` times as small: the model enlarges (Rombach et al. 2022, section 4.4)."""

    renamed: ClassVar[dict[str, str]] = {"encoded": "with_latent"}

    kind: Literal["low"] = "low"
    """Which condition this is."""
    factor: int = 4
    """How many times as large an image becomes."""
    degradation: DegradationConfig = DegradationConfig()
    """How training images are made small."""
    with_latent: bool = False
    """Give the latent of the bicubically enlarged image too, as the published x2 upscaler of latents reads it."""

    def check(self) -> None:
        self.require(self.factor >= 2, "factor", "be at least 2")

    def channels(self, autoencoder: AutoencoderConfig) -> int:
        """Channels that it takes: all values of the small image, at the size of a latent, and perhaps a latent."""
        values = autoencoder.image_channels * max(1, autoencoder.factor // self.factor) ** 2
        return values + autoencoder.latent_channels * self.with_latent

    def build(self, autoencoder: AutoencoderConfig) -> LowResCondition:
        """The condition, for latents of this first stage."""
        from diptych.conditioning.concat import LowResCondition

        return LowResCondition(self, autoencoder)


ConcatConfig = MaskConcat | LowResConcat
