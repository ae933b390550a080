"""Walking a folder of data: regular files, without those of the operating system; errors are collected."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from diptych.data.caption_text import one_line
from diptych.data.quarantine import BrokenExample

SYSTEM_FILES = ("__macosx", "@eadir", "thumbs.db", "desktop.ini")
"""Files that operating systems write into folders, besides names that begin with a dot."""
MAX_IMAGE_BYTES = 2**28
"""Bytes of an encoded image: more than any that is within the limit on pixels."""


def is_system_file(name: str) -> bool:
    """Whether a file or folder of this name is the system's and not the user's (`._cat.png`, `Thumbs.db`)."""
    return (name.startswith(".") and name not in (".", "..")) or name.casefold() in SYSTEM_FILES


def walk(folder: Path, problems: dict[str, str], folders_seen: list[str] | None = None) -> Iterator[Path]:
    """Every regular file under a folder, links to folders followed, each folder once, and none that holds this one.

    What cannot be read gets an entry in `problems`: its path from the folder, and why. A pipe or a socket is never
    opened, so none can stop a reader. `folders_seen` gets the folders, each when all of its files were seen.
    """
    seen: set[tuple[int, int]] = set()

    def relative_name(path: str | Path) -> str:
        return one_line(os.path.relpath(path, folder))

    def record(error: OSError) -> None:
        problems[relative_name(str(error.filename))] = f"cannot be read: {error.strerror}"

    root = os.path.realpath(folder)
    for place, folders, files in os.walk(folder, followlinks=True, onerror=record):
        with contextlib.suppress(OSError):
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in seen:  # also a link in a circle
                problems[relative_name(place)] = "a link to a folder that is read already"
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
        for name in [name for name in folders if os.path.islink(os.path.join(place, name))]:
            target = os.path.realpath(os.path.join(place, name))
            if os.path.commonpath((root, target)) == target:  # up, to more than was meant: the root of all, perhaps
                problems[relative_name(os.path.join(place, name))] = "a link to a folder that holds this one"
                folders.remove(name)
        if folders_seen is not None:
            folders_seen.append(place)
        folders[:] = sorted(name for name in folders if not is_system_file(name))
        for name in sorted(files):
            if is_system_file(name):
                continue
            path = Path(place, name)
            try:
                regular = stat.S_ISREG(path.stat().st_mode)
                reason = None if regular else "no regular file"
            except OSError as error:
                reason = "a link to nothing" if path.is_symlink() else f"cannot be read: {error.strerror}"
            if reason is None:
                yield path
            else:
                problems[relative_name(path)] = reason


def read_bounded(path: Path, most: int = MAX_IMAGE_BYTES) -> bytes:
    """The bytes of a file. Raises `BrokenExample` for more than `most` bytes: a sparse file could fill all memory."""
    with open(path, "rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise BrokenExample(f"larger than {most // 2**20} MiB")
        return file.readall()


def read_start(path: Path, size: int) -> bytes:
    """So many bytes from the start of a file, or all of a shorter one. Raises `OSError`."""
    with open(path, "rb", buffering=0) as file:
        return os.pread(file.fileno(), size, 0)
