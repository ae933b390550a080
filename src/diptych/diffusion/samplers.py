"""Samplers: from noise to an image in N steps. Pure functions of the denoiser, the noise, the times and the schedule.

    x_t = alpha x_0 + sigma eps

Each sampler here takes the same step: predict x_0, take eps = (x - alpha x_0) / sigma as the noise in x, and combine
both with the alpha and sigma of the next, less noisy time (`ddim_step`). They differ in how much of the noise is
fresh. The higher-order ones are in `multistep.py`.
"""

from __future__ import annotations

import math
from math import inf
from typing import Literal, Protocol

import torch
from torch import Tensor

from diptych.core.errors import UserError, pick, warn
from diptych.diffusion.multistep import dpm_2m, dpmpp, heun, unipc
from diptych.diffusion.steps import Sampler, Steps, churn, ddim_step, forward_std, posterior_std

Variance = Literal["fixed-small", "fixed-large", "learned-range"]


@Sampler
def euler(
    x: Tensor, steps: Steps, *, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = inf, s_noise: float = 1.0
) -> Tensor:
    """Euler's method on the probability-flow ODE (Karras et al. 2022, Alg. 2 without the second-order correction).

    d(x / alpha) / d(sigma / alpha) = eps, and with rectified flow dx / dt = eps - x_0: one such step is `ddim_step`.
    """
    for step, now, then in steps:
        x, now = churn(x, now, steps, s_churn, s_tmin, s_tmax, s_noise)
        x0 = steps.predict_x0(x, now, step)
        x = ddim_step(x, x0, now, then)
    return x


@Sampler
def ddim(x: Tensor, steps: Steps, *, eta: float = 0.0) -> Tensor:
    """DDIM (Song et al. 2021, Eq. 12). eta: 0 draws no noise (the same as `euler`), 1 as much as DDPM (Eq. 16)."""
    return ancestral(x, steps, eta)


@Sampler
def euler_ancestral(x: Tensor, steps: Steps, *, eta: float = 1.0, s_noise: float = 1.0) -> Tensor:
    """Euler ancestral (k-diffusion): an Euler step to sigma_down, then fresh noise of deviation sigma_up.

    sigma_up^2 = sigma'^2 (sigma^2 - sigma'^2) / sigma^2 in units of sigma / alpha, the deviation of DDIM with eta = 1.
    """
    return ancestral(x, steps, eta, s_noise)


def ancestral(x: Tensor, steps: Steps, eta: float, s_noise: float = 1.0) -> Tensor:
    """Each step is DDIM's, with fresh noise of eta times the deviation of the posterior (DDIM, Eq. 12 and 16)."""
    for step, now, then in steps:
        x0 = steps.predict_x0(x, now, step)
        std = eta * posterior_std(now, then)
        x = ddim_step(x, x0, now, then, std)
        if std > 0:
            x = x + std * s_noise * steps.randn()
    return x


@Sampler
def ddpm(
    x: Tensor, steps: Steps, *, eta: float = 1.0, variance: Variance = "fixed-small", noisy_end: bool = False
) -> Tensor:
    """DDPM (Ho et al. 2020, Alg. 2): the mean of q(x_then | x_now, x_0) (Eq. 7), and noise of one of three variances.

    eta: factor on the deviation of the noise; 0 is DDIM.
    variance: `fixed-small` is that of q, beta-tilde; `fixed-large` is that of the forward step, beta; `learned-range`
      interpolates their logarithms as the network predicts (Nichol & Dhariwal 2021, Eq. 15) and needs a `Denoiser` with
      `learned_variance`, or a wrapper of one.
    noisy_end: draw in a last step from a table's second entry, as diffusers does, where leading times with an offset
      end; fixed-large leaves that much noise in the result.
    """
    learned = pick("variance", variance, ("fixed-small", "fixed-large", "learned-range")) == "learned-range"
    estimate = getattr(steps.denoise, "estimate", None) if learned else None
    for step, now, then in steps:
        x0, fraction = estimate(x, now.t) if estimate else (steps.denoise(x, now.t), None)
        steps.report(step, x0)
        small, large = posterior_std(now, then), forward_std(now, then)
        x = ddim_step(x, x0, now, then, std=eta * small)  # the mean of q
        second = noisy_end and round(now.t * steps.schedule.steps, 3) == 2
        if eta == 0 or (then.sigma == 0 and not second):  # the last step draws nothing
            continue
        std = large if variance == "fixed-large" else small
        if learned:
            if fraction is None:
                raise UserError("the learned-range variance needs a network that predicts one: choose fixed-small")
            between = (fraction + 1) / 2
            std = (between * math.log(large) + (1 - between) * math.log(small)).exp()
        x = x + eta * std * steps.randn()
    return x


