"""Checks for NaN and infinity in every estimate of x_0 and in the result of a sampler.

A GPU is not waited for in each step: what it found is read every `READ` steps, and at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diptych.core.checks import not_finite, require_finite
from diptych.core.errors import UserError
from diptych.diffusion.denoiser import Cond, Denoising, Estimate, Time
from diptych.diffusion.guidance import Wrapper

READ = 16
"""Steps."""
BoundSampler = Callable[[Denoising, Tensor, Tensor], Tensor]
"""(denoiser, x, times) -> x, a sampler with its other arguments bound."""


@dataclass(frozen=True)
class FiniteCheck:
    """The checks of one sampling, and the texts of its errors."""

    name: str
    """Of the model, for errors: "the stage 32", for example."""
    times: Tensor
    """(N + 1,), to number the steps."""
    remedy: str
    """Advice for the user."""
    unread: list[tuple[float, Tensor]] = field(default_factory=list)
    """Times, and whether the estimates there are finite."""

    def wrap(self, denoiser: Denoising) -> Denoising:
        """The denoiser; a `UserError` at the first estimate that is not finite. Goes inside a threshold, which would
        clip infinity."""
        return Finite(denoiser, self)

    def wrap_sampler(self, sampler: BoundSampler) -> BoundSampler:
        """The sampler; a `UserError` where its arithmetic has no result, or a result that is not finite."""

        def checked(denoiser: Denoising, x: Tensor, times: Tensor) -> Tensor:
            try:
                x = sampler(denoiser, x, times)
            except (ArithmeticError, ValueError) as error:
                if isinstance(error, ValueError) and "math domain" not in str(error):
                    raise
                raise UserError(
                    f"{self.name}: {len(self.times) - 1} steps of this sampler have no result in floating point "
                    f"({error}): take fewer steps or another sampler"
                ) from None
            self.read()
            return require_finite(x, f"the result of the {len(self.times) - 1} steps of {self.name}", self.remedy)

        return checked

    def read(self) -> None:
        """Raise a `UserError` for the first estimate that is not finite."""
        if not all(torch.stack([finite for _, finite in self.unread]).tolist() if self.unread else ()):
            t = next(t for t, finite in self.unread if not finite)
            step, steps = 1 + int((self.times.double().cpu() > t).sum()), len(self.times) - 1
            raise not_finite(f"step {min(step, steps)} of {steps} of {self.name}", self.remedy)
        self.unread.clear()


class Finite(Wrapper):
    """See `FiniteCheck.wrap`."""

    def __init__(self, denoiser: Denoising, check: FiniteCheck) -> None:
        super().__init__(denoiser)
        self.check = check

    def estimate(self, x: Tensor, t: Time, cond: Cond | None = None) -> Estimate:
        estimate = self.denoiser.estimate(x, t, cond)
        self.check.unread.append((float(torch.as_tensor(t).max()), torch.isfinite(estimate.x0).all()))
        if estimate.x0.device.type == "cpu" or len(self.check.unread) >= READ:
            self.check.read()
        return estimate
