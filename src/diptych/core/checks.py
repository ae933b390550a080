"""Tensors that must be finite: initial noise, images, and what to try where they are not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diptych.core.errors import UserError


def initial(noise: Any, shape: tuple[int, ...]) -> Tensor:
    """Given noise in float32, if it is finite and has this shape."""
    if not isinstance(noise, Tensor) or tuple(noise.shape) != shape:
        actual = tuple(noise.shape) if isinstance(noise, Tensor) else type(noise).__name__
        raise UserError(f"noise must be a tensor of shape {shape}, not {actual}")
    noise = noise.float()
    if not torch.isfinite(noise).all():
        raise UserError("noise must be finite")
    return noise


def require_finite(values: Tensor, what: str, remedy: str) -> Tensor:
    """The values, where all are finite. Every image that is shown or written passes here."""
    if not torch.isfinite(values).all():
        raise not_finite(what, remedy)
    return values


def not_finite(what: str, remedy: str) -> UserError:
    return UserError(f"{what} is not finite (NaN or infinity), so that there is no image: {remedy}")


def remedy(dtype: torch.dtype, guidance: float = 1.0) -> str:
    """What to try where networks of this type, guided so strongly, give values that are not finite."""
    tried = [] if dtype == torch.float32 else [f"open the model as float32, it computes in {str(dtype)[6:]}"]
    tried += [] if guidance == 1 else [f"lower the guidance of {guidance:g}"]
    return ", or ".join([*tried, "take another sampler or another number of steps"])
