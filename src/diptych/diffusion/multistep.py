"""Higher-order samplers: each step calls the denoiser twice, or uses its predictions in earlier steps.

With lambda = log(alpha / sigma), and h = lambda' - lambda the length of a step, the probability-flow ODE is solved by
    x' = (sigma' / sigma) x + sigma' * integral of e^l x_0(l) dl, from lambda to lambda'     (DPM-Solver++, Prop. 4.1)
    x' = (sigma' / sigma) x + alpha' (1 - e^-h) x_0                                          if x_0 is constant
The second line is DDIM. The solvers replace x_0 by a better estimate of its mean over the step.
"""

from __future__ import annotations

import math
from math import inf
from typing import Literal

from torch import Tensor

from diptych.diffusion.steps import NoiseLevel, Sampler, Steps, churn, ddim_step

Prediction = tuple[NoiseLevel, Tensor]
"""A noise level, and the x_0 (or eps) that was predicted there."""
FEW_STEPS = 15
"""With fewer steps than this the last ones are of lower order, as published."""


@Sampler
def heun(
    x: Tensor, steps: Steps, *, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = inf, s_noise: float = 1.0
) -> Tensor:
    """Heun's second-order method (Karras et al. 2022, Alg. 2): an Euler step, then the mean of the slopes at both ends.

    The slope is d(x / alpha) / d(sigma / alpha) = eps, or dx / dt = eps - x_0 where the schedule is a straight line.
    On a cosine schedule use the karras spacing: the trailing one jumps from sigma / alpha = 20,000 to 20 in one step.
    """
    straight = steps.schedule.straight

    def slope(x: Tensor, x0: Tensor, at: NoiseLevel) -> Tensor:
        eps = (x - at.alpha * x0) / at.sigma
        return eps - x0 if straight else eps

    for step, now, then in steps:
        x, now = churn(x, now, steps, s_churn, s_tmin, s_tmax, s_noise)
        x0 = steps.predict_x0(x, now, step)
        end = ddim_step(x, x0, now, then)
        if then.sigma > 0:  # at sigma = 0 there is no slope: the last step is Euler's
            length = then.sigma - now.sigma * (1.0 if straight else then.alpha / now.alpha)
            end = end + length / 2 * (slope(end, steps.denoise(end, then.t), then) - slope(x, x0, now))
        x = end
    return x


@Sampler
def dpmpp(
    x: Tensor,
    steps: Steps,
    *,
    eta: float = 0.0,
    s_noise: float = 1.0,
    order: Literal[1, 2, 3] = 2,
    rule: Literal["midpoint", "heun"] = "midpoint",
) -> Tensor:
    """DPM-Solver++ in multistep form: x_0 extrapolated from the last `order` predictions (Lu et al. 2022).

    eta: 0 solves the ODE, 1 the SDE (SDE-DPM-Solver++), with fresh noise in each step. s_noise: factor on that noise.
    order, rule: 1 takes x_0 as constant (DDIM, and its counterpart for the SDE); 2 with `midpoint` is the published 2M,
      which takes x_0 halfway through the step (Alg. 2), with `heun` the exact integral of the line; 3 that of the
      parabola (section 4.3). As published, the order falls at the end of less than 15 steps.
    """
    history: list[Prediction] = []  # the last two, newest first
    for step, now, then in steps:
        x0 = steps.predict_x0(x, now, step)
        decay = exp_minus_h(now, then)
        left = len(steps) - step if len(steps) < FEW_STEPS else order
        before = history[: min(order, left) - 1]
        if len(before) < 2 and rule == "midpoint":
            mean = midpoint(x0, now, then, before[0] if before else None)
        else:
            mean = mean_over_step(x0, now, then, before, 1 + eta)
        x = then.sigma / now.sigma * decay**eta * x + then.alpha * (1 - decay ** (1 + eta)) * mean
        if eta > 0:
            x = x + then.sigma * math.sqrt(1 - decay ** (2 * eta)) * s_noise * steps.randn()
        history = [(now, x0), *history[:1]]
    return x


@Sampler
def dpm_2m(x: Tensor, steps: Steps, *, eta: float = 0.0, s_noise: float = 1.0) -> Tensor:
    """DPM-Solver of order 2 in multistep form, which extrapolates eps and not x_0 (Lu et al. 2022a, section 3.2).

    x' = (alpha' / alpha) x - sigma' (e^h - 1) eps, with eps halfway through the step: a DDIM step, and a correction for
    the change of eps. The last step, to sigma = 0, is DDIM's.

    eta: 0 solves the ODE, 1 the SDE, where eps counts twice and sigma' sqrt(e^2h - 1) of fresh noise is added. Out of
      pure noise (alpha = 0) h is infinite, and the step is DDIM's too. s_noise: factor on the fresh noise.
    """
    before: Prediction | None = None
    for step, now, then in steps:
        x0 = steps.predict_x0(x, now, step)
        eps = (x - now.alpha * x0) / now.sigma
        x = ddim_step(x, x0, now, then)
        if then.sigma > 0 and now.alpha > 0:
            h = then.log_ratio - now.log_ratio
            second = before is not None and (step < len(steps) - 1 or len(steps) >= FEW_STEPS)
            halfway = midpoint(eps, now, then, before) if second else eps
            if second:
                x = x + then.sigma * math.expm1(h) * (eps - halfway)
            if eta > 0:
                x = x - eta * then.sigma * math.expm1(h) * halfway
                x = x + then.sigma * math.sqrt(eta * math.expm1(2 * h)) * s_noise * steps.randn()
        before = now, eps
    return x


