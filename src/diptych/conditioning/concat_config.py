"""Configs of the masks and degradations of training images, light enough for every model's config to import."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from diptych.core.config import Config


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
    """How pictures are made small."""

    kind: Literal["bicubic", "bsr", "bsr-light"] = "bicubic"
    """bicubic: antialiased, as Pillow does it to 8 bits (SR3, and the paper's comparison with it); bsr: blurs,
    resizing, noise and JPEG, in order and strength at random (BSRGAN); bsr-light: milder (LDM-SR as published)."""
