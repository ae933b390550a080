"""A picture painted over by any denoiser from a later time on, or a part of it anew around what is known."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from diptych.diffusion.denoiser import Cond, Denoising, Estimate, Time
from diptych.diffusion.guidance import Wrapper


class Repaint(Wrapper):
    """Shows the denoiser what is known with the noise of its time, and what is painted as the sampler has it (RePaint,
    Lugmayr et al. 2022, Eq. 8, with the same noise at all times and without going back).

    known: x_0 of the whole picture (B, C, ...). noised: x_t of it at a time. mask: bool, true where to paint, of a
      shape that broadcasts to it. first: the time at which sampling begins; there the denoiser is shown the start as it
      is, which may be noise alone.

    What a sampler itself makes of the known part is never looked at, because its steps treat every value by itself: so
    any sampler will do, and `finished` puts the known part in its place at the end.

    What is painted fits what is known less closely than a sample of the conditional distribution would: for weakly
    correlated Gaussian data the known part pulls with a third of its strength. A network that was trained to repaint
    has no such bias.
    """

    def __init__(
        self, denoiser: Denoising, known: Tensor, noised: Callable[[Time], Tensor], mask: Tensor, first: float
    ) -> None:
        super().__init__(denoiser)
        self.known, self.noised, self.mask, self.first = known, noised, mask, first

    def estimate(self, x: Tensor, t: Time, cond: Cond | None = None) -> Estimate:
        if float(t) < self.first:
            x = torch.where(self.mask, x, self.noised(t))
        x0, variance = self.denoiser.estimate(x, t, cond)
        return Estimate(self.finished(x0), variance)

    def finished(self, x0: Tensor) -> Tensor:
        """What is painted of x_0, and what is known."""
        return torch.where(self.mask, x0, self.known)


def painted_over(
    walk: Callable[[Denoising, Tensor, Tensor], Tensor],
    denoiser: Denoising,
    known: Tensor,
    noise: Tensor,
    times: Tensor,
    noised: Callable[[Tensor, Tensor, Time], Tensor],
    *,
    mask: Tensor | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """What a sampler makes of x_0 that is known (B, C, ...), from the noise of the first of the times on (SDEdit, Meng
    et al. 2022, section 3), or from `start`; where there is a mask, what is outside stays as it is.

    walk: (denoiser, x, times) -> x, the sampler. noised: (x_0, noise, time) -> x_t, of the same noise at all times.
    """
    x = noised(known, noise, times[0]) if start is None else start
    if mask is None:
        return walk(denoiser, x, times)
    painting = Repaint(denoiser, known, partial(noised, known, noise), mask, float(times[0]))
    return painting.finished(walk(painting, x, times))
