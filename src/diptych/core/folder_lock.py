"""A folder held by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from diptych.core.disk import make_folder
from diptych.core.errors import UserError


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Within, no other process holds this folder, which is made where there is none; one that does is waited for."""
    make_folder(folder)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def held(folder: Path, what: str) -> Iterator[None]:
    """As `locked`, but a `UserError` where `what` holds the folder already."""
    make_folder(folder)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{what} is using {folder}: name another folder, or end that one first") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(descriptor)
