"""Building blocks of the samplers: noise levels, the loop over the steps, the DDIM step."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diptych.core.errors import UserError
from diptych.core.random import NoiseSource
from diptych.diffusion.schedules import Schedule

Denoise = Callable[[Tensor, float], Tensor]
"""(x (B, ...), t) -> x_0 (B, ...)."""
Callback = Callable[[int, int, Tensor], object]
"""(step, steps, x_0), once in each step; it may raise to cancel."""


class NoiseLevel(NamedTuple):
    """A time with its alpha and sigma, as Python numbers (float64)."""

    t: float
    alpha: float
    sigma: float

    @property
    def log_ratio(self) -> float:
        """lambda = log(alpha / sigma), half the log-SNR; infinite at the ends."""
        if self.alpha == 0 or self.sigma == 0:
            return math.inf if self.sigma == 0 else -math.inf
        return math.log(self.alpha / self.sigma)


class Steps:
    """The N steps of one sampling: iterate over it for (step, now, then), the step's number and its two noise levels.

    Steps of no length are left out: with almost as many steps as a table has entries, a spacing may have one.
    """

    def __init__(
        self, denoise: Denoise, times: Tensor, schedule: Schedule, noise: NoiseSource | None, callback: Callback | None
    ) -> None:
        self.denoise, self.times, self.schedule = denoise, times.double().cpu(), schedule
        self.noise, self.callback = noise, callback

    def __len__(self) -> int:
        """N."""
        return len(self.times) - 1

    def __iter__(self) -> Iterator[tuple[int, NoiseLevel, NoiseLevel]]:
        alpha, sigma = self.schedule.alpha_sigma(self.times)
        levels = [
            NoiseLevel(*values) for values in zip(self.times.tolist(), alpha.tolist(), sigma.tolist(), strict=True)
        ]
        pairs = enumerate(itertools.pairwise(levels))
        return ((step, now, then) for step, (now, then) in pairs if now.t != then.t)

    def predict_x0(self, x: Tensor, now: NoiseLevel, step: int) -> Tensor:
        """The denoiser's x_0 (B, ...) of x (B, ...), which is passed to the callback too."""
        return self.report(step, self.denoise(x, now.t))

    def report(self, step: int, x0: Tensor) -> Tensor:
        """Call the callback with x_0 and return x_0."""
        if self.callback is not None:
            self.callback(step, len(self), x0)
        return x0

    def randn(self) -> Tensor:
        """Fresh noise (B, ...)."""
        if self.noise is None:
            raise UserError("this sampler draws fresh noise in each step: give it noise=NoiseSource(seeds, shape)")
        return self.noise.draw()


class Sampler:
    """Decorator: from `loop(x, steps, *, **options)` to a function with the signature that all samplers share.

    defaults: other defaults of the loop's options.
    """

    def __init__(self, loop: Callable[..., Tensor], **defaults: Any) -> None:
        self.loop, self.defaults = loop, defaults
        self.__name__, self.__doc__ = loop.__name__, loop.__doc__

    def __call__(
        self,
        denoise: Denoise,
        x: Tensor,
        times: Tensor,
        schedule: Schedule,
        *,
        noise: NoiseSource | None = None,
        callback: Callback | None = None,
        **options: Any,
    ) -> Tensor:
        """x (B, ...) at times[0], standard normal at t = 1, becomes x (B, ...) at times[-1].

        denoise: (x, t) -> x_0. times: N + 1 falling values, see `times.timesteps`. noise: for samplers that draw in
          each step; the deterministic ones need none. options: see `options`.
        """
        return self.loop(x, Steps(denoise, times, schedule, noise, callback), **{**self.defaults, **options})

    def with_options(self, **defaults: Any) -> Sampler:
        """The same sampler with other defaults."""
        return Sampler(self.loop, **{**self.defaults, **defaults})

    @property
    def options(self) -> dict[str, Any]:
        """The options of this sampler and their defaults."""
        parameters = list(inspect.signature(self.loop).parameters.values())[2:]
        return {each.name: self.defaults.get(each.name, each.default) for each in parameters}


def ddim_step(x: Tensor, x0: Tensor, now: NoiseLevel, then: NoiseLevel, std: float = 0.0) -> Tensor:
    """alpha' x_0 + sqrt(sigma'^2 - std^2) eps, where eps = (x - alpha x_0) / sigma (DDIM, Eq. 12).

    std: of the noise that the caller adds to it (sigma_t in the paper).
    """
    scale = math.sqrt(max(then.sigma**2 - std**2, 0.0)) / now.sigma
    return scale * x + (then.alpha - scale * now.alpha) * x0


def churn(
    x: Tensor, now: NoiseLevel, steps: Steps, s_churn: float, s_tmin: float, s_tmax: float, s_noise: float
) -> tuple[Tensor, NoiseLevel]:
    """x and its noise level, with fresh noise added before the step (Karras et al. 2022, Alg. 2, lines 4 to 6).

    sigma / alpha grows by the factor 1 + gamma, gamma = min(s_churn / N, sqrt(2) - 1), where it lies within s_tmin and
    s_tmax, but not beyond the schedule's t = 1. s_noise: factor on the deviation of the noise.
    """
    gamma = min(s_churn / len(steps), math.sqrt(2) - 1)
    if gamma <= 0 or now.alpha == 0 or not s_tmin <= now.sigma / now.alpha <= s_tmax:
        return x, now
    log_ratio = torch.tensor(now.log_ratio - math.log1p(gamma), dtype=torch.float64)
    t = steps.schedule.inverse_log_snr(2 * log_ratio)
    alpha, sigma = steps.schedule.alpha_sigma(t)
    hat = NoiseLevel(t.item(), alpha.item(), sigma.item())
    if hat.t <= now.t:
        return x, now
    return hat.alpha / now.alpha * x + s_noise * forward_std(hat, now) * steps.randn(), hat


def posterior_std(now: NoiseLevel, then: NoiseLevel) -> float:
    """Of q(x_then | x_now, x_0): the root of beta-tilde (DDPM, Eq. 7; VDM, App. A, in alpha and sigma)."""
    return then.sigma * forward_std(now, then) / now.sigma


def forward_std(now: NoiseLevel, then: NoiseLevel) -> float:
    """Of q(x_now | x_then), a step towards noise: the root of beta, sigma^2 - (alpha / alpha')^2 sigma'^2."""
    return math.sqrt(max(now.sigma**2 - (now.alpha / then.alpha * then.sigma) ** 2, 0.0))
