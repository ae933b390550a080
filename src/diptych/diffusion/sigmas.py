"""Curves along which sigma / alpha falls from its largest value to its smallest: (most, least, N) -> (N,) float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from diptych.diffusion.schedules import Schedule


def karras(most: float, least: float, count: int, rho: float = 7.0) -> Tensor:
    """The rho-th root is evenly spaced: more steps where there is little noise (Karras et al. 2022, Eq. 5)."""
    return torch.linspace(most ** (1 / rho), least ** (1 / rho), count, dtype=torch.float64) ** rho


def exponential(most: float, least: float, count: int) -> Tensor:
    """The logarithm is evenly spaced, as lambda is for DPM-Solver (Lu et al. 2022, section 3.4)."""
    return torch.linspace(math.log(most), math.log(least), count, dtype=torch.float64).exp()


def beta(most: float, least: float, count: int, shape: float = 0.6) -> Tensor:
    """Quantiles of Beta(0.6, 0.6): more steps at both ends ("Beta Sampling is All You Need", Lee et al. 2024)."""
    levels = 1 - torch.linspace(0, 1, count, dtype=torch.float64)
    return least + (most - least) * beta_quantiles(levels, shape)


def beta_quantiles(levels: Tensor, shape: float) -> Tensor:
    """Where the distribution function of Beta(shape, shape) reaches levels (N,) in [0, 1], by bisection.

    In u = x^shape the density of x <= 1/2 is (1 - u^(1 / shape))^(shape - 1) / shape, which has no pole at 0; the other
    half is its mirror image.
    """
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(200))

    def mass(u: Tensor) -> Tensor:
        """The integral from 0 to u (N,), by Gauss's rule."""
        points = u[:, None] * (nodes + 1) / 2
        return ((1 - points ** (1 / shape)) ** (shape - 1) * weights).sum(1) * u / 2

    top = torch.tensor([0.5**shape], dtype=torch.float64)
    target = torch.minimum(levels, 1 - levels) * 2 * mass(top)
    low, high = torch.zeros_like(target), top.expand_as(target)
    for _ in range(60):
        middle = (low + high) / 2
        below = mass(middle) < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    half = ((low + high) / 2) ** (1 / shape)
    return torch.where(levels <= 0.5, half, 1 - half)


CURVES: dict[str, Callable[[float, float, int], Tensor]] = {
    "karras": karras,
    "exponential": exponential,
    "beta": beta,
    "lu": exponential,
}
"""lu is the name under which DPM-Solver's own scheduler is saved with evenly spaced lambda."""


def times_on_curve(
    schedule: Schedule,
    ends: Tensor,
    count: int,
    curve: str,
    sigma_min: float | None = None,
    sigma_max: float | None = None,
) -> Tensor:
    """`count` times from ends[0] to ends[1], with sigma / alpha falling along a curve, whose ends may be given instead;
    on a straight schedule, where that starts at infinity, sigma falls along it, as in flow matching."""
    if schedule.straight:
        most, least = schedule.alpha_sigma(ends)[1].tolist()
    else:
        most, least = (-schedule.log_snr(ends) / 2).exp().tolist()
    levels = CURVES[curve](most if sigma_max is None else sigma_max, least if sigma_min is None else sigma_min, count)
    ratio = levels / (1 - levels) if schedule.straight else levels
    times = schedule.inverse_log_snr(-2 * ratio.log())
    return torch.where(ratio.isinf(), ends[0], times)  # pure noise
