"""Configuration: frozen dataclasses that check themselves, are saved as JSON, and take `a.b=c` from the command line.

A config class lies in the module of the class that it builds. The class of a saved config follows from its
field; where a field may hold one of several (`system: AutoencoderConfig | LatentConfig`), each of them has a `kind`
field with its own `Literal`, and that decides.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import types
import typing
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, Union

from diptych.core.errors import UserError, unknown
from diptych.core.errors import hint as meant

C = TypeVar("C", bound="Config")
NoneType = type(None)
_MISSING = dataclasses.MISSING
_TYPE_NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    tuple: "a list",
    dict: "an object",
    NoneType: "none",
}


@dataclasses.dataclass(frozen=True)
class Within:
    """The bounds of a field's numbers, both included: `steps: Annotated[int, Within(1)]`.

    Every number has some: what a field does not state is that of its class (`Config.most`).
    """

    low: float
    high: float | None = None
    """None is `Config.most`."""


# Evaluated once a class: its annotations are text, and a recipe has hundreds of configs.
type_hints = functools.cache(typing.get_type_hints)


class Config:
    """Base of every config. Subclasses are `@dataclass(frozen=True, kw_only=True)` and may define `check`."""

    unnamed: ClassVar[bool] = False
    """Whether values without a `kind` are of this class where several could be meant: in files that are older than the
    others."""
    renamed: ClassVar[dict[str, str]] = {}
    """Former names of fields, by which files and command lines may still give them: {former: present}."""
    earlier: ClassVar[dict[str, Any]] = {}
    """Values that fields had in all versions before there were these fields, where that is not the default now: what
    was saved without the field was made with them."""
    most: ClassVar[float] = 10**9
    """The largest number, and the least below zero, of a field that states no `Within`: beyond it is a slip of the
    keyboard, or a file that would take all memory."""

    def __post_init__(self) -> None:
        hints, bounds = type_hints(type(self)), type_hints(type(self), include_extras=True)
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            where = f"{type(self).__name__}.{field.name}"
            value = coerce(getattr(self, field.name), hints[field.name], where)
            _require_within(value, bounds[field.name], self.most, where)
            object.__setattr__(self, field.name, value)
        self.check()

    def check(self) -> None:
        """Raise a `UserError` that names the field when values do not fit together."""

    def require(self, condition: bool, field: str, must: str) -> None:
        """Raise `<field> must <must>` unless the condition holds."""
        if not condition:
            raise UserError(f"{type(self).__name__}.{field} must {must}, not {getattr(self, field)!r}")

    def require_at_least(self, low: int, *fields: str) -> None:
        """`require` that each of these fields is `low` or more, or none where its type allows that."""
        for field in fields:
            value, optional = getattr(self, field), NoneType in options_of_hint(type_hints(type(self))[field])
            must = f"be at least {low}, or none" if optional else f"be at least {low}"
            self.require(value is None or value >= low, field, must)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, nested configs included."""
        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    @classmethod
    def from_dict(cls: type[C], values: dict[str, Any]) -> C:
        """The inverse of `to_dict`. Unknown fields and wrong types raise a `UserError` that names them."""
        return _build(cls, values, cls.__name__)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    def override(self: C, assignments: typing.Iterable[str]) -> C:
        """A copy with `a.b=c` assignments applied, each value read as the type of its field.

        All are applied before anything is checked, so fields that must fit each other can change together.
        """
        from diptych.core.config_override import assign

        values = self.to_dict()
        for assignment in assignments:
            assign(type(self), values, assignment)
        return type(self).from_dict(values)


