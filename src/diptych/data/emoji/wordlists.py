"""Small readers for the word lists that stand in the code."""

from __future__ import annotations


def listed(text: str) -> tuple[str, ...]:
    """`"a, b c"` -> `("a", "b c")`; line breaks are spaces."""
    return tuple(" ".join(entry.split()) for entry in text.split(",") if entry.strip())


def table(text: str) -> dict[str, str]:
    """`"a=b; c=d e"` -> `{"a": "b", "c": "d e"}`; line breaks are spaces."""
    pairs = (" ".join(entry.split()).partition("=") for entry in text.split(";") if entry.strip())
    return {left.strip(): right.strip() for left, _, right in pairs}
