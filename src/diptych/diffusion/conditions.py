"""Conditions as batches: rows repeated, and two conditions joined into one batch for classifier-free guidance."""

from __future__ import annotations

import torch
from torch import Tensor

from diptych.core.errors import UserError
from diptych.diffusion.denoiser import Cond

GPUS = ("cuda",)
"""Where masks are left out; elsewhere they stay, for the last bits of results."""


def expand_condition(cond: Cond, batch: int) -> dict[str, Tensor]:
    """A condition of 1 row for all images, or of B rows, as B rows. Raises `UserError` for another number of rows."""
    for key, value in cond.items():
        if len(value) not in (1, batch):
            raise UserError(f"the condition {key!r} has {len(value)} rows for {batch} images")
    return {key: value.expand(batch, *value.shape[1:]) for key, value in cond.items()}


def cat_conditions(first: Cond, second: Cond, batch: int) -> dict[str, Tensor]:
    """One condition of 2B rows: those of `first`, then those of `second`, made alike by `align` where they differ."""
    first, second = expand_condition(first, batch), expand_condition(second, batch)
    if {key: value.shape for key, value in first.items()} != {key: value.shape for key, value in second.items()}:
        first, second = align(first, second)
    return {key: torch.cat([first[key], second[key]]) for key in first}


def without_full_masks(first: Cond, second: Cond) -> tuple[Cond, Cond]:
    """Two conditions, on a GPU without masks that leave nothing out: attention without takes fewer kernels."""
    masks = [each["context_mask"] for each in (first, second) if "context_mask" in each]
    alike = len(masks) == 2 and masks[0].shape[1] == masks[1].shape[1]  # else the shorter is going to be padded
    if not alike or masks[0].device.type not in GPUS or not all(bool(mask.all()) for mask in masks):
        return first, second
    first, second = ({key: each[key] for key in each if key != "context_mask"} for each in (first, second))
    return first, second


def align(first: Cond, second: Cond) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Two conditions with the same keys, and contexts of the same length.

    A shorter context is padded with zeros, which its mask leaves out. A key that only one has is filled with zeros in
    the other; such zero tokens are not masked, so that attention always has keys.
    """
    halves = dict(first), dict(second)
    lengths = [half["context"].shape[1] if "context" in half else 0 for half in halves]
    if lengths[0] != lengths[1]:
        for half in halves:
            if "context" in half:
                context = half["context"]
                mask = half.get("context_mask", context.new_ones(context.shape[:2], dtype=torch.bool))
                half["context"], half["context_mask"] = pad(context, max(lengths)), pad(mask, max(lengths))
    for half, other in (halves, halves[::-1]):
        for key, value in other.items():
            if key not in half:
                half[key] = torch.ones_like(value) if value.dtype == torch.bool else torch.zeros_like(value)
    return halves


def pad(tokens: Tensor, length: int) -> Tensor:
    """(B, L, ...) -> (B, length, ...), padded with zeros, or False for a mask."""
    return torch.cat([tokens, tokens.new_zeros(len(tokens), length - tokens.shape[1], *tokens.shape[2:])], 1)
