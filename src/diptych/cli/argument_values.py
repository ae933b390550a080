"""Kinds of values that only the command line has: lists and seeds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from diptych.core.values import Integer, Value, short_repr

SEED_LIMIT = 2**63


@dataclass(frozen=True)
class Several(Value):
    """Values with commas between them."""

    value: Value

    def parse(self, text: str) -> list[Any]:
        return [self.value.parse(part.strip()) for part in text.split(",")]


@dataclass(frozen=True)
class Seeds(Value):
    """`"0,4-7"`: seeds and ranges of seeds; -1 is a random one."""

    metavar: ClassVar[str] = "N"

    def parse(self, text: str) -> list[range]:
        return [self.parse_range(part.strip()) for part in text.split(",")]

    def parse_range(self, text: str) -> range:
        if text == "-1":
            import secrets

            seed = secrets.randbelow(2**32)  # short enough to be typed again
            return range(seed, seed + 1)
        first, dash, last = text.partition("-")
        seed = Integer(0, SEED_LIMIT - 1)
        try:
            start, stop = seed.parse(first), seed.parse(last if dash else first) + 1
        except ValueError:
            start, stop = 0, 0
        if start >= stop:
            allowed = f"a whole number from 0 to {SEED_LIMIT - 1}, a range such as 1-4, or -1 for a random one"
            raise ValueError(f"must be {allowed}, not {short_repr(text)}")
        return range(start, stop)
