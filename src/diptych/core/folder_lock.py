"""A folder held by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from diptych.core.disk import make_folder


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
