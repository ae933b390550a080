"""How training pictures of super-resolution are made small: bicubic, or BSRGAN's chain (Zhang et al. 2021)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from diptych.config import Config


@dataclass(frozen=True, kw_only=True)
class DegradationConfig(Config):
    """How pictures are made small."""


def degraded(pictures: Tensor, factor: int, config: DegradationConfig, seeds: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] made `factor` times as small, what is random in it fixed by their seeds."""
    raise NotImplementedError
