"""JSON that clients send, read strictly: one reading of it, whoever reads it."""

from __future__ import annotations

import json
from typing import Any

from diptych.studio.limits import FieldError

BYTES = 2**20
"""Of a body that holds no images."""
DEPTH = 16
"""Lists and objects within each other."""


def read_object(data: bytes) -> dict[str, Any]:
    """The object in a body. Raises a `FieldError` for what is none: a name that comes twice, which readers take
    differently, NaN and Infinity, which JSON has not, lists in lists without end, and half of a surrogate pair."""
    try:
        values = json.loads(data, object_pairs_hook=without_duplicates, parse_constant=refuse_constant)
    except FieldError:
        raise
    except (ValueError, RecursionError):
        raise FieldError("body", "the request is not JSON") from None
    if not isinstance(values, dict):
        raise FieldError("body", "the request is no JSON object")
    check_depth(values)
    for key, value in values.items():
        check_text(key, value)
    return values


def without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise FieldError(plain(twice), "it is stated twice")
    return values


def refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def check_depth(values: Any) -> None:
    """Raise a `FieldError` where what follows would recurse too deep."""
    level = [values]
    for _ in range(DEPTH):
        level = [one for value in level for one in (value.values() if isinstance(value, dict) else value)
                 if isinstance(one, (dict, list))]  # fmt: skip
        if not level:
            return
    raise FieldError("body", f"more than {DEPTH} lists or objects within each other")


def check_text(field: str, value: Any) -> None:
    """Raise a `FieldError` for text that cannot be written as UTF-8; an option is named by its own name."""
    if plain(field) != field:
        raise FieldError("body", "the name of a field is not valid Unicode")
    if isinstance(value, str) and plain(value) != value:
        raise FieldError(field, f"{field} is not valid Unicode text")
    if isinstance(value, dict):
        for key, one in value.items():
            check_text(key, one)
    if isinstance(value, list):
        for one in value:
            check_text(field, one)


def plain(text: str) -> str:
    """A text without what UTF-8 cannot write."""
    return text.encode(errors="replace").decode()


async def body_of(request: Any, most: int = BYTES) -> dict[str, Any]:
    """The object in the body of a request of Starlette's. Raises a `FieldError`, and status 413 above `most` bytes."""
    from starlette.exceptions import HTTPException

    data = await request.body()
    if len(data) > most:
        raise HTTPException(413, f"at most {most} bytes of JSON")
    return read_object(data)