def read_json(path: Path, missing: str | None = None, damaged: str | None = None) -> Any:
    """What a JSON file holds. A `UserError` where there is none or it cannot be read, in these words where given."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(missing or f"there is no file {path}") from None
    except (ValueError, RecursionError, OSError):
        raise UserError(damaged or f"{path} is not readable JSON") from None


def plain(value: Any) -> Any:
    """The values of a config, of what holds some, as JSON has them."""
    if isinstance(value, Config):
        return value.to_dict()
    if isinstance(value, (tuple, list)):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value


def present_names(cls: type[Config], values: dict[str, Any], where: str) -> dict[str, Any]:
    """Values of a config by the present names of its fields. A `UserError` where a field has both of its names."""
    names = [cls.renamed.get(name, name) for name in values]
    for former, name in zip(values, names, strict=True):
        if former != name and name in values:
            raise UserError(
                f"{where} has {former!r} and {name!r}, which are two names of one field: give {name!r} alone"
            )
    return dict(zip(names, values.values(), strict=True))


def _build(cls: type[C], values: Any, where: str) -> C:
    if not isinstance(values, dict):
        raise UserError(f"{where} must be an object with fields, not {values!r}")
    values = present_names(cls, values, where)
    hints = type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if strange := [str(name) for name in values if name not in fields]:
        raise unknown(f"{where} has no field {strange[0]!r}", strange[0], fields)
    for name, field in fields.items():
        if name not in values and field.default is _MISSING and field.default_factory is _MISSING:
            raise UserError(f"{where} lacks the field {name!r}")
    return cls(**{name: coerce(value, hints[name], f"{where}.{name}") for name, value in values.items()})


def config_class(hint: Any, value: Any, where: str) -> type[Config] | None:
    """The config class among the hinted types, the one of `value`'s kind if there are several; None without one."""
    configs = [o for o in options_of_hint(hint) if isinstance(o, type) and issubclass(o, Config)]
    if len(configs) < 2:
        return configs[0] if configs else None
    if isinstance(value, dict) and "kind" not in value and (older := [c for c in configs if c.unnamed]):
        return older[0]
    kinds = {kind: c for c in configs for kind in typing.get_args(type_hints(c).get("kind"))}
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind not in kinds:
        raise UserError(f"{where}.kind must be one of {', '.join(map(str, kinds))}, not {kind!r}")
    return kinds[kind]


def options_of_hint(hint: Any) -> tuple[Any, ...]:
    """The types of a union, or the one type."""
    return typing.get_args(hint) if typing.get_origin(hint) in (Union, types.UnionType) else (hint,)


def item_hints(hint: Any, count: int, where: str) -> tuple[Any, ...]:
    """The types of the `count` items of a tuple hint. Raises when it wants another number of them."""
    arguments = typing.get_args(hint)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return (arguments[0],) * count
    if len(arguments) != count:
        raise UserError(f"{where} must have {len(arguments)} values, not {count}")
    return arguments


def coerce(value: Any, hint: Any, where: str) -> Any:
    """Return `value` as the hinted type or raise. Only lossless steps: list to tuple, int to float, dict to config."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _coerce_union(value, hint, where)
    if origin is Literal:
        if not any(value == option and type(value) is type(option) for option in arguments):
            near = meant(value, map(str, arguments))
            raise UserError(f"{where} must be {type_name(hint)}, not {value!r}{near}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise UserError(f"{where} must be a list, not {value!r}")
        return tuple(coerce(item, h, where) for item, h in zip(value, item_hints(hint, len(value), where), strict=True))
    if origin is dict:
        if not isinstance(value, dict):
            raise UserError(f"{where} must be an object, not {value!r}")
        return {coerce(k, arguments[0], where): coerce(v, arguments[1], f"{where}.{k}") for k, v in value.items()}
    if isinstance(hint, type) and issubclass(hint, Config):
        return value if isinstance(value, hint) else _build(hint, value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    wrong = not isinstance(value, hint) or (hint is int and isinstance(value, bool))
    if wrong or (hint is float and math.isnan(value)):
        raise UserError(f"{where} must be {type_name(hint)}, not {value!r}")
    return value


def _require_within(value: Any, hint: Any, most: float, where: str) -> None:
    """Raise where a number, or one in a list or object, is out of its field's bounds."""
    bounds = next((extra for extra in getattr(hint, "__metadata__", ()) if isinstance(extra, Within)), Within(-most))
    low, high = bounds.low, most if bounds.high is None else bounds.high
    numbers = value if isinstance(value, (tuple, list)) else value.values() if isinstance(value, dict) else (value,)
    for number in numbers:
        if isinstance(number, (int, float)) and not isinstance(number, bool) and not low <= number <= high:
            raise UserError(f"{where} must lie between {low:,} and {high:,}, not {number!r}")


def _coerce_union(value: Any, hint: Any, where: str) -> Any:
    options = options_of_hint(hint)
    if isinstance(value, dict) and (chosen := config_class(hint, value, where)):
        return _build(chosen, value, where)
    exact = [o for o in options if type(value) is o]  # so that 1 stays whole in `float | int`
    for option in (*exact, *options):
        try:
            return coerce(value, option, where)
        except UserError:
            continue
    raise UserError(f"{where} must be {type_name(hint)}, not {value!r}")


def type_name(hint: Any) -> str:
    options = options_of_hint(hint)
    if len(options) > 1:
        return " or ".join(type_name(option) for option in options)
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(hint)))
    plain = hint if typing.get_origin(hint) is None else typing.get_origin(hint)
    return _TYPE_NAMES.get(plain) or getattr(plain, "__name__", str(plain))
