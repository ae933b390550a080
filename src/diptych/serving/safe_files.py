"""Files that a server hands out: a package's own pages, and files of one folder that no name leads out of."""

from __future__ import annotations

import os
import re
import stat
from importlib import resources
from pathlib import Path

from diptych.core.disk import real

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".png": "image/png",
    ".svg": "image/svg+xml",
}
"""Content types by the end of a name; nothing else is handed out."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*(\.[a-z0-9]+)?")


def content_type(name: str) -> str | None:
    return TYPES.get(os.path.splitext(name)[1])


def page_files(package: str, folder: str) -> dict[str, bytes]:
    """The pages, scripts and styles in a folder of a package, by name, read once: a request only ever looks one up."""
    place = resources.files(package) / folder
    return {entry.name: entry.read_bytes() for entry in place.iterdir() if content_type(entry.name)}


def read_inside(folder: Path, name: str) -> bytes | None:
    """The bytes of the regular file of this name in `folder`; none where there is no such file.

    None too for a name that is more than a name ("../x", "/x", "a/b", ".x"), for a link, wherever it leads, and where
    the folder itself lies behind a link out of the one above it.
    """
    if not NAME.fullmatch(name):
        return None
    if real(folder).parent != real(folder.parent):
        return None
    try:
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return None
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)
