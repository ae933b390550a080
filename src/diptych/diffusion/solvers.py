"""Higher-order samplers: each step looks twice, or remembers what the last one saw.

With lambda = log(alpha / sigma) and h = lambda' - lambda, the probability-flow ODE has the exact solution
    x' = (sigma' / sigma) x + sigma' integral from lambda to lambda' of e^l x_0(l) dl       (DPM-Solver++, Prop. 4.1)
and what differs is how x_0(l) is guessed from the looks at hand: as a constant (that is DDIM), or as a line.
"""

from __future__ import annotations

from torch import Tensor

from diptych.diffusion.schedule import Schedule
from diptych.diffusion.steps import Callback, Denoise, Level, NoiseSource, levels, look


def shrink(now: Level, then: Level) -> float:
    """e^-h, written so that alpha = 0 (pure noise) and sigma = 0 (the picture) both give 0."""
    return now.alpha * then.sigma / (now.sigma * then.alpha)


def dpmpp_2m(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    schedule: Schedule,
    *,
    noise: NoiseSource | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, Alg. 2): x_0 extended along the line through the last two looks."""
    before: tuple[Level, Tensor] | None = None
    for step, now, then in levels(times, schedule):
        x0 = look(denoise, x, now, step, times, callback)
        guess = x0
        if before is not None and then.sigma > 0:  # the last step, to sigma = 0, is of first order
            r = (now.log_ratio - before[0].log_ratio) / (then.log_ratio - now.log_ratio)
            guess = x0 + (x0 - before[1]) / (2 * r)
        x = then.sigma / now.sigma * x + then.alpha * (1 - shrink(now, then)) * guess
        before = now, x0
    return x
