"""The quarantine: broken examples with place and reason, counted; too many of them stop a run."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from PIL import Image

from diptych.core.errors import UserError

log = logging.getLogger(__name__)
MIN_SEEN = 20
MAX_LOGGED = 5
"""Examples that are logged one by one; the others are in the file."""
RESOURCE_ERRORS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
"""Errors of exhausted resources, which say nothing about the file."""
AWAY_ERRORS = (errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENODEV)
"""Errors of a file system that does not answer, which say nothing about the file either."""


class BrokenExample(ValueError):
    """An example cannot be used; the message says why."""


def broken_image(error: Exception) -> BrokenExample:
    """What becomes of an error that Pillow raises for an encoded image."""
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return BrokenExample(f"more than {Image.MAX_IMAGE_PIXELS or 0:,} pixels")
    reason = " ".join(str(error).split())[:120]
    return BrokenExample(reason if reason.startswith("not a ") else f"a damaged image ({reason})")


def reason_of(error: Exception, what: str) -> str:
    """Why an example cannot be read, in words. Raises a `UserError` where memory or file descriptors are exhausted, or
    a file system is away: good data must not go into the quarantine for that.

    what: the name of what was read, for that error.
    """
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in RESOURCE_ERRORS):
        if isinstance(error, OSError) and error.errno != errno.ENOMEM:
            raise UserError(f"too many open files while {what} was read: raise the limit (`ulimit -n`)") from None
        raise UserError(f"out of memory while {what} was read: free some, or lower training.workers") from None
    if isinstance(error, OSError) and error.errno in AWAY_ERRORS:
        raise UserError(f"{what}: its disk does not answer ({error.strerror}); a rerun goes on from here") from None
    if isinstance(error, BrokenExample):
        return str(error)
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read: {error.strerror}"
    return f"cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:200]})"


@contextlib.contextmanager
def silent(quiet: bool = True) -> Iterator[None]:
    """Within, the quarantine logs nothing: a report or another process does."""
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
        self.lost = 0
        """Number of examples in shards that cannot be read, as far as it is known; not among `broken`."""
        self.seen = 0
        """Number of examples read since the last `restart`; the caller counts."""
        self.broken: dict[tuple[str, str], str] = {}
        self.skipped: Mapping[str, str] = {}
        """Files and members that are no examples: name -> reason; part of `reasons`."""
        self.changed: dict[tuple[str, str], str] = {}
        """Changed examples: (shard or folder, key) -> change, such as a cut caption."""
        self._before = 0
        self._listed: set[tuple[str, str]] | None = None
        self._pending: list[tuple[str, str, str]] = []

    def add(self, where: str, key: str, reason: str) -> None:
        """Add a broken example; `check` raises where there are too many."""
        if (where, key) not in self.broken:
            self.broken[where, key] = reason
            self._log(len(self.broken), f"left out: {key} in {where}: {reason}", "examples are left out")
            self._write(where, key, reason)

    def record_change(self, where: str, key: str, change: str) -> None:
        """Add a change of an example that stays in use."""
        if (where, key) not in self.changed:
            self.changed[where, key] = change
            self._log(len(self.changed), f"{key} in {where}: {change}", "captions are cut")
            self._write(where, key, change)

    def restart(self) -> None:
        """Reset the counts; broken examples stay broken. (Captions are all read first, images one by one.)"""
        self.seen, self._before = 0, len(self.broken)

    def check(self) -> None:
        """Raise a `UserError` when too many of the examples seen are broken, once at least 20 were seen."""
        broken = len(self.broken) - self._before
        if self.seen >= MIN_SEEN and broken > self.max_rate * self.seen:
            raise UserError(
                f"{broken} of {self.seen} examples are broken, above the limit of {self.max_rate:.1%}: repair or "
                "remove them (`diptych data check` lists all), or raise data.max_failure_rate "
                f"({self.reasons(self._before)})"
            )

    def lose(self, lost: int, left: int) -> None:
        """Note how many examples of shards cannot be read. Raises a `UserError` where they are too many."""
        self.lost = lost
        if lost + left >= MIN_SEEN and lost > self.max_rate * (lost + left):
            raise UserError(
                f"{lost:,} of {lost + left:,} examples are in shards that cannot be read, above the limit of "
                f"{self.max_rate:.1%}: bring them back, or raise data.max_failure_rate ({self.reasons()})"
            )

    def reasons(self, first: int = 0, most: int = 3) -> str:
        """The commonest reasons, each with its count and one example."""
        entries = list(self.broken.items())[first:]
        times = Counter(reason for _, reason in entries)
        example = {reason: f"{key} in {where}" for (where, key), reason in reversed(entries)}
        lines = [
            f"{example[one]}: {one}" + (f", and {n - 1} more" if n > 1 else "") for one, n in times.most_common(most)
        ]
        lines += [f"{len(times) - most} other reasons"] if len(times) > most else []
        return "; ".join([*lines, *(f"{name}: {reason}" for name, reason in list(self.skipped.items())[:most])])

    def flush(self) -> None:
        """Write the pending lines, if the folder exists."""
        if self.path is None or not self._pending or not self.path.parent.is_dir():
            return
        pending, self._pending = self._pending, []
        try:
            if self._listed is None:  # a rerun does not list the same example twice
                lines = self.path.read_text().splitlines() if self.path.exists() else []
                entries = [json.loads(line) for line in lines]
                self._listed = {(entry["shard"], entry["key"]) for entry in entries}
            new = {(where, key): reason for where, key, reason in pending if (where, key) not in self._listed}
            self._listed |= new.keys()
            with open(self.path, "a") as file:
                for (where, key), reason in new.items():
                    file.write(json.dumps({"shard": where, "key": key, "reason": reason}) + "\n")
        except (OSError, ValueError, KeyError, TypeError) as error:  # a folder that may not be written to, say
            log.warning("cannot list what is left out in %s: %s", self.path, error)
            self.path = None

    def forget(self) -> None:
        """Drop the pending lines: another process writes them."""
        self._pending.clear()

    def _write(self, where: str, key: str, reason: str) -> None:
        if self.path is not None:
            self._pending.append((where, key, reason))
            self.flush()

    def _log(self, number: int, line: str, more: str) -> None:
        if number <= MAX_LOGGED:
            log.warning("%s", line)
        elif number == MAX_LOGGED + 1:
            log.warning("more %s%s", more, f": {self.path} lists all" if self.path else "")


class Marks:
    """True or false for each of many numbers: a bit each. Thread-safe."""

    def __init__(self, count: int) -> None:
        self._bits, self._lock = bytearray(-(-count // 8)), threading.Lock()

    def __getitem__(self, number: int) -> bool:
        return bool(self._bits[number >> 3] >> (number & 7) & 1)

    def __setitem__(self, number: int, value: bool) -> None:
        with self._lock:
            mark = 1 << (number & 7)
            self._bits[number >> 3] = self._bits[number >> 3] & ~mark | mark * value

    def __getstate__(self) -> bytearray:
        return self._bits

    def __setstate__(self, bits: bytearray) -> None:
        self._bits, self._lock = bits, threading.Lock()
