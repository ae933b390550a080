"""A pool of open files: a data set may have more shards than a process may open files."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from diptych.core.errors import UserError

MIN_OPEN, MAX_OPEN = 8, 512
Identity = tuple[int, int, int, int]
"""Device, number, size and time of a file: another file of the same name has others."""


@dataclasses.dataclass
class _Open:
    number: int
    users: int = 0


class OpenFiles:
    """Files open for reading; the least recently used is closed when there are too many. Thread-safe.

    A file that is opened again must be unchanged: a folder replaced meanwhile never mixes two builds.
    """

    def __init__(self, most: int | None = None) -> None:
        self.most = most or default_limit()
        self._open: collections.OrderedDict[tuple[Path, Identity], _Open] = collections.OrderedDict()
        self._lock = threading.Lock()

    def identify(self, path: Path) -> Identity:
        """Open a file and return its identity. Raises `OSError`."""
        with self._lock:
            number = self._new(path)
            identity = identity_of(os.fstat(number))
            if (path, identity) in self._open:
                os.close(number)
            else:
                self._open[path, identity] = _Open(number)
        return identity

    @contextlib.contextmanager
    def opened(self, path: Path, identity: Identity) -> Iterator[int]:
        """The descriptor of a file that `identify` named. Raises `OSError`, or a `UserError` if it is another now."""
        file = self._take(path, identity)
        try:
            yield file.number
        finally:
            self._release(file)

    def read(self, path: Path, identity: Identity, start: int, size: int) -> bytes:
        """So many bytes of a file from there on, fewer at its end. Raises as `opened`, at a third of its cost."""
        file = self._take(path, identity)
        try:
            return os.pread(file.number, size, start)
        finally:
            self._release(file)

    def _take(self, path: Path, identity: Identity) -> _Open:
        """A file that stays open until it is released."""
        key = path, identity
        with self._lock:
            if (file := self._open.get(key)) is None:
                number = self._new(path)
                if identity_of(os.fstat(number)) != identity:
                    os.close(number)
                    raise UserError(f"{path} was replaced while it was read: start again")
                file = self._open[key] = _Open(number)
            self._open.move_to_end(key)
            file.users += 1
            return file

    def _release(self, file: _Open) -> None:
        with self._lock:
            file.users -= 1

    def forked(self) -> None:
        """In a new process: no thread of the old one is there to release the lock, or to end a use. The descriptors
        are shared, and reads name their places."""
        self._lock = threading.Lock()
        for file in self._open.values():
            file.users = 0

    def _new(self, path: Path) -> int:
        """Open one more, after others were closed if there are too many, for this limit or the process's."""
        self._close_idle(self.most - 1)
        try:
            return open_descriptor(path)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            self.most = max(1, len(self._open) // 2)  # others need them too
            self._close_idle(self.most - 1)
            return open_descriptor(path)

    def _close_idle(self, most: int) -> None:
        """Close unused files, the least recently used first, until at most `most` are open."""
        for key in [key for key, file in self._open.items() if not file.users]:
            if len(self._open) <= most:
                return
            os.close(self._open.pop(key).number)


def open_descriptor(path: Path) -> int:
    """The descriptor of a file, if there is room for another one then (to map it). Raises `OSError`."""
    number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        os.close(os.dup(number))
    except OSError:
        os.close(number)
        raise
    return number


def identity_of(status: os.stat_result) -> Identity:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def default_limit() -> int:
    """A quarter of the files that the process may open."""
    try:
        import resource
    except ImportError:  # Windows
        return MIN_OPEN * 8
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return MAX_OPEN if soft == resource.RLIM_INFINITY else max(MIN_OPEN, min(MAX_OPEN, soft // 4))


FILES = OpenFiles()
"""Shared by all shards of the process."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=FILES.forked)
