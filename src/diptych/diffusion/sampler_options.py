"""The numbers that a user may set for a sampler: eta and Karras et al.'s churn, under k-diffusion's names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from diptych.core.errors import UserError, pick
from diptych.diffusion.samplers import SAMPLERS


class SamplerOption(NamedTuple):
    """A number that a sampler takes."""

    default: float
    low: float
    high: float
    help: str


LIMITS = {
    "eta": (0.0, 1.0, "fresh noise of each step: 0 none, 1 as much as DDPM"),
    "s_churn": (0.0, 1000.0, "noise added before each step, shared out over all steps (Karras et al. 2022, Alg. 2)"),
    "s_tmin": (0.0, math.inf, "least sigma / alpha at which s_churn adds noise"),
    "s_tmax": (0.0, math.inf, "largest sigma / alpha at which s_churn adds noise"),
    "s_noise": (0.0, 2.0, "factor on the deviation of fresh noise"),
}
"""Option -> least and largest value, and help."""


def sampler_options(name: str) -> dict[str, SamplerOption]:
    """The options of a sampler by its name, with defaults and bounds.

    Raises `UserError` for an unknown sampler.
    """
    defaults = SAMPLERS[pick("sampler", name, SAMPLERS)].options
    return {key: SamplerOption(defaults[key], *LIMITS[key]) for key in LIMITS if key in defaults}


def read_sampler_options(name: str, options: Mapping[str, Any]) -> dict[str, float]:
    """The options that are given (not none), checked for the sampler of this name, as its keyword arguments.

    Raises `UserError` for an option that the sampler does not take, one out of bounds, and one without effect.
    """
    known, given = sampler_options(name), {key: value for key, value in options.items() if value is not None}
    for key, value in given.items():
        pick("sampler option", key, LIMITS)
        if key not in known:
            others = ", ".join(other for other in SAMPLERS if key in sampler_options(other))
            raise UserError(f"the sampler {name} has no {key}; these have: {others}")
        _, low, high, _ = known[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            bounds = f"be at least {low:g}" if math.isinf(high) else f"lie between {low:g} and {high:g}"
            raise UserError(f"{key} must {bounds}, not {value!r}")
    values = {key: float(given.get(key, option.default)) for key, option in known.items()}
    source = "s_churn" if "s_churn" in values else "eta"
    for key in given.keys() & {"s_tmin", "s_tmax", "s_noise"}:
        if values[source] == 0:
            raise UserError(f"{key} has no effect without {source}: set {source} above 0, or leave {key} out")
    if values.get("s_tmin", 0.0) > values.get("s_tmax", math.inf):
        raise UserError(f"s_tmin ({values['s_tmin']:g}) must be at most s_tmax ({values['s_tmax']:g})")
    return {key: values[key] for key in given}
