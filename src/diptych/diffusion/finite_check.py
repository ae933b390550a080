"""Checks for NaN and infinity in every estimate of x_0 and in the result of a sampler."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.core.checks import require_finite
from diptych.core.errors import UserError
from diptych.diffusion.denoiser import Cond, Denoising, Estimate, Time
from diptych.diffusion.guidance import Wrapper

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
            return require_finite(x, f"the result of the {len(self.times) - 1} steps of {self.name}", self.remedy)

        return checked


class Finite(Wrapper):
    """See `FiniteCheck.wrap`."""

    def __init__(self, denoiser: Denoising, check: FiniteCheck) -> None:
        super().__init__(denoiser)
        self.check = check

    def estimate(self, x: Tensor, t: Time, cond: Cond | None = None) -> Estimate:
        estimate = self.denoiser.estimate(x, t, cond)
        if not torch.isfinite(estimate.x0).all():
            step = 1 + int((self.check.times.double().cpu() > float(torch.as_tensor(t).max())).sum())
            steps = len(self.check.times) - 1
            require_finite(estimate.x0, f"step {min(step, steps)} of {steps} of {self.check.name}", self.check.remedy)
        return estimate
