"""The learning rate as a function of the step, and of the time where that is what limits a run."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from diptych.training.training_config import TrainingConfig

NOTICED = 0.01
"""A jump of the learning rate by less than this share of the highest is not worth a line."""


def learning_rate_at(step: int, config: TrainingConfig, seconds: float = 0.0) -> float:
    """Learning rate of step 0 <= `step` <= `config.steps`, `seconds` of training after the run began.

    A rise from `initial_learning_rate` over the first `warmup` steps, linear or, with `one-cycle`, half a cosine; then
    constant or half a cosine to `final_learning_rate` (Loshchilov & Hutter 2017, Eq. 5, without restarts; Smith & Topin
    2019); over the last `cooldown` fraction a linear fall to `final_learning_rate` on top. With `minutes` the fall is
    laid out over whichever is further on, steps or time, and so ends with the run.
    """
    steps, warmup, last = config.steps, config.warmup, config.final_learning_rate
    at = float(step)
    if config.minutes is not None:
        at = max(at, min(steps * seconds / (60 * config.minutes), steps))
    rise = min(1.0, (step + 1) / max(warmup, 1))
    if config.schedule == "one-cycle":
        rise = 1 - half_cosine(rise)
    rate = config.initial_learning_rate + (config.learning_rate - config.initial_learning_rate) * rise
    if config.schedule != "constant":
        rate = last + (rate - last) * half_cosine((at - warmup) / max(steps - warmup, 1))
    if config.cooldown > 0:
        rate = last + (rate - last) * min(1.0, (steps - at) / (config.cooldown * steps))
    return rate


def half_cosine(progress: float) -> float:
    """From 1 at 0 to 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


def jump(state: dict[str, Any], step: int, config: TrainingConfig, seconds: float) -> str:
    """A line if the learning rate of `step` is not the one that the checkpoint's state says would have come."""
    by_steps = learning_rate_at(step, dataclasses.replace(config, minutes=None))  # as earlier versions had it, unsaid
    before, now = state.get("learning_rate", by_steps), learning_rate_at(step, config, seconds)
    if abs(now - before) <= NOTICED * config.learning_rate:
        return ""
    limit = f"{config.steps} steps" + ("" if config.minutes is None else f" or {config.minutes:g} minutes")
    return f"the learning rate jumps from {before:.3g} to {now:.3g}: its schedule is laid out anew, over {limit}"
