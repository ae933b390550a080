"""Files of the history: whole on the disk, or not there."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from diptych.core.errors import disk_error
from diptych.studio.limits import StorageError

PARTIAL = ".partial"
"""Ending of the name of a file that is being written."""


@contextlib.contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """Write a file: whole on the disk, then under its name. Raises a `StorageError`, and leaves nothing then."""
    partial = path.with_suffix(f".{secrets.token_hex(4)}{PARTIAL}")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise StorageError(str(disk_error(OSError(error.errno, error.strerror), "the image"))) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
