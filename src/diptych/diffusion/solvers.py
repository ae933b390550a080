"""Higher-order samplers: each step looks twice, or remembers what the steps before it saw.

With lambda = log(alpha / sigma), and h = lambda' - lambda the length of a step, the probability-flow ODE is solved by
    x' = (sigma' / sigma) x + sigma' * integral of e^l x_0(l) dl, from lambda to lambda'     (DPM-Solver++, Prop. 4.1)
    x' = (sigma' / sigma) x + alpha' (1 - e^-h) x_0                                          if x_0 stays as it is now
The second line is DDIM. What the solvers add is a better guess of x_0 along the way.
"""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

from diptych.diffusion.schedule import Schedule
from diptych.diffusion.steps import Callback, Denoise, Level, NoiseSource, drawn, levels, look, recombine

Look = tuple[Level, Tensor]
"""Where the denoiser was asked, and its x_0."""
LONG = 15
"""Walks of so many steps keep their order to the end, as published; `midway` has its own reason to lower it."""


def heun(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    schedule: Schedule,
    *,
    noise: NoiseSource | None = None,
    callback: Callback | None = None,
) -> Tensor:
    """Heun's second-order method (Karras et al. 2022, Alg. 1): an Euler step, then the mean of the slopes at both ends.

    The slope is d(x / alpha) / d(sigma / alpha) = eps, or dx / dt = eps - x_0 where the schedule is a straight line.
    On a cosine schedule use the karras spacing: the trailing one jumps from sigma / alpha = 20,000 to 20 in one step.
    """

    def slope(x: Tensor, x0: Tensor, at: Level) -> Tensor:
        eps = (x - at.alpha * x0) / at.sigma
        return eps - x0 if schedule.straight else eps

    for step, now, then in levels(times, schedule):
        x0 = look(denoise, x, now, step, times, callback)
        end = recombine(x, x0, now, then)
        if then.sigma > 0:  # at sigma = 0 there is no slope: the last step is Euler's
            length = then.sigma - now.sigma * (1.0 if schedule.straight else then.alpha / now.alpha)
            end = end + length / 2 * (slope(end, denoise(end, then.t), then) - slope(x, x0, now))
        x = end
    return x


def dpmpp(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    schedule: Schedule,
    *,
    noise: NoiseSource | None = None,
    callback: Callback | None = None,
    eta: float = 0.0,
    order: Literal[1, 2, 3] = 2,
    rule: Literal["midpoint", "heun"] = "midpoint",
) -> Tensor:
    """DPM-Solver++ in multistep form: x_0 continued along the curve through the last `order` looks (Lu et al. 2022).

    eta: 0 solves the ODE, 1 the SDE (SDE-DPM-Solver++), with fresh noise in each step.
    order, rule: 1 keeps x_0 as it is (DDIM, and its like for the SDE); 2 with `midpoint` takes x_0 halfway through the
      step (Alg. 2), with `heun` the exact integral of the line; 3 that of the parabola (section 4.3). As published,
      orders fall at the end of walks of less than 15 steps.
    """
    looks: list[Look] = []  # the last two, newest first
    for step, now, then in levels(times, schedule):
        x0 = look(denoise, x, now, step, times, callback)
        kept = decay(now, then)
        left = len(times) - 1 - step if len(times) <= LONG else order
        reach = looks[: min(order, left) - 1]
        if len(reach) < 2 and rule == "midpoint":
            guess = midway(x0, now, then, reach[0] if reach else None)
        else:
            guess = integrated(x0, now, then, reach, 1 + eta)
        x = then.sigma / now.sigma * kept**eta * x + then.alpha * (1 - kept ** (1 + eta)) * guess
        if eta > 0:
            x = x + then.sigma * math.sqrt(1 - kept ** (2 * eta)) * drawn(noise)
        looks = [(now, x0), *looks[:1]]
    return x


