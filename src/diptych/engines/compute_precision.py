"""In which precision networks compute."""

from __future__ import annotations

from typing import Literal

import torch

from diptych.core.devices import fast_bf16
from diptych.core.errors import UserError, pick

Precision = Literal["float32", "bf16", "int8"]
PRECISIONS = ("auto", "float32", "bf16", "int8")
"""auto: float32, which changes no image by more than rounding."""


def choose_precision(precision: str, device: torch.device) -> Precision:
    """The precision that is meant. A `UserError` for one that there is not, or that this machine is not made for."""
    pick("precision", precision, PRECISIONS)
    if precision == "auto":
        return "float32"
    if precision == "bf16" and not fast_bf16(device):
        raise UserError(f"bf16 is emulated on {device} here, slower than float32: use precision float32 or int8")
    return precision  # type: ignore[return-value]
