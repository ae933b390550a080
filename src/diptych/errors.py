"""The one error that a user is meant to see: a single clear line that says what to do."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable


class UserError(Exception):
    """Something that the user can put right. The command line prints it as one line and exits with 2.

    Raise it where the mistake is known best, with a message that names the thing (a file, a field, a key) and
    says what would work instead. Programming errors stay ordinary exceptions with their traceback.
    """


class NothingThere(UserError):
    """Data that has no example of what was asked for; some callers can do without."""


class DiptychWarning(UserWarning):
    """Something that a user should know of images that are made all the same. The command line prints one line."""


def warn(message: str) -> None:
    """Say something in one line that is no error."""
    warnings.warn(" ".join(message.split()), DiptychWarning, stacklevel=2)


def pick(kind: str, name: str, known: Iterable[str]) -> str:
    """Return `name` when it is among `known`, else raise a `UserError` that lists what there is."""
    known = list(known)
    if name in known:
        return name
    raise unknown(f"unknown {kind} {name!r}", name, sorted(known))


def unknown(what: str, name: object, known: Iterable[str]) -> UserError:
    """What to raise for a name that is none of `known`: all that there are, and the one that was probably meant."""
    known = list(known)
    return UserError(f"{what}: choose one of {', '.join(known)}{hint(name, known)}")


def hint(name: object, known: Iterable[str]) -> str:
    """`"; did you mean steps?"` for a mistyped name, nothing where no known one is like it."""
    lower = {other.lower(): other for other in known}
    found = difflib.get_close_matches(str(name).lower(), lower, n=1, cutoff=0.7)
    return f"; did you mean {lower[found[0]]}?" if found else ""
