"""Examples that cannot be read: set aside with where they lie and why, counted, fatal only above a stated rate."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from diptych.core.errors import UserError

log = logging.getLogger(__name__)
MINIMUM_SEEN = 20
NAMED = 5
"""Examples that are named as they come; the rest is counted, and listed in the file."""
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors of a machine that has no more of something, which say nothing about the file that was to be opened."""


class Broken(ValueError):
    """What is wrong with an example, in words that its owner understands."""


def reason_of(error: Exception, what: str) -> str:
    """Why an example cannot be read, in words. Raises a `UserError` where it is not the example's fault: the memory or
    the open files of the machine are used up, and good data must not be set aside for that.

    what: what was being read, for that error.
    """
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in EXHAUSTED):
        if isinstance(error, OSError) and error.errno != errno.ENOMEM:
            raise UserError(f"too many open files while {what} was read: raise the limit (`ulimit -n`)") from None
        raise UserError(f"out of memory while {what} was read: free some, or lower training.workers") from None
    if isinstance(error, Broken):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read: {error.strerror}"
    return f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:200]})"


@contextlib.contextmanager
def silent(quiet: bool = True) -> Iterator[None]:
    """Within, nothing is said of what is set aside: a report will, or another process does."""
    before = log.level
    if quiet:
        log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


class Quarantine:
    """Counts what was read and what was broken; one JSON line a broken example goes into `path`.

    Lines wait until the folder of `path` is there: who makes it, a run or a cache, decides whether it comes to be.
    """

    def __init__(self, path: Path | None, max_rate: float) -> None:
        self.path, self.max_rate = path, max_rate
        self.seen = 0
        """Examples looked at since the last `restart`, each once; who looks counts."""
        self.broken: dict[tuple[str, str], str] = {}
        self.besides: Mapping[str, str] = {}
        """What else is known not to be read, and why: said together with what is broken."""
        self.changed: dict[tuple[str, str], str] = {}
        """What is read otherwise than it stands: captions that were cut."""
        self._before = 0
        self._known: set[tuple[str, str]] | None = None
        self._waiting: list[tuple[str, str, str]] = []

    def add(self, where: str, key: str, reason: str) -> None:
        """Set an example aside; `check` then says whether that is too many."""
        if (where, key) not in self.broken:
            self.broken[where, key] = reason
            self._say(len(self.broken), f"left out: {key} in {where}: {reason}", "examples are left out")
            self._write(where, key, reason)

    def note(self, where: str, key: str, change: str) -> None:
        """Keep what was changed in an example that stays."""
        if (where, key) not in self.changed:
            self.changed[where, key] = change
            self._say(len(self.changed), f"{key} in {where}: {change}", "captions are cut")
            self._write(where, key, change)

    def restart(self) -> None:
        """Count anew from here; what is set aside stays so. (Captions are all read first, pictures one by one.)"""
        self.seen, self._before = 0, len(self.broken)

    def check(self) -> None:
        """Raise a `UserError` when too many of the examples seen are broken, once at least 20 were seen."""
        broken = len(self.broken) - self._before
        if self.seen >= MINIMUM_SEEN and broken > self.max_rate * self.seen:
            raise UserError(
                f"{broken} of {self.seen} examples are broken, above the limit of {self.max_rate:.1%}: repair or "
                "remove them (`diptych data check` lists all), or raise data.max_failure_rate "
                f"({self.reasons(self._before)})"
            )

    def reasons(self, first: int = 0, most: int = 3) -> str:
        """The commonest reasons, each with how often it holds and one example."""
        entries = list(self.broken.items())[first:]
        times = Counter(reason for _, reason in entries)
        some = {reason: f"{key} in {where}" for (where, key), reason in reversed(entries)}
        said = [f"{some[one]}: {one}" + (f", and {n - 1} more" if n > 1 else "") for one, n in times.most_common(most)]
        said += [f"{len(times) - most} other reasons"] if len(times) > most else []
        return "; ".join([*said, *(f"{name}: {reason}" for name, reason in list(self.besides.items())[:most])])

    def flush(self) -> None:
        """Write the lines that wait, if the folder is there by now."""
        if self.path is None or not self._waiting or not self.path.parent.is_dir():
            return
        waiting, self._waiting = self._waiting, []
        try:
            if self._known is None:  # a rerun does not list the same example twice
                lines = self.path.read_text().splitlines() if self.path.exists() else []
                entries = [json.loads(line) for line in lines]
                self._known = {(entry["shard"], entry["key"]) for entry in entries}
            new = {(where, key): reason for where, key, reason in waiting if (where, key) not in self._known}
            self._known |= new.keys()
            with open(self.path, "a") as file:
                for (where, key), reason in new.items():
                    file.write(json.dumps({"shard": where, "key": key, "reason": reason}) + "\n")
        except (OSError, ValueError, KeyError, TypeError) as error:  # a folder that may not be written to, say
            log.warning("cannot list what is left out in %s: %s", self.path, error)
            self.path = None

    def forget(self) -> None:
        """Write nothing of what was set aside up to here: another process does."""
        self._waiting.clear()

    def _write(self, where: str, key: str, reason: str) -> None:
        if self.path is not None:
            self._waiting.append((where, key, reason))
            self.flush()

    def _say(self, number: int, line: str, more: str) -> None:
        if number <= NAMED:
            log.warning("%s", line)
        elif number == NAMED + 1:
            log.warning("more %s%s", more, f": {self.path} lists all" if self.path else "")
