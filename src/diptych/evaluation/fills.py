"""Fills of a masked picture that need no training: what a model that repaints must be better than."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS, SMALL = 2000, 1e-3
"""Of the solver: at most so many steps, and it ends where what is left of the equation is so small everywhere."""


def mean_fill(pictures: Tensor, masks: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) whose masked pixels (B, 1, H, W; 1 where masked) have the mean colour of the others."""
    known = 1 - masks
    mean = (pictures * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True).clamp(min=1)  # (B, 3, 1, 1)
    return torch.where(masks.bool(), mean, pictures)


def harmonic_fill(pictures: Tensor, masks: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) whose masked pixels are as smooth as can be: each is the mean of its neighbours.

    That is Laplace's equation, the simplest of the classical ways to inpaint (Bertalmio et al. 2000 begin from it). Its
    solution has the least sum of squared differences between neighbours, and is found by conjugate gradients.
    """
    x = mean_fill(pictures, masks).double()
    masks = masks.double()
    r = -masks * rough(x)  # (B, 3, H, W), what is left of the equation; zero where pixels are known
    p, square = r, total(r * r)
    for _ in range(STEPS):
        if r.abs().max() < SMALL:
            break
        a = masks * rough(p)
        step = square / total(p * a).clamp(min=1e-30)
        x, r = x + step * p, r - step * a
        square, before = total(r * r), square
        p = r + square / before.clamp(min=1e-30) * p
    return torch.where(masks.bool(), x.to(pictures), pictures)


def rough(x: Tensor) -> Tensor:
    """By how much each pixel of x (B, C, H, W) exceeds its neighbours, summed over these."""
    down, across = x.diff(dim=2), x.diff(dim=3)  # (B, C, H - 1, W), (B, C, H, W - 1)
    out = torch.zeros_like(x)
    out[:, :, 1:] += down
    out[:, :, :-1] -= down
    out[..., 1:] += across
    out[..., :-1] -= across
    return out


def total(x: Tensor) -> Tensor:
    """The sum over each channel (B, C, 1, 1): channels are solved apart."""
    return x.sum((2, 3), keepdim=True)
