"""`a.b=c` on the command line: values given as text, read as the types of a config's fields."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import typing
from collections.abc import Iterator
from typing import Any, Literal

from diptych.core.config import (
    Config,
    NoneType,
    coerce,
    config_class,
    item_hints,
    options_of_hint,
    plain,
    type_hints,
    type_name,
)
from diptych.core.errors import UserError, unknown


def _paths(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted path of each value."""
    for name, value in values.items():
        yield prefix + name
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{name}.")


def assign(cls: type[Config], values: dict[str, Any], assignment: str) -> None:
    """Apply one `a.b=c` to the plain values of a config of class `cls`, or raise a `UserError` that names the fault."""
    path, equals, text = assignment.partition("=")
    first = cls.renamed.get(path.partition(".")[0], path.partition(".")[0])
    if not equals or not path:
        raise UserError(f"cannot read {assignment!r}: write it as field=value, for example training.steps=1000")
    if first not in values and (whole := [p for p in _paths(values) if p.endswith(f".{path}")]):
        raise UserError(f"no field {path!r} at the top: did you mean {' or '.join(whole)}?")
    _assign(cls, values, path.split("."), text, path)


def _assign(cls: type[Config], values: dict[str, Any], path: list[str], text: str, whole: str) -> None:
    """Set one value, given as text, in the plain values of a config of class `cls`."""
    name, *rest = path
    name = cls.renamed.get(name, name)
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    if name not in names:
        raise unknown(f"no field {name!r} in {whole!r}", name, names)
    hint = type_hints(cls)[name]
    if not rest:
        values[name] = plain(_parse(text, hint, whole))
        return
    if values.get(name) is None:  # an optional part: its other fields take their defaults
        values[name] = {}
    inner = config_class(hint, values[name], whole)
    if inner is None or not isinstance(values[name], dict):
        raise UserError(f"{name!r} in {whole!r} has no fields of its own")
    _assign(inner, values[name], rest, text, whole)


def _parse(text: str, hint: Any, where: str) -> Any:
    """Read the text of an assignment as the hinted type: a list as `1,2,4`, nothing as `none`, an object as JSON."""
    options = options_of_hint(hint)
    if NoneType in options and text.lower() in ("none", "null"):
        return None
    if text.lstrip().startswith("{") and str not in options:
        return coerce(_json(text), hint, where)
    tries = sorted((o for o in options if o is not NoneType), key=lambda o: o is str)  # any text is a str: last
    for option in tries[:-1]:
        try:
            return _parse_one(text, option, where)
        except UserError:
            continue
    try:
        return _parse_one(text, tries[-1], where)
    except UserError:
        if len(options) == 1:
            raise
    raise UserError(f"{where} must be {type_name(hint)}, not {text!r}")


def _parse_one(text: str, hint: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    value: Any = text
    if origin is Literal:
        value = {json.dumps(option).strip('"'): option for option in arguments}.get(text, text)
    elif origin is tuple and not text.lstrip().startswith("["):
        parts = [part.strip() for part in text.split(",")] if text else []
        return tuple(_parse(part, h, where) for part, h in zip(parts, item_hints(hint, len(parts), where), strict=True))
    elif hint is bool:
        value = {"true": True, "false": False}.get(text.lower(), text)
    elif hint is int or hint is float:
        with contextlib.suppress(ValueError):
            value = hint(text)
    elif hint is not str:
        value = _json(text)
    return coerce(value, hint, where)


def _json(text: str) -> Any:
    """The value of a JSON text, or the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
