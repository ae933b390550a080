"""Rules by which examples are kept: numbers in their metadata, and the sides of their images."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
RULE = re.compile(rf"\s*([^\s<>=!]+)\s*({'|'.join(COMPARISONS)})\s*([^\s<>=!]+)\s*")
OF_IMAGE: dict[str, Callable[[int, int], float]] = {
    "width": lambda width, height: width,
    "height": lambda width, height: height,
    "side": lambda width, height: min(width, height),
    "aspect": lambda width, height: max(width, height) / min(width, height),
}
"""Fields of the image itself, turned as its EXIF says: its sides in pixels, the shorter one, and the longer over the
shorter."""
TURNED = "width", "height"
"""Those that such a turn changes."""
Size = Callable[[], tuple[int, int]]


class Filter(NamedTuple):
    """`field comparison bound`, such as AESTHETIC_SCORE >= 5."""

    field: str
    comparison: str
    bound: float

    def __str__(self) -> str:
        return f"{self.field}{self.comparison}{self.bound:g}"

    @classmethod
    def parse(cls, text: str) -> Filter:
        """Raises `ValueError` for a text that is no rule."""
        if (match := RULE.fullmatch(text)) is None:
            raise ValueError(
                f"{text!r} is no rule: write a field, one of {' '.join(COMPARISONS)}, and a number: side>=512"
            )
        field, comparison, number = match.groups()
        try:
            bound = float(number)
        except ValueError:
            raise ValueError(f"{number!r} in {text!r} is no number") from None
        if bound - bound != 0:
            raise ValueError(f"{number!r} in {text!r} is no finite number")
        return cls(field, comparison, bound)

    def keeps(self, meta: dict[str, Any], size: Size) -> bool:
        """Whether an example is kept. One without the field, or with no number there, is not.

        meta: its metadata. size: reads the width and height of its image; called where the rule is about them.
        """
        value = OF_IMAGE[self.field](*size()) if self.field in OF_IMAGE else number_in(meta.get(self.field))
        return value is not None and COMPARISONS[self.comparison](value, self.bound)


def number_in(value: Any) -> float | None:
    """A number of metadata, which some writers quote; none for anything else, and for NaN."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if number == number else None


def parse_filters(texts: Iterable[str]) -> tuple[Filter, ...]:
    return tuple(map(Filter.parse, texts))


def first_against(filters: Sequence[Filter], meta: dict[str, Any], size: Size) -> Filter | None:
    """The first rule by which an example is left out; none where it is kept."""
    known: list[tuple[int, int]] = []

    def read_once() -> tuple[int, int]:
        if not known:
            known.append(size())
        return known[0]

    return next((rule for rule in filters if not rule.keeps(meta, read_once)), None)


def filters_said(filtered: Mapping[str, int]) -> str:
    """How many examples each rule of `DataConfig.keep` leaves out, in words."""
    return ", ".join(f"{rule} leaves out {count:,}" for rule, count in filtered.items())
