"""The SHA-256 of files, large ones hashed once."""

from __future__ import annotations

import contextlib
import hashlib
import re
from pathlib import Path

from diptych.core.caches import cache_folder, short_hash
from diptych.core.errors import UserError

REMEMBERED = 2**20
"""Bytes from which on the hash of a file is kept beside its size and time, so that models are read for it once."""


def named_file(path: str | Path) -> dict[str, str]:
    """A file as metadata: its place below the working folder, else its name alone, and its hash."""
    path = Path(path)
    with contextlib.suppress(ValueError):
        return {"file": path.resolve().relative_to(Path.cwd()).as_posix(), "sha256": file_sha256(path)}
    return {"file": path.name, "sha256": file_sha256(path)}


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hex. A `UserError` where it cannot be read."""
    real = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", real.name) and real.parent.name == "blobs":  # the hub's cache, checked when opened
        return real.name
    try:
        stat = real.stat()
        seen = f"{stat.st_size} {stat.st_mtime_ns} "
        known = remembered(real)
        if stat.st_size >= REMEMBERED and known.is_file() and (text := known.read_text()).startswith(seen):
            return text.removeprefix(seen).strip()
        with real.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if stat.st_size >= REMEMBERED:
        from diptych.core.disk import write_text

        with contextlib.suppress(OSError, UserError):
            write_text(known, f"{seen}{digest}\n")
    return digest


def remembered(path: Path) -> Path:
    """Where a file's hash is kept: $DIPTYCH_CACHE/hashes, else ~/.cache/diptych/hashes."""
    return cache_folder("hashes", short_hash(str(path), 32))
