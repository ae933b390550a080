"""Errors for users: one clear line that says what to do."""

from __future__ import annotations

import errno
import os
import re
import warnings
from collections.abc import Iterable


class UserError(Exception):
    """Something that the user can put right. The command line prints it as one line and exits with 2.

    Raise it where the mistake is known best, with a message that names the thing (a file, a field, a key) and
    says what would work instead. Programming errors stay ordinary exceptions with their traceback.
    """


class NotFound(UserError):
    """Data that has no example of what was asked for; some callers can do without."""


class DiptychWarning(UserWarning):
    """Something that a user should know of images that are made all the same. The command line prints one line."""


def warn(message: str) -> None:
    """Say something in one line that is no error."""
    warnings.warn(" ".join(message.split()), DiptychWarning, stacklevel=2)


def pick(kind: str, name: str, choices: Iterable[str], listed_by: str = "") -> str:
    """Return `name` when it is among `choices`, else raise a `UserError` that lists what there is."""
    choices = list(choices)
    if name in choices:
        return name
    raise unknown(f"unknown {kind} {name!r}", name, sorted(choices), listed_by)


def unknown(what: str, name: object, choices: Iterable[str], listed_by: str = "") -> UserError:
    """What to raise for a name that is none of `choices`: all that there are, and the one that was probably meant.

    listed_by: the command that lists them, where there are too many for a line.
    """
    choices = list(choices)
    if listed_by:
        return UserError(f"{what}{hint(name, choices) or ':'} {listed_by} lists all {len(choices)}")
    return UserError(f"{what}: choose one of {', '.join(choices)}{hint(name, choices)}")


def hint(name: object, choices: Iterable[str]) -> str:
    """`"; did you mean steps?"` for a mistyped name, nothing where no known one is like it."""
    import difflib  # only where a mistake was made: it takes longer to import than all else here

    lower = {other.lower(): other for other in choices}
    matches = difflib.get_close_matches(str(name).lower(), lower, n=1, cutoff=0.7)
    return f"; did you mean {lower[matches[0]]}?" if matches else ""


def disk_error(error: OSError, target: os.PathLike | str | None = None) -> UserError:
    """What the operating system refused, in one line; `target` is what was to be written, if anything was."""
    number, reason = error.errno, error.strerror or str(error) or type(error).__name__
    path = error.filename if target is None else target
    place = re.sub(r"/\.diptych-partial-\w{8}(/new|/old)?", "", os.fsdecode(path) if _is_path(path) else "a file")
    if number in (errno.ENOSPC, errno.EDQUOT):
        return UserError(f"the disk is full: could not write {place}; free some space and run again")
    if target is not None and number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return UserError(f"no permission to write {place}")
    if number in (errno.EEXIST, errno.ENOTDIR):
        return UserError(f"{place}: there is a file where a folder is needed: name another place")
    if number == errno.ENAMETOOLONG:
        return UserError(f"the name {place[:80]}... is too long for the disk")
    return UserError(f"could not {'read or ' if target is None else ''}write {place}: {reason}")


def _is_path(value: object) -> bool:
    return isinstance(value, (str, bytes, os.PathLike))
