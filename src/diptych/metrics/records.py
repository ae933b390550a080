"""Results as JSON that say all they depend on, so that two are compared only when they may be."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

MATTERS = ("metric", "features", "settings", "reference", "protocol")
"""Entries of a result that must be equal in another one that it is compared with."""
IMAGES = ("images", "processing")
"""Of what is said of the generated images, what must be equal too. FID falls with their number (Chong and Forsyth
2020), and every filter moves it."""
WITHOUT_REFERENCE = ("is", "clip-score")
"""Metrics of generated images alone."""
OF_PIXELS = ("psnr", "ssim")
"""Metrics without a network."""
FREE = ("name",)
"""Of what is said of the reference, what may differ: where it lies."""


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What keeps two results from being compared, in words; empty where nothing does."""
    reasons = []
    for entry in MATTERS:
        reasons += _differing(entry, one.get(entry), other.get(entry))
    for entry in IMAGES:
        reasons += _differing(
            f"generated.{entry}", one.get("generated", {}).get(entry), other.get("generated", {}).get(entry)
        )
    return reasons


def may_differ(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What is not known of one of two results that `differing` finds equal, so that they may differ in it all the same:
    "how the captions were drawn". Empty for results of the same images."""
    images = [result.get("generated", {}).get("sha256") for result in (one, other)]
    if images[0] is not None and images[0] == images[1]:
        return []
    protocols = (result.get("protocol", {}) for result in (one, other))
    return list(dict.fromkeys(str(what) for protocol in protocols for what in protocol.get("unknown", ())))


def unsaid(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """What neither of two results of `evaluate images` states, in words: they are not known to agree in it."""
    return [f"{entry} is not said" for entry in _needed(one) if _at(one, entry) is _at(other, entry) is None]


def _needed(result: Mapping[str, Any]) -> list[str]:
    """What a result must state to be compared."""
    needed = ["settings", "generated.images", "generated.processing"]
    if result.get("metric") not in OF_PIXELS:
        needed.append("features")
    if result.get("metric") not in WITHOUT_REFERENCE:
        # Of the file of another tool there is a hash of its statistics alone.
        needed.append("reference.statistics" if _at(result, "reference.statistics") else "reference.sha256")
    return needed


def _at(result: Mapping[str, Any], entry: str) -> Any:
    """A value by its place, such as `reference.sha256`; none where there is none."""
    value: Any = result
    for name in entry.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _differing(name: str, one: Any, other: Any) -> list[str]:
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        keys = [key for key in {**one, **other} if key not in FREE]
        return [reason for key in keys for reason in _differing(f"{name}.{key}", one.get(key), other.get(key))]
    return [] if one == other else [f"{name} {_text(one)} and {_text(other)}"]


def _text(value: Any) -> str:
    return "not said" if value is None else str(value)


def is_result(value: Any) -> bool:
    """Whether a value out of JSON has what tables and curves need."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("metric"), str)
        and is_number(value.get("value"))
        and all(value.get(name) is None or is_number(value[name]) for name in ("deviation", "error"))
        and all(isinstance(value.get(name, {}), dict) for name in ("features", "settings", "generated", "reference"))
        and isinstance(value.get("protocol", {}), dict)
        and isinstance(value.get("protocol", {}).get("unknown", []), list)
    )


def is_number(value: Any) -> bool:
    """Whether a value out of JSON is a finite number that float64 holds."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max