@Sampler
def lcm(x: Tensor, steps: Steps) -> Tensor:
    """Multistep consistency sampling (Song et al. 2023, Alg. 1; Luo et al. 2023, Alg. 3), for consistency models: each
    step predicts x_0 and adds fresh noise up to the next noise level."""
    for step, now, then in steps:
        skip, out = consistency_scalings(steps.schedule.network_time(torch.tensor(now.t, dtype=torch.float64)))
        x0 = steps.report(step, float(skip) * x + float(out) * steps.denoise(x, now.t))
        x = then.alpha * x0 + (then.sigma * steps.randn() if then.sigma > 0 else 0.0)
    return x


def consistency_scalings(time: Tensor) -> tuple[Tensor, Tensor]:
    """c_skip and c_out of f(x, t) = c_skip x + c_out x_0 at network times, float64 (Luo et al. 2023, Eq. 9, with
    sigma_data = 0.5 and the time in tenths, as published). Beyond the first few times they are 0 and 1."""
    scaled = 10 * time
    return 0.25 / (scaled**2 + 0.25), scaled / (scaled**2 + 0.25).sqrt()


SAMPLERS: dict[str, Sampler] = {
    "ddpm": ddpm,
    "ddpm-fixed-large": ddpm.with_options(variance="fixed-large", noisy_end=True),
    "ddim": ddim,
    "euler": euler,
    "euler-ancestral": euler_ancestral,
    "heun": heun,
    "dpm-2m": dpm_2m,
    "dpm-2m-sde": dpm_2m.with_options(eta=1.0),
    "dpmpp-1m": dpmpp.with_options(order=1),
    "dpmpp-1m-sde": dpmpp.with_options(order=1, eta=1.0),
    "dpmpp-2m": dpmpp,
    "dpmpp-2m-heun": dpmpp.with_options(rule="heun"),
    "dpmpp-2m-sde": dpmpp.with_options(eta=1.0),
    "dpmpp-2m-sde-heun": dpmpp.with_options(rule="heun", eta=1.0),
    "dpmpp-3m": dpmpp.with_options(order=3),
    "unipc": unipc,
    "unipc-bh1": unipc.with_options(variant="bh1"),
    "lcm": lcm,
}
"""Every sampler, by its name on the command line; their options are in `sampler_options.py`."""


class SamplerChoice(Protocol):
    """The fields of a model's config about samplers."""

    @property
    def sampler(self) -> str: ...
    @property
    def published_scheduler(self) -> str | None: ...
    @property
    def unsupported_samplers(self) -> tuple[tuple[str, str], ...]: ...


def read_sampler(sampler: str | None, config: SamplerChoice) -> str:
    """The name of a sampler: the model's own if none is given, with a warning where that replaces an unsupported one.

    Raises `UserError` for an unknown one, and for one that the model as published does not allow.
    """
    name = pick("sampler", config.sampler if sampler is None else str(sampler), SAMPLERS)
    refused = dict(config.unsupported_samplers)
    if reason := refused.get("" if sampler is None else name):
        others = ", ".join(other for other in SAMPLERS if other not in refused)
        raise UserError(f"{reason}; choose another by --sampler (sampler=): {others}")
    if sampler is None and config.published_scheduler is not None:
        warn(
            f"{config.published_scheduler} is not among the samplers: {name} is used instead; choose any by --sampler "
            "(sampler=)"
        )
    return name
