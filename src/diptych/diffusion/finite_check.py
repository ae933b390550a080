"""NaN and infinity are no image: looked for in every estimate, and in what a sampler ends with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.core.checks import require_finite
from diptych.core.errors import UserError
from diptych.diffusion.denoiser import Cond, Denoising, Estimate, Time
from diptych.diffusion.guidance import Wrapper

Walk = Callable[[Denoising, Tensor, Tensor], Tensor]
"""(denoiser, x, times) -> x, a sampler with all else bound."""


@dataclass(frozen=True)
class FiniteCheck:
    """What is checked while one system samples, and what its user is told where that fails."""

    what: str
    """"the stage 32", for example."""
    times: Tensor
    """(N + 1,), all of them, from which the number of a step follows."""
    remedy: str
    """What to try."""

    def around(self, denoiser: Denoising) -> Denoising:
        """The denoiser; a `UserError` at the first estimate that is not finite. Goes inside a threshold, which would
        clip infinity to a colour."""
        return Finite(denoiser, self)

    def sampler(self, walk: Walk) -> Walk:
        """The sampler; a `UserError` where its arithmetic has no result, or a result that is not finite."""

        def checked(denoiser: Denoising, x: Tensor, times: Tensor) -> Tensor:
            try:
                x = walk(denoiser, x, times)
            except (ArithmeticError, ValueError) as error:
                if isinstance(error, ValueError) and "math domain" not in str(error):
                    raise
                raise UserError(
                    f"{self.what}: {len(self.times) - 1} steps of this sampler have no result in floating point "
                    f"({error}): take fewer steps or another sampler"
                ) from None
            return require_finite(x, f"the result of the {len(self.times) - 1} steps of {self.what}", self.remedy)

        return checked


class Finite(Wrapper):
    """See `FiniteCheck.around`."""

    def __init__(self, denoiser: Denoising, check: FiniteCheck) -> None:
        super().__init__(denoiser)
        self.check = check

    def estimate(self, x: Tensor, t: Time, cond: Cond | None = None) -> Estimate:
        found = self.denoiser.estimate(x, t, cond)
        if not torch.isfinite(found.x0).all():
            step = 1 + int((self.check.times.double().cpu() > float(torch.as_tensor(t).max())).sum())
            steps = len(self.check.times) - 1
            require_finite(found.x0, f"step {min(step, steps)} of {steps} of {self.check.what}", self.check.remedy)
        return found
