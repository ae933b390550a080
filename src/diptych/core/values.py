"""Types of option values. Each parses text of the command line and checks a Python value.

Both raise `ValueError` with the rest of a sentence that starts with the option's name: "must be at least 1, not 0".
Choices raise a `UserError` that lists them.
"""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar

from diptych.core.errors import UserError, pick

LONGEST_SIDE = 8192
"""Pixels of an image's side: more is a slip of the keyboard."""
MOST = 1_000_000
"""Of anything that is counted."""


@dataclass(frozen=True)
class Value:
    """Any value, unchecked."""

    metavar: ClassVar[str] = "VALUE"
    """The placeholder in `--help`."""

    @property
    def allowed(self) -> str:
        """What it may be, in words; nothing where the metavar says it."""
        return ""

    def parse(self, text: str) -> Any:
        """From a word of the command line."""
        return text

    def check(self, value: Any) -> Any:
        """From a value of Python's."""
        return value


@dataclass(frozen=True)
class Integer(Value):
    """A whole number from `low` to `high`."""

    low: int = 0
    high: int = MOST
    metavar: ClassVar[str] = "N"

    @property
    def allowed(self) -> str:
        return f"{self.low} or more" if self.high == MOST else f"{self.low} to {self.high:,}"

    def parse(self, text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            raise ValueError(f"must be a whole number, not {short_repr(text)}") from None
        return self.check(number)

    def check(self, value: Any) -> int:
        value = plain(value)
        if isinstance(value, bool):
            raise ValueError(f"must be a whole number, not {value}")
        try:
            number = operator.index(value)
        except TypeError:
            raise ValueError(f"must be a whole number, not {short_repr(value)}") from None
        if number < self.low:
            raise ValueError(f"must be at least {self.low}, not {short_repr(number)}")
        if number > self.high:
            raise ValueError(f"must be at most {self.high}, not {short_repr(number)}")
        return number


@dataclass(frozen=True)
class Number(Value):
    """A finite number from `low` to `high`; `above` leaves `low` itself out."""

    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    metavar: ClassVar[str] = "X"

    @property
    def allowed(self) -> str:
        if math.isinf(self.high):
            return f"more than {self.low:g}" if self.above else f"{self.low:g} or more"
        return f"{'above ' if self.above else ''}{self.low:g} to {self.high:g}"

    @property
    def bounds(self) -> str:
        """What must hold: "be at least 0", "lie between 0 and 1"."""
        if math.isinf(self.high):
            return f"be {'more than' if self.above else 'at least'} {self.low:g}"
        if self.above:
            return f"be more than {self.low:g} and at most {self.high:g}"
        return f"lie between {self.low:g} and {self.high:g}"

    def parse(self, text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            raise ValueError(f"must be a finite number, not {short_repr(text)}") from None
        return self.check(number)

    def check(self, value: Any) -> float:
        value = plain(value)
        size: Any = abs(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
        if not size <= sys.float_info.max:  # NaN fails too
            raise ValueError(f"must be a finite number, not {short_repr(value)}")
        number = float(value)
        if not self.low <= number <= self.high or (self.above and number == self.low):
            raise ValueError(f"must {self.bounds}, not {number:g}")
        return number


@dataclass(frozen=True)
class Choice(Value):
    """One of several names; `kind` is what they are names of."""

    kind: str
    choices: tuple[str, ...]
    metavar: ClassVar[str] = "NAME"

    @property
    def allowed(self) -> str:
        return ", ".join(self.choices)

    def parse(self, text: str) -> str:
        return pick(self.kind, text, self.choices)

    def check(self, value: Any) -> str:
        return pick(self.kind, str(value), self.choices)


@dataclass(frozen=True)
class Flag(Value):
    """True or false."""

    metavar: ClassVar[str] = ""

    def check(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise ValueError(f"must be true or false, not {short_repr(value)}")
        return value


@dataclass(frozen=True)
class Function(Value):
    """Anything that can be called."""

    def check(self, value: Any) -> Any:
        if not callable(value):
            raise ValueError(f"must be a function, not {short_repr(value)}")
        return value


@dataclass(frozen=True)
class Text(Value):
    """A text, in Python also several."""

    metavar: ClassVar[str] = "TEXT"

    def parse(self, text: str) -> str:
        return unicode_text(text)


@dataclass(frozen=True)
class ImageFile(Value):
    """The file of an image, in Python also the image itself, or several."""

    metavar: ClassVar[str] = "IMAGE"

    def parse(self, text: str) -> Path:
        return Path(text)


@dataclass(frozen=True)
class ScaledFile(Value):
    """`"style.safetensors:0.8"`, a file and its scale; a colon without a number behind it belongs to the name."""

    metavar: ClassVar[str] = "FILE[:SCALE]"

    def parse(self, text: str) -> tuple[Path, float]:
        file, colon, scale = text.rpartition(":")
        try:
            float(scale)
        except ValueError:
            return Path(text), 1.0
        return (Path(file), Number().parse(scale)) if colon else (Path(text), 1.0)


@dataclass(frozen=True)
class ScaledSource(Value):
    """`"judge:2"`, a name, folder or file and its scale; in Python the opened model and its scale."""

    metavar: ClassVar[str] = "FOLDER[:SCALE]"

    def parse(self, text: str) -> tuple[str, float]:
        source, scale = ScaledFile().parse(text)
        return str(source), scale

    def check(self, value: Any) -> tuple[tuple[Any, float], ...]:
        for pair in value if isinstance(value, (list, tuple)) else (value,):
            if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not hasattr(pair[0], "bind"):
                raise ValueError(f"must be a list of pairs of an opened guide and its scale, not {short_repr(value)}")
        return tuple((guide, plain(scale)) for guide, scale in value)


@dataclass(frozen=True)
class Size(Value):
    """Width and height in pixels; which multiples fit is for the model to say."""

    metavar: ClassVar[str] = "WxH"

    def parse(self, text: str) -> tuple[int, int]:
        width, times, height = text.lower().replace("×", "x").partition("x")
        side = Integer(1, LONGEST_SIDE)
        try:
            return side.parse(width), side.parse(height if times else width)
        except ValueError:
            raise ValueError(
                f"must be WIDTHxHEIGHT or one number for both, from 1 to {LONGEST_SIDE} pixels a side, "
                f"not {short_repr(text)}"
            ) from None


@dataclass(frozen=True)
class Interval(Value):
    """`"0.2:0.9"`, two numbers within 0 and 1, low before high; in Python a pair of numbers too."""

    metavar: ClassVar[str] = "LOW:HIGH"

    def parse(self, text: str) -> str:
        return self.check(text)

    def check(self, value: Any) -> str:
        parts = value.split(":") if isinstance(value, str) else value
        try:
            low, high = map(float, parts)
        except (TypeError, ValueError):
            raise ValueError(f"must be LOW:HIGH, as 0.2:0.9, not {short_repr(value)}") from None
        if not 0 <= low <= high <= 1:  # NaN fails too
            raise ValueError(f"must lie within 0 and 1, low before high, not {short_repr(value)}")
        return f"{low}:{high}"


@dataclass(frozen=True)
class PerStage(Value):
    """One value for all stages of a cascade, or several: with commas, in Python as a list. None is the stage's own."""

    value: Value

    @property
    def allowed(self) -> str:
        return self.value.allowed

    def parse(self, text: str) -> Any:
        if "," not in text:
            return self.value.parse(text)
        return [None if part.strip() in ("", "-") else self.value.parse(part.strip()) for part in text.split(",")]

    def check(self, value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            return self.value.check(value)
        return [None if part is None else self.value.check(part) for part in value]


def checked(name: str, check: Callable[[Any], Any], value: Any) -> Any:
    """A value that a kind has checked; a `UserError` that names the option where it does not fit."""
    try:
        return check(value)
    except ValueError as error:
        raise UserError(f"{name} {error}") from None


def texts(name: str, value: Any) -> list[str]:
    """One text or several, as a list; a `UserError` for anything else."""
    values = [value] if isinstance(value, str) else list(value) if isinstance(value, (list, tuple)) else [value]
    if wrong := [item for item in values if not isinstance(item, str)]:
        raise UserError(f"{name} must be a text or a list of texts, not {short_repr(wrong[0])}")
    return values


def integers(name: str, values: Any) -> list[int]:
    """A list of whole numbers of any integer type, as Python's; a `UserError` for anything else."""
    values = plain(values)
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes, Set, Mapping)):
        raise UserError(f"{name} must be a list of whole numbers, not {short_repr(values)}")
    no_number: Any = None
    try:
        return [operator.index(no_number if isinstance(value, bool) else value) for value in map(plain, values)]
    except TypeError:
        raise UserError(f"{name} must be whole numbers, not {short_repr(values)}") from None


def plain(value: Any) -> Any:
    """A scalar of NumPy or PyTorch as Python's number; any other value as it is."""
    return value.item() if getattr(value, "shape", None) == () else value


def unicode_text(text: str) -> str:
    """A text; a `UserError` for what is none, such as a word in another encoding than the terminal's."""
    try:
        text.encode()
    except (UnicodeEncodeError, AttributeError):
        raise UserError(f"{short_repr(text)} is not valid Unicode text") from None
    return text


def short_repr(value: Any) -> str:
    """The `repr` of a value, in one line of at most 80 characters."""
    return " ".join(repr(value).split())[:80]