def dpmpp_2m(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    schedule: Schedule,
    *,
    noise: NoiseSource | None = None,
    callback: Callback | None = None,
    eta: float = 0.0,
) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, Alg. 2): x_0 continued along the line through the last two looks."""
    return dpmpp(denoise, x, times, schedule, noise=noise, callback=callback, eta=eta)


def dpmpp_2m_sde(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    schedule: Schedule,
    *,
    noise: NoiseSource | None = None,
    callback: Callback | None = None,
    eta: float = 1.0,
) -> Tensor:
    """SDE-DPM-Solver++(2M) (Lu et al. 2022): `dpmpp_2m` with fresh noise in each step."""
    return dpmpp_2m(denoise, x, times, schedule, noise=noise, callback=callback, eta=eta)


def dpm_2m(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    schedule: Schedule,
    *,
    noise: NoiseSource | None = None,
    callback: Callback | None = None,
    eta: float = 0.0,
) -> Tensor:
    """DPM-Solver of order 2 in multistep form, which continues the noise and not x_0 (Lu et al. 2022a, section 3.2).

    x' = (alpha' / alpha) x - sigma' (e^h - 1) eps, halfway through the step: a DDIM step, and what eps changes. The
    last step, to sigma = 0, is DDIM's.

    eta: 0 solves the ODE, 1 the SDE, where eps counts twice and sigma' sqrt(e^2h - 1) of fresh noise is added. Out of
      pure noise (alpha = 0) h is infinite, and the step is DDIM's too.
    """
    before: Look | None = None
    for step, now, then in levels(times, schedule):
        x0 = look(denoise, x, now, step, times, callback)
        eps = (x - now.alpha * x0) / now.sigma
        x = recombine(x, x0, now, then)
        if then.sigma > 0 and now.alpha > 0:
            h = then.log_ratio - now.log_ratio
            second = before is not None and (step < len(times) - 2 or len(times) > LONG)
            halfway = midway(eps, now, then, before) if second else eps
            if second:
                x = x + then.sigma * math.expm1(h) * (eps - halfway)
            if eta > 0:
                x = x - eta * then.sigma * math.expm1(h) * halfway
                x = x + then.sigma * math.sqrt(eta * math.expm1(2 * h)) * drawn(noise)
        before = now, eps
    return x


def unipc(
    denoise: Denoise,
    x: Tensor,
    times: Tensor,
    schedule: Schedule,
    *,
    noise: NoiseSource | None = None,
    callback: Callback | None = None,
    variant: Literal["bh1", "bh2"] = "bh2",
) -> Tensor:
    """UniPC of order 2 (Zhao et al. 2023, Alg. 1 and 2, predicting x_0).

    variant: B(h) is e^-h - 1 with `bh2`, -h with `bh1`, which goes further along what a look adds (section 3.1).

    Each look serves twice: it corrects the step that led to it (UniC), then it predicts the next (UniP, which at
    order 2 is DPM-Solver++(2M)).
    """
    looks: list[Look] = []  # the last two
    start = x  # where the last step set out from
    for step, now, then in levels(times, schedule):
        x0 = look(denoise, x, now, step, times, callback)
        if looks:
            last = looks[-1][0]
            better = corrected(looks, now, x0)
            if variant == "bh1" and len(looks) == 1:  # from then on B(h) cancels
                better = stretched(looks[0][1], better, last, now)
            x = now.sigma / last.sigma * start + now.alpha * (1 - decay(last, now)) * better
        start = x
        at_the_end = step == len(times) - 2 and then.t * schedule.steps <= 1  # as published, that step is of order 1
        guess = midway(x0, now, then, looks[-1] if looks and not at_the_end else None)
        guess = stretched(x0, guess, now, then) if variant == "bh1" else guess
        x = then.sigma / now.sigma * x + then.alpha * (1 - decay(now, then)) * guess
        looks = [*looks[-1:], (now, x0)]
    return x


def decay(now: Level, then: Level) -> float:
    """e^-h, written so that alpha = 0 (pure noise) and sigma' = 0 (the picture) give 0."""
    return now.alpha * then.sigma / (now.sigma * then.alpha)


def stretched(x0: Tensor, guess: Tensor, now: Level, then: Level) -> Tensor:
    """What changed from x_0 to a guess, h / (1 - e^-h) times over, where the step is finite."""
    h = then.log_ratio - now.log_ratio
    return guess if math.isinf(h) else x0 + h / -math.expm1(-h) * (guess - x0)


def midway(x0: Tensor, now: Level, then: Level, before: Look | None) -> Tensor:
    """x_0 halfway through the step, on the line in lambda through this look and the one before (DPM-Solver++, Alg. 2).

    The first step has no line to follow; the last, to sigma = 0, is infinitely long in lambda and keeps x_0 as it is.
    """
    if before is None or then.sigma == 0:
        return x0
    level, seen = before
    ratio = (now.log_ratio - level.log_ratio) / (then.log_ratio - now.log_ratio)
    return x0 + (x0 - seen) / (2 * ratio)


def integrated(x0: Tensor, now: Level, then: Level, before: list[Look], scale: float) -> Tensor:
    """The mean of x_0 over the step, weighed as the ODE does (scale 1) or the SDE (2), on the line or parabola in
    lambda through this look and those before it, newest first (DPM-Solver++, section 4.3, in divided differences)."""
    if not before or then.sigma == 0:
        return x0
    h = then.log_ratio - now.log_ratio
    growth = -math.expm1(-scale * h)  # 1 - e^-H, with H = scale h: the weight of x_0 itself
    linear = (1 - growth / (scale * h)) / growth
    level, seen = before[0]
    r0 = (now.log_ratio - level.log_ratio) / h
    slope = (x0 - seen) / r0
    if len(before) == 1:
        return x0 + linear * slope
    earlier, older = before[1]
    r1 = (level.log_ratio - earlier.log_ratio) / h
    bend = (slope - (seen - older) / r1) / (r0 + r1)
    square = (1 / 2 - (scale * h - growth) / (scale * h) ** 2) / growth
    return x0 + linear * (slope + r0 * bend) + square * bend


def corrected(looks: list[Look], now: Level, x0: Tensor) -> Tensor:
    """The x_0 that the last step should have used, now that its end has been seen too (UniC, Sec. 3)."""
    last, seen = looks[-1]
    if len(looks) == 1:
        return (seen + x0) / 2
    level, older = looks[0]
    h = now.log_ratio - last.log_ratio
    r = (level.log_ratio - last.log_ratio) / h  # where the older look lies, in steps: negative
    growth = math.expm1(-h)  # B(h)
    phi = growth / -h - 1
    first, second = phi / growth, 2 * (phi / -h - 1 / 2) / growth
    on_older = (first - second) / (1 - r)  # solves [[1, 1], [r, 1]] (on_older, on_new) = (first, second)
    on_new = first - on_older
    return seen + on_older / r * (older - seen) + on_new * (x0 - seen)
