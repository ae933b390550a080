"""What lies in a folder of data: regular files by kind, what is no data passed over, what cannot be read named."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from diptych.data.caption_text import one_line
from diptych.data.quarantine import Broken

NO_DATA = ("__macosx", "@eadir", "thumbs.db", "desktop.ini")
"""What systems leave in folders, besides names that begin with a dot."""
LARGEST = 2**28
"""Bytes of an encoded picture: more than any that is within the limit on pixels."""


def no_data(name: str) -> bool:
    """Whether a file or folder of this name is the system's and not the user's (`._cat.png`, `Thumbs.db`)."""
    return (name.startswith(".") and name not in (".", "..")) or name.casefold() in NO_DATA


def walk(folder: Path, problems: dict[str, str]) -> Iterator[Path]:
    """Every regular file under a folder, links to folders followed, each folder once, and none that holds this one.

    What cannot be read gets an entry in `problems`: its path from the folder, and why. A pipe or a socket is never
    opened, so none can stop a reader.
    """
    seen: set[tuple[int, int]] = set()

    def named(path: str | Path) -> str:
        return one_line(os.path.relpath(path, folder))

    def note(error: OSError) -> None:
        problems[named(str(error.filename))] = f"cannot be read: {error.strerror}"

    here = os.path.realpath(folder)
    for place, folders, files in os.walk(folder, followlinks=True, onerror=note):
        with contextlib.suppress(OSError):
            status = os.stat(place)
            if (status.st_dev, status.st_ino) in seen:  # also a link in a circle
                problems[named(place)] = "a link to a folder that is read already"
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
        for name in [name for name in folders if os.path.islink(os.path.join(place, name))]:
            target = os.path.realpath(os.path.join(place, name))
            if os.path.commonpath((here, target)) == target:  # up, to more than was meant: the root of all, perhaps
                problems[named(os.path.join(place, name))] = "a link to a folder that holds this one"
                folders.remove(name)
        folders[:] = sorted(name for name in folders if not no_data(name))
        for name in sorted(files):
            if no_data(name):
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
                problems[named(path)] = reason


def read_bounded(path: Path, most: int = LARGEST) -> bytes:
    """The bytes of a file. Raises `Broken` where it is larger than `most`: it may be sparse, and fill all memory."""
    with open(path, "rb", buffering=0) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise Broken(f"larger than {most // 2**20} MiB")
        return file.readall()
