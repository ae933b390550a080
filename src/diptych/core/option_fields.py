"""Options that are stated once, as annotated fields of a `TypedDict`: their help, checks and signature come from there.

A field reads `steps: Annotated[int | None, Option(Whole(1), "number of sampling steps")]`. A function that takes such a
class as `**options: Unpack[...]` is typed, and its signature, documentation and command line follow from it.
"""

from __future__ import annotations

import functools
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from diptych.core.values import Choice, PerStage, Value, checked

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Option:
    """One option of `generate`."""

    value: Value
    """What it may be, on the command line and in Python."""
    help: str
    """What it does, as in `--help`."""
    group: str = "sampling"
    """The heading under which `--help` and the docs list it."""
    default: Any = None
    """In Python; none is the model's own, or nothing."""
    unset: str = ""
    """What None means."""
    metavar: str | None = None
    """The placeholder in `--help`, if not that of the type."""
    flags: tuple[str, ...] | None = None
    """Names on the command line, without dashes; none for the option's own, empty where it is for Python alone."""
    also: tuple[str, ...] = ()
    """Other names, in Python and on the command line, that `--help` shows."""
    old: tuple[str, ...] = ()
    """Names that it had before: they work, and nothing shows them."""
    repeated: bool = False
    """Whether the command line takes it several times."""
    needs: tuple[str, ...] = ()
    """Options without which it means nothing."""
    enlarging: bool = False
    """Whether it is for models that enlarge images alone."""
    name: str = ""
    """Set by `options_of`."""

    @property
    def per_stage(self) -> bool:
        """Whether a cascade takes one value for each stage."""
        return isinstance(self.value, PerStage)

    @property
    def arguments(self) -> tuple[str, ...]:
        """The names on the command line that `--help` shows: `--negative`, `--negative-prompt`."""
        names = (self.name, *self.also) if self.flags is None else self.flags
        return tuple(f"--{name.replace('_', '-')}" for name in names)

    @property
    def old_arguments(self) -> tuple[str, ...]:
        """Those that it does not show."""
        return tuple(f"--{name.replace('_', '-')}" for name in self.old)

    @property
    def placeholder(self) -> str:
        """The placeholder in `--help`."""
        single = self.value.value if isinstance(self.value, PerStage) else self.value
        return self.metavar or single.metavar

    def read(self, value: Any) -> Any:
        """A value of Python's, checked; a `UserError` that names the option where it does not fit."""
        return value if value is None else checked(self.name, self.value.check, value)

    @property
    def described(self) -> str:
        """Help, choices, and the default."""
        value = self.value.value if isinstance(self.value, PerStage) else self.value
        choices = f": {value.allowed}" if isinstance(value, Choice) else ""
        return self.help + choices + (f" (default: {self.unset})" if self.unset else "")


@dataclass(frozen=True)
class EachStage:
    """Marks a field as that of the same name in another class, with one value for each stage of a cascade."""

    single: type


@functools.cache
def options_of(kind: type) -> Mapping[str, Option]:
    """The options of a `TypedDict`, by name and in order."""
    options = {}
    for name, annotation in kind.__annotations__.items():
        stated = annotation.__metadata__[0]
        if isinstance(stated, EachStage):
            stated = options_of(stated.single)[name]
            stated = replace(stated, value=PerStage(stated.value))
        options[name] = replace(stated, name=name)
    return options


def type_name(kind: type, name: str) -> str:
    """The type of a field, as it is written."""
    bare = typing.get_args(kind.__annotations__[name])[0]
    text = getattr(bare, "__forward_arg__", None) or inspect.formatannotation(bare)
    return re.sub(r"^Optional\[(.*)\]$", r"\1 | None", re.sub(r"\b(collections\.abc|typing)\.", "", text))


def takes(kind: type) -> Callable[[F], F]:
    """Decorator of a function of `**options`: its signature and docstring list the options of a `TypedDict`."""

    def listed(function: F) -> F:
        variadic = inspect.Parameter.VAR_KEYWORD
        parameters = [one for one in inspect.signature(function).parameters.values() if one.kind != variadic]
        for name, option in options_of(kind).items():
            annotation = type_name(kind, name)
            keyword = inspect.Parameter.KEYWORD_ONLY
            parameters.append(inspect.Parameter(name, keyword, default=option.default, annotation=annotation))
        vars(function)["__signature__"] = inspect.Signature(parameters)
        lines = [f"    {name}: {option.described}" for name, option in options_of(kind).items()]
        function.__doc__ = "\n".join([inspect.cleandoc(function.__doc__ or ""), "", "Options:", *lines])
        return function

    return listed
