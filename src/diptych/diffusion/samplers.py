"""Samplers: from noise to a picture, in N steps. Pure functions of the denoiser, the noise, the times and the schedule.

    x_t = alpha x_0 + sigma eps

Each one-step sampler here is the same move: ask the denoiser for x_0, take eps = (x - alpha x_0) / sigma as the noise
in x, and put the two together again with the alpha and sigma of the next, less noisy time, where some of the noise may
be drawn afresh. They differ in how much is fresh. Those that look twice, or remember, are in `solvers.py`.
"""

from __future__ import annotations

import math

from torch import Tensor

from diptych.diffusion.schedule import Schedule
from diptych.diffusion.solvers import dpmpp_2m
from diptych.diffusion.steps import Callback, Denoise, Level, NoiseSource, Sampler, levels, look

__all__ = ["SAMPLERS", "Callback", "Denoise", "NoiseSource", "Sampler", "ddim", "dpmpp_2m", "euler"]


def recombine(x: Tensor, x0: Tensor, now: Level, then: Level, fresh: float = 0.0) -> Tensor:
    """alpha' x_0 + sqrt(sigma'^2 - fresh^2) eps, with eps = (x - alpha x_0) / sigma (DDIM, Eq. 12)."""
    kept = math.sqrt(max(then.sigma**2 - fresh**2, 0.0)) / now.sigma
    return kept * x + (then.alpha - kept * now.alpha) * x0


def posterior_std(now: Level, then: Level) -> float:
    """Standard deviation of q(x_then | x_now, x_0) (DDPM, Eq. 7; for any alpha and sigma: VDM, App. A.2)."""
    signal = now.alpha / then.alpha * then.sigma / now.sigma  # sqrt of SNR(now) / SNR(then)
    return then.sigma * math.sqrt(max(1 - signal**2, 0.0))


def euler(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    schedule: Schedule,
    *,
    noise: NoiseSource | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Euler steps of the probability-flow ODE d(x / alpha) / d(sigma / alpha) = eps (Karras et al. 2022, Alg. 1, first
    order). Nothing is fresh. In these coordinates it is DDIM with eta = 0, and with rectified flow x + (t' - t) v."""
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
    noise: NoiseSource,
    callback: Callback | None = None,
    eta: float = 0.0,
) -> Tensor:
    """DDIM (Song et al. 2021, Eq. 12 and 16). eta: 0 is deterministic; 1 draws as much afresh as DDPM does."""
    for step, now, then in levels(times, schedule):
        x0 = look(denoise, x, now, step, times, callback)
        fresh = eta * posterior_std(now, then)
        x = recombine(x, x0, now, then, fresh)
        if fresh > 0:
            x = x + fresh * noise.draw()
    return x


SAMPLERS: dict[str, Sampler] = {
    "ddim": ddim,
    "euler": euler,
    "dpmpp-2m": dpmpp_2m,
}
"""Every sampler by its name on the command line."""
