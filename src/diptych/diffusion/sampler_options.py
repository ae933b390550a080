"""The numbers that a user may set for a sampler: eta and Karras et al.'s churn, under k-diffusion's names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from diptych.core.errors import UserError, pick
from diptych.core.values import Number, checked
from diptych.diffusion.samplers import SAMPLERS

LIMITS = {
    "eta": Number(0, 1),
    "s_churn": Number(0, 1000),
    "s_tmin": Number(0),
    "s_tmax": Number(0),
    "s_noise": Number(0, 2),
}
"""Option -> least and largest value."""


def sampler_options(name: str) -> dict[str, float]:
    """The options of a sampler by its name, with their defaults. Raises `UserError` for an unknown sampler."""
    defaults = SAMPLERS[pick("sampler", name, SAMPLERS)].options
    return {key: defaults[key] for key in LIMITS if key in defaults}


def read_sampler_options(name: str, options: Mapping[str, Any]) -> dict[str, float]:
    """The options that are given (not none), checked for the sampler of this name, as its keyword arguments.

    Raises `UserError` for an option that the sampler does not take, one out of bounds, and one without effect.
    """
    defaults, chosen = sampler_options(name), {key: value for key, value in options.items() if value is not None}
    for key, value in chosen.items():
        pick("sampler option", key, LIMITS)
        if key not in defaults:
            others = ", ".join(other for other in SAMPLERS if key in sampler_options(other))
            raise UserError(f"the sampler {name} has no {key}; these have: {others}")
        checked(key, LIMITS[key].check, value)
    values = {key: float(chosen.get(key, default)) for key, default in defaults.items()}
    source = "s_churn" if "s_churn" in values else "eta"
    for key in chosen.keys() & {"s_tmin", "s_tmax", "s_noise"}:
        if values[source] == 0:
            raise UserError(f"{key} has no effect without {source}: set {source} above 0, or leave {key} out")
    if values.get("s_tmin", 0.0) > values.get("s_tmax", math.inf):
        raise UserError(f"s_tmin ({values['s_tmin']:g}) must be at most s_tmax ({values['s_tmax']:g})")
    return {key: values[key] for key in chosen}
