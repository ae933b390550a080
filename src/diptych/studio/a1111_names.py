"""Samplers, schedule types and parameters by the names of A1111's web UI, both ways."""

from __future__ import annotations

import re
from typing import Any

from diptych.models.metadata import SAMPLERS
from diptych.models.options import SAMPLERS as OURS
from diptych.studio.limits import FieldError

AUTOMATIC = "automatic"
"""The scheduler that leaves the times to the model."""
SCHEDULERS = {
    "karras": "karras",
    "exponential": "exponential",
    "beta": "beta",
    "simple": "trailing",
    "sgm_uniform": "trailing",
    "ddim": "leading",
    "normal": "linspace",
    "uniform": "linspace",
}
"""Scheduler of A1111's -> our schedule type with the same times, or nearly."""
LABELS = {"sgm_uniform": "SGM Uniform", "ddim": "DDIM"}
"""Of schedulers, where it is not their name in capitals."""
WITH_ETA = ("ddim", "euler-ancestral", "dpmpp-2m-sde", "dpmpp-2m-sde-heun", "dpm-2m-sde")
"""Samplers in which A1111 uses `eta`; in the others it says nothing."""
PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
"""A parameter of an infotext."""


def label(scheduler: str) -> str:
    return LABELS.get(scheduler, scheduler.capitalize())


def sampler_names() -> dict[str, str]:
    """Names as clients see them -> our samplers. Of two with the same name the first has it."""
    names: dict[str, str] = {}
    for sampler in OURS:
        name = SAMPLERS.get(sampler, sampler)
        names[sampler if name in names else name] = sampler
    return names


def schedulers() -> list[dict[str, Any]]:
    """As `/sdapi/v1/schedulers` lists them."""
    return [
        {"name": name, "label": label(name), "aliases": None, "default_rho": 7.0 if name == "karras" else -1.0,
         "need_inner_model": False}
        for name in (AUTOMATIC, *SCHEDULERS)
    ]  # fmt: skip


def samplers() -> list[dict[str, Any]]:
    """As `/sdapi/v1/samplers` lists them."""
    return [{"name": name, "aliases": [ours], "options": {}} for name, ours in sampler_names().items()]


def read_sampler(sampler: Any, scheduler: Any = None) -> tuple[str | None, str | None]:
    """Our sampler and schedule type of the names in a request; none for the model's own.

    "DPM++ 2M Karras", as the web UI named them before 1.9, is both. Raises a `FieldError` for what is not here.
    """
    times = read_scheduler(scheduler)
    if sampler in (None, ""):
        return None, times
    known = {name.casefold(): ours for name, ours in sampler_names().items()} | {ours: ours for ours in OURS}
    asked = str(sampler).strip().casefold()
    if asked in known:
        return known[asked], times
    name, _, last = asked.rpartition(" ")
    if name in known and last in ("karras", "exponential"):
        return known[name], times or last
    raise FieldError("sampler_name", f"no sampler {str(sampler)[:80]!r}: there are {', '.join(sampler_names())}")


def read_scheduler(scheduler: Any) -> str | None:
    """Our schedule type; none for the model's own."""
    asked = "" if scheduler is None else str(scheduler).strip().casefold()
    if asked in ("", AUTOMATIC, "use same scheduler"):
        return None
    known = {label(name).casefold(): ours for name, ours in SCHEDULERS.items()} | SCHEDULERS
    if asked not in known:
        raise FieldError("scheduler", f"no scheduler {asked[:80]!r}: there are {', '.join((AUTOMATIC, *SCHEDULERS))}")
    return known[asked]


def parse_infotext(text: str) -> dict[str, Any]:
    """The parameters in an infotext, as `/sdapi/v1/png-info` gives them: "Size: 64x32" as Size-1 and Size-2."""
    *lines, last = text.strip().split("\n")
    pairs = PAIR.findall(last)
    if len(pairs) < 3:
        lines, pairs = [*lines, last], []
    prompt, _, negative = "\n".join(lines).partition("\nNegative prompt:")
    values: dict[str, Any] = {"Prompt": prompt.strip(), "Negative prompt": negative.strip()}
    for key, value in pairs:
        value = re.sub(r"\\(.)", r"\1", value[1:-1]) if value[:1] == '"' and value[-1:] == '"' else value
        if sides := re.fullmatch(r"(\d+)x(\d+)", value):
            values[f"{key}-1"], values[f"{key}-2"] = sides.groups()
        else:
            values[key] = value
    return values
