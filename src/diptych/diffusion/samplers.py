"""Samplers: from noise to a picture, in N steps. Pure functions of the denoiser, the noise, the times and the schedule.

    x_t = alpha x_0 + sigma eps

Each sampler here is the same move: ask the denoiser for x_0, take eps = (x - alpha x_0) / sigma as the noise in x, and
put the two together again with the alpha and sigma of the next, less noisy time, where some of the noise may be drawn
afresh. They differ in how much is fresh. Those that look twice, or remember what they saw, are in `solvers.py`.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal, Protocol

from torch import Tensor

from diptych.diffusion.schedule import Schedule
from diptych.diffusion.solvers import dpm_2m, dpmpp, dpmpp_2m, dpmpp_2m_sde, heun, unipc
from diptych.diffusion.steps import Callback, Denoise, Level, NoiseSource, Sampler, drawn, levels, look, recombine
from diptych.errors import UserError, pick, warn

Variance = Literal["fixed-small", "fixed-large", "learned-range"]


def euler(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    schedule: Schedule,
    *,
    noise: NoiseSource | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Euler's method on the probability-flow ODE (Karras et al. 2022, Alg. 1 without the correction). Nothing is fresh.

    d(x / alpha) / d(sigma / alpha) = eps, and with rectified flow dx / dt = eps - x_0: one such step is `recombine`.
    """
    for step, now, then in levels(times, schedule):
        x0 = look(denoise, x, now, step, times, callback)
        x = recombine(x, x0, now, then)
    return x


def ddim(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    schedule: Schedule,
    *,
    noise: NoiseSource | None = None,
    callback: Callback | None = None,
    eta: float = 0.0,
) -> Tensor:
    """DDIM (Song et al. 2021, Eq. 12). eta: 0 draws nothing afresh (that is `euler`), 1 as much as DDPM (Eq. 16)."""
    for step, now, then in levels(times, schedule):
        x0 = look(denoise, x, now, step, times, callback)
        fresh = eta * posterior_std(now, then)
        x = recombine(x, x0, now, then, fresh)
        if fresh > 0:
            x = x + fresh * drawn(noise)
    return x


def euler_ancestral(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    schedule: Schedule,
    *,
    noise: NoiseSource | None = None,
    callback: Callback | None = None,
    eta: float = 1.0,
) -> Tensor:
    """Euler ancestral (Karras & Crowson's k-diffusion): an Euler step to sigma_down, then fresh noise of sigma_up.

    sigma_up^2 = sigma'^2 (sigma^2 - sigma'^2) / sigma^2 in units of sigma / alpha, which is what DDIM's eta = 1 draws.
    """
    return ddim(denoise, x, times, schedule, noise=noise, callback=callback, eta=eta)


def ddpm(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    schedule: Schedule,
    *,
    noise: NoiseSource | None = None,
    callback: Callback | None = None,
    variance: Variance = "fixed-small",
    noisy_end: bool = False,
) -> Tensor:
    """DDPM (Ho et al. 2020, Alg. 2): the mean of q(x_then | x_now, x_0) (Eq. 7), and noise of one of three variances.

    variance: `fixed-small` is that of q, beta-tilde; `fixed-large` is that of the forward step, beta; `learned-range`
      lets the network choose between their logarithms (Nichol & Dhariwal 2021, Eq. 15) and needs a `Denoiser` with
      `learned_variance`, or a wrapper of one.
    noisy_end: draw in a last step from a table's second entry, as diffusers does, where leading times with an offset
      end; fixed-large leaves that much noise in the result.
    """
    learned = pick("variance", variance, ("fixed-small", "fixed-large", "learned-range")) == "learned-range"
    estimate = getattr(denoise, "estimate", None) if learned else None
    for step, now, then in levels(times, schedule):
        x0, fraction = estimate(x, now.t) if estimate else (denoise(x, now.t), None)
        if callback is not None:
            callback(step, len(times) - 1, x0)
        small, large = posterior_std(now, then), forward_std(now, then)
        x = recombine(x, x0, now, then, fresh=small)  # the mean of q is the DDIM step that leaves room for its noise
        second = noisy_end and round(now.t * schedule.steps, 3) == 2
        if then.sigma == 0 and not second:  # the last step draws nothing
            continue
        std = large if variance == "fixed-large" else small
        if learned:
            if fraction is None:
                raise UserError("the learned-range variance needs a network that predicts one: choose fixed-small")
            between = (fraction + 1) / 2
            std = (between * math.log(large) + (1 - between) * math.log(small)).exp()
        x = x + std * drawn(noise)
    return x


def posterior_std(now: Level, then: Level) -> float:
    """Of q(x_then | x_now, x_0): the root of beta-tilde (DDPM, Eq. 7; VDM, App. A, in alpha and sigma)."""
    return then.sigma * forward_std(now, then) / now.sigma


def forward_std(now: Level, then: Level) -> float:
    """Of q(x_now | x_then), a step towards noise: the root of beta, sigma^2 - (alpha / alpha')^2 sigma'^2."""
    return math.sqrt(max(now.sigma**2 - (now.alpha / then.alpha * then.sigma) ** 2, 0.0))


SAMPLERS: dict[str, Sampler] = {
    "ddpm": ddpm,
    "ddpm-fixed-large": partial(ddpm, variance="fixed-large", noisy_end=True),
    "ddim": ddim,
    "euler": euler,
    "euler-ancestral": euler_ancestral,
    "heun": heun,
    "dpm-2m": dpm_2m,
    "dpm-2m-sde": partial(dpm_2m, eta=1.0),
    "dpmpp-1m": partial(dpmpp, order=1),
    "dpmpp-1m-sde": partial(dpmpp, order=1, eta=1.0),
    "dpmpp-2m": dpmpp_2m,
    "dpmpp-2m-heun": partial(dpmpp, rule="heun"),
    "dpmpp-2m-sde": dpmpp_2m_sde,
    "dpmpp-2m-sde-heun": partial(dpmpp, rule="heun", eta=1.0),
    "dpmpp-3m": partial(dpmpp, order=3),
    "unipc": unipc,
    "unipc-bh1": partial(unipc, variant="bh1"),
}
"""Every sampler, by its name on the command line."""


class Sampled(Protocol):
    """What a model's config says of samplers."""

    @property
    def sampler(self) -> str: ...
    @property
    def stands_in_for(self) -> str | None: ...
    @property
    def refused(self) -> tuple[tuple[str, str], ...]: ...


def read_sampler(sampler: str | None, config: Sampled) -> str:
    """The name of a sampler, the model's own if none is given, which is said where it only stands in for another.

    Raises `UserError` for an unknown one, and for one that cannot be had as the model was published.
    """
    name = pick("sampler", config.sampler if sampler is None else str(sampler), SAMPLERS)
    refused = dict(config.refused)
    if reason := refused.get("" if sampler is None else name):
        others = ", ".join(other for other in SAMPLERS if other not in refused)
        raise UserError(f"{reason}; what can be had is --sampler (sampler=) {others}")
    if sampler is None and config.stands_in_for is not None:
        warn(
            f"{config.stands_in_for} is not among the samplers: {name} stands in for it; choose any by --sampler "
            "(sampler=)"
        )
    return name
