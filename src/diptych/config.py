"""Configuration: frozen dataclasses that check themselves, are saved as JSON, and take `a.b=c` from the command line.

A config class stands beside the class that it builds. Which class a saved file describes is known from the field that
holds it; where a field may hold one of several (`system: AutoencoderConfig | LatentConfig`), each of them has a `kind`
field with its own `Literal`, and that decides.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any, Literal, TypeVar, Union

from diptych.errors import UserError

C = TypeVar("C", bound="Config")


class Config:
    """Base of every config. Subclasses are `@dataclass(frozen=True, kw_only=True)` and may define `check`."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = _coerce(getattr(self, field.name), hints[field.name], field.name)
            object.__setattr__(self, field.name, value)
        self.check()

    def check(self) -> None:
        """Raise a `UserError` that names the field when values do not fit together."""

    def require(self, condition: bool, field: str, must: str) -> None:
        """Raise `<field> must <must>` unless the condition holds."""
        if not condition:
            raise UserError(f"{type(self).__name__}.{field} must {must}, not {getattr(self, field)!r}")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, nested configs included."""
        return {f.name: _plain(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls: type[C], values: dict[str, Any]) -> C:
        """The inverse of `to_dict`. Unknown fields and wrong types raise a `UserError` that names them."""
        return _build(cls, values, cls.__name__)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def override(self: C, assignments: typing.Iterable[str]) -> C:
        """A copy with `a.b=c` assignments applied, each value read as the type of its field."""
        config = self
        for assignment in assignments:
            path, equals, text = assignment.partition("=")
            if not equals or not path:
                raise UserError(f"cannot read {assignment!r}: write it as field=value, for example training.steps=1000")
            config = _assign(config, path.split("."), text, path)
        return config


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


def _build(cls: type[C], values: Any, where: str) -> C:
    if not isinstance(values, dict):
        raise UserError(f"{where} must be an object with fields, not {values!r}")
    hints = typing.get_type_hints(cls)
    names = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - names):
        raise UserError(f"{where} has no field {unknown[0]!r}: choose one of {', '.join(sorted(names))}")
    built = {name: _coerce(value, hints[name], f"{where}.{name}") for name, value in values.items()}
    try:
        return cls(**built)
    except TypeError as error:  # a required field is missing
        raise UserError(f"{where}: {error}") from None


def _assign(config: Any, path: list[str], text: str, whole: str) -> Any:
    names = [f.name for f in dataclasses.fields(config)]
    if path[0] not in names:
        raise UserError(f"no field {path[0]!r} in {whole!r}: choose one of {', '.join(names)}")
    hint = typing.get_type_hints(type(config))[path[0]]
    if len(path) > 1:
        inner = getattr(config, path[0])
        if not isinstance(inner, Config):
            raise UserError(f"{path[0]!r} in {whole!r} has no fields of its own")
        value = _assign(inner, path[1:], text, whole)
    else:
        value = _parse(text, hint, whole)
    return dataclasses.replace(config, **{path[0]: value})


def _parse(text: str, hint: Any, where: str) -> Any:
    """Read the text of an assignment as the hinted type: JSON where it is JSON, else a bare word."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = {"none": None, "None": None, "True": True, "False": False}.get(text, text)
    if hint is str and not isinstance(value, str):
        value = text
    elif _is_tuple(hint) and isinstance(value, str):  # a.b=1,2,4
        value = [_parse(part, typing.get_args(hint)[0], where) for part in text.split(",") if part]
    elif _is_tuple(hint) and not isinstance(value, list):
        value = [value]
    return _coerce(value, hint, where)


def _is_tuple(hint: Any) -> bool:
    return typing.get_origin(hint) is tuple


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """Return `value` as the hinted type or raise. Only lossless steps: list to tuple, int to float, dict to config."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _coerce_union(value, arguments, where)
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"{where} must be one of {', '.join(map(str, arguments))}, not {value!r}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where} must be a list, not {value!r}")
        inner = arguments[0]
        if len(arguments) > 1 and arguments[1] is not Ellipsis and len(value) != len(arguments):
            raise UserError(f"{where} must have {len(arguments)} values, not {len(value)}")
        return tuple(_coerce(item, inner, where) for item in value)
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{where} must be an object, not {value!r}")
        return value
    if isinstance(hint, type) and issubclass(hint, Config):
        return value if isinstance(value, hint) else _build(hint, value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{where} must be {_spoken(hint)}, not {value!r}")
    return value


def _coerce_union(value: Any, options: tuple, where: str) -> Any:
    if value is None and type(None) in options:
        return None
    configs = [o for o in options if isinstance(o, type) and issubclass(o, Config)]
    if isinstance(value, dict) and configs:
        kinds = {typing.get_args(typing.get_type_hints(c).get("kind"))[0]: c for c in configs} if len(configs) > 1 else {}
        chosen = kinds.get(value.get("kind")) if kinds else configs[0]
        if chosen is None:
            raise UserError(f"{where}.kind must be one of {', '.join(kinds)}, not {value.get('kind')!r}")
        return _build(chosen, value, where)
    for option in options:
        if option is type(None):
            continue
        try:
            return _coerce(value, option, where)
        except UserError:
            continue
    raise UserError(f"{where} must be {' or '.join(_spoken(o) for o in options)}, not {value!r}")


def _spoken(hint: Any) -> str:
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "none"}
    return names.get(hint, getattr(hint, "__name__", str(hint)))
