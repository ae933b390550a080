"""Compiled networks on disk: opened in half the time that compiling takes.

A file is a line of JSON, which says what it holds and the checksum of what follows. Whatever differs (a version, the
processor, a cut or changed file) makes it as good as not there: it is compiled and written again.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diptych.core.caches import cache_folder, short_hash
from diptych.engines.say_once import tell

SUFFIX, PART = ".compiled", ".part"
STALE = 3600
"""Seconds after which a file that is being written is of a process that ended in the midst of it."""
MOST_BYTES = 4 * 2**30
"""Of all files together; those unused for longest go first. $DIPTYCH_COMPILED_BYTES says otherwise."""
LARGEST_BYTES = 2**30
"""Of one: larger networks are compiled in about the time in which so much is read."""
SOURCES = ("networks", "engines")
"""Rooms whose code decides what is compiled."""


@functools.cache
def code_hash() -> str:
    """A hash of the code of `SOURCES`."""
    digest, package = hashlib.sha256(), Path(__file__).resolve().parent.parent
    for path in sorted(path for room in SOURCES for path in (package / room).glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:16]


class Stored(NamedTuple):
    """The content of a file."""

    key: dict[str, Any]
    body: np.ndarray


def read(key: Mapping[str, Any]) -> np.ndarray | None:
    """The bytes that were stored under a key, if any were. A `ValueError` says what is wrong with a file."""
    path = path_of(key)
    stored = read_file(path)
    if stored is None or stored.key != dict(key):
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # used just now
    return stored.body


def read_file(path: Path) -> Stored | None:
    """A file, none where there is none. A `ValueError` says what is wrong with it."""
    try:
        with open(path, "rb") as file:
            head = json.loads(file.readline(1_000_000))
            body = np.fromfile(file, np.uint8)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is damaged") from None
    known = isinstance(head, dict) and isinstance(head.get("key"), dict)
    if not known or head.get("crc32") != zlib.crc32(body.data):
        raise ValueError(f"{path} is damaged")
    return Stored(head["key"], body)


def write(key: Mapping[str, Any], body: bytes | memoryview) -> None:
    """Store bytes under a key, where they are not too many; the files that were unused for longest make room. A disk
    that is full or may not be written costs nothing but the time to compile again, and a line says so."""
    most = most_bytes()
    if len(body) > min(LARGEST_BYTES, most):
        return
    path = path_of(key)
    part = path.with_name(f"{path.name}.{os.getpid()}{PART}")
    head = json.dumps({"crc32": zlib.crc32(body), "key": dict(key)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        make_room(most - len(body))
        with open(part, "wb") as file:
            file.write(head.encode() + b"\n")
            file.write(body)
        os.replace(part, path)
    except OSError as error:
        why = error.strerror or error
        tell(f"what is compiled cannot be kept in {path.parent} ({why}): the next process compiles it again")
    with contextlib.suppress(OSError):
        part.unlink(missing_ok=True)


def most_bytes() -> int:
    """$DIPTYCH_COMPILED_BYTES, where that is a number; else `MOST_BYTES`."""
    said = os.environ.get("DIPTYCH_COMPILED_BYTES") or str(MOST_BYTES)
    if said.strip().isdecimal():
        return int(said)
    tell(f"$DIPTYCH_COMPILED_BYTES is {said[:40]!r}, no number of bytes: {MOST_BYTES} are kept")
    return MOST_BYTES


def make_room(most: int) -> None:
    """Remove the files that were unused for longest, until the others have at most so many bytes together."""
    files, used = list[tuple[os.stat_result, Path]](), 0
    for path in cache_folder("compiled").iterdir():
        with contextlib.suppress(OSError):  # another process may have removed it
            stat = path.stat()
            if path.suffix == SUFFIX:
                files.append((stat, path))
            elif path.suffix == PART and stat.st_mtime < time.time() - STALE:
                path.unlink(missing_ok=True)
    for stat, path in sorted(files, key=lambda pair: pair[0].st_mtime, reverse=True):
        used += stat.st_size
        if used > most:
            path.unlink(missing_ok=True)


def path_of(key: Mapping[str, Any]) -> Path:
    """The file of a key."""
    return cache_folder("compiled") / f"{short_hash(json.dumps(dict(key), sort_keys=True))}{SUFFIX}"
