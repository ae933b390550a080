"""Types of the command line's arguments: each reads one word, or says what is wrong with it; and what they ask for."""

from __future__ import annotations

import argparse
import math
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from diptych.core.errors import UserError

T = TypeVar("T")
SEED_LIMIT = 2**63
LONGEST_SIDE = 8192
"""Pixels of an image."""
MOST_IMAGES = 1_000_000
"""Of one command, and the most of anything that is counted: more is a slip of the keyboard."""
VARIED = 0.6
"""Strength of variations."""


def whole(low: int, high: int | None = None):
    """A whole number from `low` to `high` (a million), as an argument type."""

    def read(text: str) -> int:
        wanted = f"{low} or more" if high is None else f"from {low} to {high}"
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if high is None and value > MOST_IMAGES:
            value, wanted = low - 1, f"from {low} to {MOST_IMAGES}"
        if value < low or (high is not None and value > high):
            raise argparse.ArgumentTypeError(f"must be a whole number {wanted}, not {text!r}")
        return value

    return read


def number(text: str) -> float:
    """A finite number, as an argument type."""
    return _number(text, -math.inf, math.inf, "a number")


def fraction(text: str) -> float:
    """A number from 0 to 1, as an argument type."""
    return _number(text, 0, 1, "a number from 0 to 1")


def _number(text: str, low: float, high: float, wanted: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or not low <= value <= high:
        raise argparse.ArgumentTypeError(f"must be {wanted}, not {text!r}")
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
    width, times, height = text.lower().replace("×", "x").partition("x")
    read = whole(1, LONGEST_SIDE)
    try:
        return read(width), read(height if times else width)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"must be WIDTHxHEIGHT or one number for both, from 1 to {LONGEST_SIDE} pixels a side, not {text!r}"
        ) from None


def seeds(text: str) -> list[range]:
    """`"0,4-7"`, as an argument type: seeds and ranges of seeds; -1 draws one at random."""
    return [_seeds(part.strip()) for part in text.split(",")]


def _seeds(text: str) -> range:
    if text == "-1":
        seed = secrets.randbelow(2**32)  # short enough to be typed again
        return range(seed, seed + 1)
    first, dash, last = text.partition("-")
    read = whole(0, SEED_LIMIT - 1)
    try:
        start, stop = read(first), read(last if dash else first) + 1
    except argparse.ArgumentTypeError:
        start, stop = 0, 0
    if start >= stop:
        wanted = f"a whole number from 0 to {SEED_LIMIT - 1}, a range such as 1-4, or -1 for a random one"
        raise argparse.ArgumentTypeError(f"must be {wanted}, not {text!r}")
    return range(start, stop)


class Jobs(Sequence[tuple[str, int]]):
    """Each prompt with each seed, in order: (prompt, seed). Nothing is listed, however many there are."""

    def __init__(self, prompts: Sequence[str], seeds: Sequence[range]) -> None:
        self.prompts, self.seeds = prompts, seeds
        self.each = sum(part.stop - part.start for part in seeds)  # len() of a range ends at 2^63 - 1
        """Images of each prompt."""
        if (count := len(prompts) * self.each) > MOST_IMAGES:
            raise UserError(f"these are {count:,} images: ask for at most {MOST_IMAGES:,} at once")

    def __len__(self) -> int:
        return len(self.prompts) * self.each

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        prompt, place = divmod(range(len(self))[index], self.each)
        for part in self.seeds:
            if place < len(part):
                return self.prompts[prompt], part[place]
            place -= len(part)
        raise IndexError(index)


def vary(arguments: argparse.Namespace) -> None:
    """`--variations N` as what it stands for: so many seeds, and a strength at which the picture is still known."""
    if arguments.variations is None:
        return
    if arguments.image is None:
        raise UserError("--variations are those of an image: give it as --image")
    if arguments.count:
        raise UserError("--variations N already says how many: leave --count out")
    arguments.count = arguments.variations
    if arguments.strength is None and arguments.mask is None:
        arguments.strength = VARIED


def read_jobs(arguments: argparse.Namespace) -> Jobs:
    """Each prompt with each seed. Where a picture says what to paint, no prompt is the empty one."""
    if not arguments.prompts and any(getattr(arguments, name, None) for name in ("image", "low")):
        arguments.prompts = [""]
    elif not arguments.prompts:
        raise UserError('give a PROMPT, for example "a red apple", or an image as --image')
    elif any(not prompt.strip() for prompt in arguments.prompts):
        raise UserError('the prompt is empty: say what to draw, for example "a red apple"')
    chosen = arguments.seed or [range(1)]
    if arguments.count:
        if sum(map(len, chosen)) > 1:
            raise UserError("--count goes with one --seed: leave it out to use the seeds given")
        first = chosen[0].start
        if first + arguments.count > SEED_LIMIT:
            raise UserError(f"seeds end at {SEED_LIMIT - 1}: --count {arguments.count} from {first} on are too many")
        chosen = [range(first, first + arguments.count)]
    return Jobs(arguments.prompts, chosen)
