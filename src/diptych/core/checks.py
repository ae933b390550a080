"""What users hand to `generate`, read strictly: the right thing, or a `UserError` that names it."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor

from diptych.core.errors import UserError


def texts(name: str, value: Any) -> list[str]:
    """One text or several, as a list; a `UserError` for anything else."""
    values = [value] if isinstance(value, str) else list(value) if isinstance(value, (list, tuple)) else [value]
    if wrong := [item for item in values if not isinstance(item, str)]:
        raise UserError(f"{name} must be a text or a list of texts, not {said(wrong[0])}")
    return values


def wholes(name: str, values: Any) -> list[int]:
    """Whole numbers of any integer type, as Python's; a `UserError` for anything else."""
    try:
        return [operator.index(value) for value in values]
    except TypeError:
        raise UserError(f"{name} must be whole numbers, not {said(values)}") from None


def one_or_each(what: str, value: Any, count: int) -> list[Any]:
    """What a user gave for all `count` prompts, or in a list with one for each; a `UserError` for another number."""
    given = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(given) not in (1, count):
        raise UserError(f"give one {what} for all {count} prompts or one for each, not {len(given)}")
    return given


def initial(noise: Any, shape: tuple[int, ...]) -> Tensor:
    """Given noise in float32, if it is finite and has this shape."""
    if not isinstance(noise, Tensor) or tuple(noise.shape) != shape:
        found = tuple(noise.shape) if isinstance(noise, Tensor) else type(noise).__name__
        raise UserError(f"noise must be a tensor of shape {shape}, not {found}")
    noise = noise.float()
    if not torch.isfinite(noise).all():
        raise UserError("noise must be finite")
    return noise


def require_finite(values: Tensor, what: str, remedy: str) -> Tensor:
    """The values, if none of them is NaN or infinite: what is shown or written as an image passes here."""
    if not torch.isfinite(values).all():
        raise UserError(f"{what} is not finite (NaN or infinity), so that there is no image: {remedy}")
    return values


def remedy(dtype: torch.dtype, guidance: float = 1.0) -> str:
    """What to try where networks of this type, guided so strongly, give values that are not finite."""
    tried = [] if dtype == torch.float32 else [f"open the model as float32, it computes in {str(dtype)[6:]}"]
    tried += [] if guidance == 1 else [f"lower the guidance of {guidance:g}"]
    return ", or ".join([*tried, "take another sampler or another number of steps"])


def said(value: Any) -> str:
    """A value as the user gave it, in at most one line."""
    return " ".join(repr(value).split())[:80]
