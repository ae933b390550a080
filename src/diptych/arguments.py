"""Types of the command line's arguments: each reads one word, or says what is wrong with it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
SEED_LIMIT = 2**63


def whole(low: int, high: int | None = None):
    """A whole number from `low` to `high`, as an argument type."""

    def read(text: str) -> int:
        wanted = f"{low} or more" if high is None else f"from {low} to {high}"
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"must be a whole number {wanted}, not {text!r}")
        return value

    return read


def number(text: str) -> float:
    """A finite number, as an argument type."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"must be a number, not {text!r}")
    return value


def each(read: Callable[[str], T]) -> Callable[[str], T | list[T | None]]:
    """One value, or with commas one for each stage of a cascade: an empty one, or "-", is none. As an argument type."""

    def values(text: str) -> T | list[T | None]:
        if "," not in text:
            return read(text)
        return [None if part.strip() in ("", "-") else read(part.strip()) for part in text.split(",")]

    return values


def several(read: Callable[[str], T]) -> Callable[[str], list[T]]:
    """Values with commas between them, as an argument type."""
    return lambda text: [read(part.strip()) for part in text.split(",")]


def lora(text: str) -> tuple[Path, float]:
    """`"style.safetensors:0.8"`, as an argument type; a colon without a number behind it belongs to the name."""
    file, colon, scale = text.rpartition(":")
    try:
        float(scale)
    except ValueError:
        return Path(text), 1.0
    return (Path(file), number(scale)) if colon else (Path(text), 1.0)


def guide(text: str) -> tuple[str, float]:
    """`"judge:2"`, as an argument type, like that of a LoRA."""
    source, scale = lora(text)
    return str(source), scale


def sides(text: str) -> tuple[int, int]:
    """`"768x512"`, width and height, or one number for both, as an argument type."""
    width, times, height = text.partition("x")
    return whole(1)(width), whole(1)(height if times else width)


def seeds(text: str) -> list[int]:
    """`"0,1,2"`, as an argument type."""
    return several(whole(0, SEED_LIMIT - 1))(text)