@Sampler
def unipc(x: Tensor, steps: Steps, *, variant: Literal["bh1", "bh2"] = "bh2") -> Tensor:
    """UniPC of order 2 (Zhao et al. 2023, Alg. 1 and 2, predicting x_0).

    variant: B(h) is e^-h - 1 with `bh2`, -h with `bh1`, which weighs what a prediction adds more (section 3.1).

    Each prediction is used twice: to correct the step that led to it (UniC), then to predict the next (UniP, which at
    order 2 is DPM-Solver++(2M)).
    """
    history: list[Prediction] = []  # the last two, oldest first
    start = x  # x at the beginning of the last step
    for step, now, then in steps:
        x0 = steps.predict_x0(x, now, step)
        if history:
            last = history[-1][0]
            mean = unic_mean(history, now, x0)
            if variant == "bh1" and len(history) == 1:  # from then on B(h) cancels
                mean = scaled_by_bh1(history[0][1], mean, last, now)
            x = now.sigma / last.sigma * start + now.alpha * (1 - exp_minus_h(last, now)) * mean
        start = x
        at_the_end = step == len(steps) - 1 and then.t * steps.schedule.steps <= 1  # of order 1, as published
        mean = midpoint(x0, now, then, history[-1] if history and not at_the_end else None)
        mean = scaled_by_bh1(x0, mean, now, then) if variant == "bh1" else mean
        x = then.sigma / now.sigma * x + then.alpha * (1 - exp_minus_h(now, then)) * mean
        history = [*history[-1:], (now, x0)]
    return x


def exp_minus_h(now: NoiseLevel, then: NoiseLevel) -> float:
    """e^-h, written so that alpha = 0 (pure noise) and sigma' = 0 (no noise) give 0."""
    return now.alpha * then.sigma / (now.sigma * then.alpha)


def scaled_by_bh1(x0: Tensor, mean: Tensor, now: NoiseLevel, then: NoiseLevel) -> Tensor:
    """x_0 plus h / (1 - e^-h) times what the mean adds to it, where the step is finite: bh1's B(h) over bh2's."""
    h = then.log_ratio - now.log_ratio
    return mean if math.isinf(h) else x0 + h / -math.expm1(-h) * (mean - x0)


def midpoint(x0: Tensor, now: NoiseLevel, then: NoiseLevel, before: Prediction | None) -> Tensor:
    """x_0 halfway through the step, on the line in lambda through this prediction and the one before (DPM-Solver++,
    Alg. 2).

    The first step has no line; the last, to sigma = 0, is infinitely long in lambda and takes x_0 as it is.
    """
    if before is None or then.sigma == 0:
        return x0
    level, x0_before = before
    ratio = (now.log_ratio - level.log_ratio) / (then.log_ratio - now.log_ratio)
    return x0 + (x0 - x0_before) / (2 * ratio)


def mean_over_step(x0: Tensor, now: NoiseLevel, then: NoiseLevel, before: list[Prediction], scale: float) -> Tensor:
    """The mean of x_0 over the step with the weights of the ODE (scale 1) or the SDE (2), on the line or parabola in
    lambda through this prediction and those before, newest first (DPM-Solver++, section 4.3, in divided
    differences)."""
    if not before or then.sigma == 0:
        return x0
    h = then.log_ratio - now.log_ratio
    growth = -math.expm1(-scale * h)  # 1 - e^-H, with H = scale h: the weight of x_0 itself
    linear = (1 - growth / (scale * h)) / growth
    level, x0_before = before[0]
    r0 = (now.log_ratio - level.log_ratio) / h
    slope = (x0 - x0_before) / r0
    if len(before) == 1:
        return x0 + linear * slope
    earlier, x0_earlier = before[1]
    r1 = (level.log_ratio - earlier.log_ratio) / h
    bend = (slope - (x0_before - x0_earlier) / r1) / (r0 + r1)
    square = (1 / 2 - (scale * h - growth) / (scale * h) ** 2) / growth
    return x0 + linear * (slope + r0 * bend) + square * bend


def unic_mean(history: list[Prediction], now: NoiseLevel, x0: Tensor) -> Tensor:
    """The x_0 of the last step, corrected by the prediction at its end (UniC, Sec. 3)."""
    last, x0_last = history[-1]
    if len(history) == 1:
        return (x0_last + x0) / 2
    level, x0_older = history[0]
    h = now.log_ratio - last.log_ratio
    r = (level.log_ratio - last.log_ratio) / h  # where the older prediction lies, in steps: negative
    growth = math.expm1(-h)  # B(h)
    phi = growth / -h - 1
    first, second = phi / growth, 2 * (phi / -h - 1 / 2) / growth
    weight_older = (first - second) / (1 - r)  # solves [[1, 1], [r, 1]] (weight_older, weight_new) = (first, second)
    weight_new = first - weight_older
    return x0_last + weight_older / r * (x0_older - x0_last) + weight_new * (x0 - x0_last)
