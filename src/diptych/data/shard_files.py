"""Shards as files: which one it is, and its bytes in parts."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from diptych.core.errors import UserError
from diptych.data.openfiles import FILES, Identity, identity_of
from diptych.data.quarantine import reason_of
from diptych.data.shard_scan import Entry, ShardScan
from diptych.data.tars import View, mapped


class ShardFile(Protocol):
    """A shard that can be read by ranges of bytes."""

    name: str
    """In messages, and in the place of a path: relative to the data's folder, in one printable line."""
    identity: str | None
    """Another shard of this name, or a changed one, has another; none where it cannot be read."""
    problem: str
    """Why it cannot be read, if it cannot."""

    def whole(self) -> contextlib.AbstractContextManager[View]:
        """All bytes, to be scanned from first to last. Raises `OSError`, or `ValueError` for what is no shard."""
        ...

    def part(self, start: int, size: int) -> View:
        """So many bytes from there; reading them may raise `OSError`."""
        ...


class LocalShard:
    """A tar file on a disk. A `ShardFile`."""

    def __init__(self, path: Path, name: str) -> None:
        self.path, self.name, self.problem = path, name, ""
        self.file: Identity = (0, 0, 0, 0)
        self.identity: str | None = None
        try:
            self.file = identity_of(os.stat(path))
            self.identity = (
                f"{self.file[2]} {self.file[3]} {self.file[1]}"  # size, time, number: no device, it may vary
            )
        except OSError as error:
            self.problem = f"not a whole tar: {error.strerror}"

    @property
    def size(self) -> int:
        return self.file[2]

    @property
    def modified(self) -> int:
        """Time of the last change, in nanoseconds."""
        return self.file[3]

    def require_same(self) -> None:
        """Raise a `UserError` where the file is gone, or another one now, or was changed."""
        try:
            now = identity_of(os.stat(self.path))
        except OSError as error:
            raise UserError(
                f"{self.name} cannot be read any more ({error.strerror}): bring it back; a rerun goes on from here"
            ) from None
        if now != self.file:
            raise UserError(f"{self.name} was replaced while it was read: start again")

    @contextlib.contextmanager
    def whole(self) -> Iterator[View]:
        with FILES.opened(self.path, self.file) as number, mapped(number) as view:  # stays open: see `OpenFiles`
            yield view

    def part(self, start: int, size: int) -> View:
        return FilePart(self.path, self.file, start, size)

    def read(self, start: int, size: int) -> bytes:
        """These bytes, now. Raises `OSError`, or `ValueError` where the file ends before them."""
        data = FILES.read(self.path, self.file, start, size)
        if len(data) != size:
            raise ValueError("the file is cut off")
        return data


class FilePart:
    """A part of an open file, read when it is sliced (safe from several threads). A `View`."""

    def __init__(self, path: Path, file: Identity, start: int, size: int) -> None:
        self.path, self.file, self.start, self.size = path, file, start, size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: slice) -> bytes:
        first, last, _ = place.indices(self.size)
        if last <= first:
            return b""
        return FILES.read(self.path, self.file, self.start + first, last - first)


class Shard:
    """One tar file with all its entries in memory, for what is built of a few of them."""

    def __init__(self, path: Path) -> None:
        self.file, scan = LocalShard(path, path.name), ShardScan()
        self.path, self.entries = path, list(scan_entries(self.file, scan))
        self.problem, self.skipped = scan.problem, scan.skipped

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, index: int, extension: str) -> bytes:
        """The bytes of one member. Raises `BrokenExample` when it is too large, or the file ends before it does."""
        return self.entries[index].read(self.file.part(0, self.file.size), extension)


def scan_entries(file: ShardFile, scan: ShardScan) -> Iterator[Entry]:
    """The entries of a shard; `scan` gets the rest. Raises a `UserError` where memory or descriptors are exhausted."""
    for entry, _ in scan_shard(file, scan):
        yield entry


def scan_shard(file: ShardFile, scan: ShardScan) -> Iterator[tuple[Entry, View]]:
    """As `scan_entries`, each with the view from which its members can be read."""
    if file.identity is None:
        scan.problem = file.problem
        return
    try:
        with file.whole() as view:
            for entry in scan.entries(view):
                yield entry, view
    except ValueError as error:  # an empty file
        scan.problem = str(error)
    except OSError as error:
        reason_of(error, file.name)
        scan.problem = f"not a whole tar: {error.strerror or os.strerror(error.errno or errno.EIO)}"
