"""Masks for training models that repaint (LaMa, Suvorov et al. 2022, section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from diptych.config import Config


@dataclass(frozen=True, kw_only=True)
class MaskConfig(Config):
    """How masks are drawn."""


def drawn_masks(config: MaskConfig, size: Sequence[int], seeds: Tensor) -> Tensor:
    """Masks (B, 1, H, W), 1 where to paint, each fixed by its seed."""
    raise NotImplementedError
