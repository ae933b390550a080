"""Comparing configs with values that were saved, whatever names their fields had then."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from diptych.core.config import Config, plain, present_names


def differences(before: Any, now: Any, where: tuple[str, ...] = ()) -> Iterator[tuple[str, Any, Any]]:
    """(path of the field, saved value, value now) where values that were saved are not those of a config, or of a dict.

    A field that came with a later version than the file had its default until then, or what `Config.earlier` says. One
    that is gone is left out, and so are the fields of configs of two kinds, but for that.
    """
    old, new = (one.get("kind") if isinstance(one, dict) else getattr(one, "kind", None) for one in (before, now))
    if isinstance(before, dict) and old != new:
        yield ".".join((*where, "kind")), old, new
    elif isinstance(before, dict) and isinstance(now, (dict, Config)):
        before = before if isinstance(now, dict) else present_names(type(now), before, ".".join(where) or "the config")
        defaults = {} if isinstance(now, dict) else former_values(type(now))
        for name, value in now.items() if isinstance(now, dict) else ((name, getattr(now, name)) for name in defaults):
            if name in before:
                yield from differences(before[name], value, (*where, name))
            elif defaults.get(name, value) != value:
                yield ".".join((*where, name)), plain(defaults[name]), plain(value)
    elif before != plain(now):
        yield ".".join(where), before, plain(now)


def former_values(cls: type[Config]) -> dict[str, Any]:
    """What each field of a config had before files stated it: the default, or what `Config.earlier` says."""
    return {f.name: cls.earlier.get(f.name, f.default) for f in dataclasses.fields(cls)}  # type: ignore[arg-type]


def under_first_names(value: Any) -> Any:
    """`plain` with the first name that each field of a config had, so that a hash of it outlives a renaming."""
    if isinstance(value, Config):
        first = {present: former for former, present in reversed(value.renamed.items())}
        names = (f.name for f in dataclasses.fields(value))  # type: ignore[arg-type]
        return {first.get(name, name): under_first_names(getattr(value, name)) for name in names}
    if isinstance(value, (tuple, list)):
        return [under_first_names(item) for item in value]
    if isinstance(value, dict):
        return {key: under_first_names(item) for key, item in value.items()}
    return value
