"""Fills of masked images that need no training: the mean of what is visible, and the smoothest continuation."""

from __future__ import annotations

import torch
from torch import Tensor

STEPS, SMALL = 2000, 1e-3
"""Of the conjugate gradients of `harmonic_fill`: most steps, and the residual at which they end."""


def mean_fill(images: Tensor, masks: Tensor) -> Tensor:
    """Images (B, 3, H, W) whose masked pixels (B, 1, H, W; 1 where masked) have the mean colour of the others."""
    visible = 1 - masks
    mean = (images * visible).sum((2, 3), keepdim=True) / visible.sum((2, 3), keepdim=True).clamp(min=1)  # (B, 3, 1, 1)
    return torch.where(masks.bool(), mean, images)


def harmonic_fill(images: Tensor, masks: Tensor) -> Tensor:
    """Images (B, 3, H, W) whose masked pixels are as smooth as can be: each is the mean of its neighbours.

    That is Laplace's equation, the simplest of the classical ways to inpaint (Bertalmio et al. 2000 begin from it). Its
    solution has the least sum of squared differences between neighbours, and is found by conjugate gradients.
    """
    x = mean_fill(images, masks).double()
    masks = masks.double()
    r = -masks * laplacian(x)  # (B, 3, H, W), the residual; zero where pixels are not masked
    p, square = r, total(r * r)
    for _ in range(STEPS):
        if r.abs().max() < SMALL:
            break
        a = masks * laplacian(p)
        step = square / total(p * a).clamp(min=1e-30)
        x, r = x + step * p, r - step * a
        square, before = total(r * r), square
        p = r + square / before.clamp(min=1e-30) * p
    return torch.where(masks.bool(), x.to(images), images)


def laplacian(x: Tensor) -> Tensor:
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


FILLS = {"mean fill": mean_fill, "harmonic fill": harmonic_fill}
"""By the name of their row; the first is the baseline of all margins."""
