"""What every sampler stands on: one generator per picture, the levels that are walked, the look at each of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diptych.diffusion.schedule import Schedule
from diptych.errors import UserError
from diptych.seeding import generator

Denoise = Callable[[Tensor, float], Tensor]
"""(x (B, ...), t) -> x_0 (B, ...)."""
Callback = Callable[[int, int, Tensor], object]
"""(step, steps, x_0), once in each step; it may raise to cancel."""


Sampler = Callable[..., Tensor]
"""sampler(denoise, x, times, schedule, *, noise, callback=None, **its own options) -> x

x (B, ...) at times[0] (standard normal at t = 1) becomes x (B, ...) at times[-1]. times: N + 1 falling values, see
`times.timesteps`. noise: for those that draw in each step; the deterministic ones leave it alone.
"""


class NoiseSource:
    """One random generator per picture, on the CPU: a seed gives the same draws in any batch and on any device.

    seeds: one per picture, from 0 to 2^63 - 1. shape: of one picture, no batch axis.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.generators = [generator(seed) for seed in seeds]
        self.shape, self.device, self.dtype = tuple(shape), device, dtype

    def draw(self) -> Tensor:
        """(B, *shape) standard normal."""
        draws = [torch.randn(self.shape, generator=generator) for generator in self.generators]
        return torch.stack(draws).to(self.device, self.dtype)

    def uniform(self) -> Tensor:
        """(B,) float64 in [0, 1), on the CPU."""
        draws = [torch.rand((), generator=generator, dtype=torch.float64) for generator in self.generators]
        return torch.stack(draws)


def drawn(noise: NoiseSource | None) -> Tensor:
    if noise is None:
        raise UserError("this sampler draws fresh noise in each step: give it noise=NoiseSource(seeds, shape)")
    return noise.draw()


class Level(NamedTuple):
    """A time and what x_t is made of there, as Python numbers (float64)."""

    t: float
    alpha: float
    sigma: float

    @property
    def log_ratio(self) -> float:
        """lambda = log(alpha / sigma), half the log-SNR; infinite at the ends."""
        if self.alpha == 0 or self.sigma == 0:
            return math.inf if self.sigma == 0 else -math.inf
        return math.log(self.alpha / self.sigma)


def levels(times: Tensor, schedule: Schedule) -> Iterator[tuple[int, Level, Level]]:
    """(step, the level now, the level after it) for each of the N steps; steps of no length are left out, of which the
    layouts for almost as many steps as a table has entries may have one."""
    times = times.double().cpu()
    alpha, sigma = schedule.alpha_sigma(times)
    every = [Level(*values) for values in zip(times.tolist(), alpha.tolist(), sigma.tolist(), strict=True)]
    pairs = enumerate(itertools.pairwise(every))
    return ((step, now, then) for step, (now, then) in pairs if now.t != then.t)


def look(denoise: Denoise, x: Tensor, now: Level, step: int, times: Tensor, callback: Callback | None) -> Tensor:
    """Ask for x_0, and show it to the callback."""
    x0 = denoise(x, now.t)
    if callback is not None:
        callback(step, len(times) - 1, x0)
    return x0


def recombine(x: Tensor, x0: Tensor, now: Level, then: Level, fresh: float = 0.0) -> Tensor:
    """alpha' x_0 + sqrt(sigma'^2 - fresh^2) eps, where eps = (x - alpha x_0) / sigma (DDIM, Eq. 12)."""
    kept = math.sqrt(max(then.sigma**2 - fresh**2, 0.0)) / now.sigma
    return kept * x + (then.alpha - kept * now.alpha) * x0
