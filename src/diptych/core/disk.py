"""Atomic writes of files and folders, and checks before any is replaced or deleted.

Everything that diptych writes is made in a temporary folder next to its target, `.diptych-partial-...`, synced, and
then renamed. A folder is replaced or deleted only where a `Written` recognises every file in it; anything else is
refused by name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import fnmatch
import itertools
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.core.errors import UserError, disk_error

PARTIAL_PREFIX = ".diptych-partial-"
"""Prefix of temporary folders."""
_swept: set[Path] = set()
"""Folders that this process has cleared of the leftovers of killed ones."""


@dataclass(frozen=True)
class Written:
    """A kind of folder that diptych writes, and how one is recognised."""

    what: str
    """For messages: "precomputed data"."""
    names: tuple[str, ...]
    """Globs of all its files, relative; `*` does not match "/"."""
    sign: Callable[[Path], bool]
    """Whether a folder's own files say that it is of this kind."""
    beside: bool = False
    """Whether it may hold other files too, which are copied when it is replaced."""

    def foreign(self, folder: Path) -> str | None:
        """The first entry, by name, that diptych did not write there; links are never ours."""
        patterns = [pattern.split("/") for pattern in self.names]
        for path in sorted(_entries(folder)):
            parts = path.relative_to(folder).parts
            if self.beside and not any(fnmatch.fnmatchcase(parts[0], pattern[0]) for pattern in patterns):
                continue
            if path.is_dir() and not path.is_symlink():
                matching = (pattern[: len(parts)] for pattern in patterns if len(pattern) > len(parts))
            elif path.is_file() and not path.is_symlink():
                matching = (pattern for pattern in patterns if len(pattern) == len(parts))
            else:
                return str(path.relative_to(folder))
            if not any(all(map(fnmatch.fnmatchcase, parts, pattern)) for pattern in matching):
                return str(path.relative_to(folder))
        return None

    def require(self, folder: Path) -> None:
        """Raise a `UserError` unless there is nothing at `folder`, or an empty folder, or one of this kind."""
        if not os.path.lexists(folder):
            return require_place(folder)
        if not folder.is_dir():
            what = "a link to nothing" if folder.is_symlink() else "a file"
            raise UserError(f"{folder} is {what}, not {self.what}: name another folder")
        place = real(folder)
        if place == Path.cwd() or place == real(Path.home()) or place in Path.cwd().parents:
            raise UserError(f"{folder} is the folder {place} itself: name a new folder in it for {self.what}")
        if not any(folder.iterdir()):
            return
        if not self.sign(folder):
            raise UserError(f"{folder} is there already and is not {self.what}: name another folder")
        if name := self.foreign(folder):
            raise UserError(f"{folder} holds {name}, which is no part of {self.what}: move it, or name another folder")


def require_place(folder: Path) -> None:
    """Raise a `UserError` where no folder could be made, before any work: a file stands there or above, or a link to
    nothing, a name is too long, or nobody may write. Nothing is made."""
    with disk_errors(folder):
        place = folder
        while True:
            try:
                mode = os.stat(place).st_mode
            except FileNotFoundError:
                if place.is_symlink():  # to nothing
                    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(place)) from None
                place = place.parent
                continue
            if not stat.S_ISDIR(mode):
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(place))
            if place != folder and not os.access(place, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
            return


def real(path: Path) -> Path:
    """Where a path leads, whatever links there are; links in a circle lead nowhere and are no error here."""
    return Path(os.path.realpath(path))


def values_of(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


@contextlib.contextmanager
def replacing(target: Path, kind: Written | None = None) -> Iterator[Path]:
    """Yield a path to write a file or a folder at; afterwards it is synced and renamed to `target`.

    A file is replaced. A folder is replaced only where it is of this `kind`, both before and after the body; without
    one, only where it is empty. A link keeps its place, what it points to is replaced. A crash at any moment leaves the
    old `target` or the new one, never a part (between the two renames that replace a folder: none, and the next run
    puts the old one back). When the body fails, what it wrote is removed. What the disk refuses raises a `UserError`.
    """
    stated, target = Path(target), real(target)
    guard = kind or Written("a file", (), lambda folder: False)
    if kind is not None or target.is_dir():
        guard.require(stated)
    with disk_errors(stated):
        make_folder(target.parent)
        with _holding(target.parent) as holding:
            made = holding / "new" / target.name
            made.parent.mkdir()
            yield made
            _put(made, stated, target, guard, holding)


def put(made: Path, target: Path, kind: Written) -> None:
    """Give a finished folder its place, on the same disk, as `replacing` does."""
    stated, target = Path(target), real(target)
    kind.require(stated)
    with disk_errors(stated):
        make_folder(target.parent)
        with _holding(target.parent) as holding:
            _put(made, stated, target, kind, holding)


def _put(made: Path, stated: Path, target: Path, kind: Written, holding: Path) -> None:
    sync_all(made)
    if target.is_dir():  # a folder cannot be renamed onto a folder
        kind.require(stated)
        old = holding / "old" / target.name
        old.parent.mkdir()
        os.rename(target, old)
        try:
            os.rename(made, target)
        except BaseException:
            os.rename(old, target)
            raise
    else:
        os.replace(made, target)
    sync(target.parent)


def write_new(folder: Path, stem: str, suffix: str, write: Callable[[Path], Any]) -> Path:
    """Let `write` make a file, and give it the first place of `stem.suffix`, `stem-2.suffix`, ... in `folder` that is
    not taken. It appears there whole, and nothing is ever overwritten, also not by two processes at once."""
    with disk_errors(folder), _holding(folder) as holding:
        made = holding / f"new{suffix}"
        write(made)
        sync(made)
        for number in itertools.count(1):
            path = folder / (f"{stem}{suffix}" if number == 1 else f"{stem}-{number}{suffix}")
            if _move_new(made, path):
                sync(folder)
                return path
    raise AssertionError("there is always a next number")


def _move_new(made: Path, path: Path) -> bool:
    """Give a file its place unless that is taken."""
    try:
        os.link(made, path)  # unlike a rename, it never replaces
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK):
            raise
    if os.path.lexists(path):  # a file system without links
        return False
    os.rename(made, path)
    return True


@contextlib.contextmanager
def _holding(parent: Path) -> Iterator[Path]:
    """A new folder in `parent`, held by a lock while it is in use and then removed with all that is in it."""
    if parent not in _swept:
        _swept.add(parent)
        sweep(parent)
    while True:
        holding = Path(tempfile.mkdtemp(prefix=PARTIAL_PREFIX, dir=parent))
        try:
            descriptor = os.open(holding, os.O_RDONLY)
        except FileNotFoundError:  # swept by another process or thread already
            continue
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # waits for one that is sweeping it
        if holding.is_dir():  # not swept before the lock was there
            break
        os.close(descriptor)
    try:
        yield holding
    finally:
        shutil.rmtree(holding, ignore_errors=True)
        os.close(descriptor)


def sweep(parent: Path) -> None:
    """Remove what killed processes left half-made in a folder; an old folder whose place is empty goes back there."""
    for holding in parent.glob(f"{PARTIAL_PREFIX}*"):
        with contextlib.suppress(OSError):
            if not _left_behind(holding):
                continue
            descriptor = os.open(holding, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while another process works in it
                for old in (holding / "old").glob("*"):
                    if not os.path.lexists(parent / old.name):
                        os.rename(old, parent / old.name)
                shutil.rmtree(holding)
            finally:
                os.close(descriptor)


def _left_behind(holding: Path) -> bool:
    """Whether a folder is named and filled as `_holding` makes one."""
    match = re.fullmatch(re.escape(PARTIAL_PREFIX) + r"[a-z0-9_]{8}", holding.name)
    if not match or not stat.S_ISDIR(holding.lstat().st_mode):
        return False
    return all(path.name in ("new", "old") or path.name.startswith("new.") for path in holding.iterdir())


@contextlib.contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn what the disk refuses into a `UserError` that names the file."""
    try:
        yield
    except BrokenPipeError:  # of what is printed meanwhile
        raise
    except OSError as error:
        if error.errno is None:  # not of the disk: an image that cannot be decoded, say
            raise
        ours = error.filename is None or _within(Path(os.fsdecode(error.filename)), target)
        raise disk_error(error, target if ours else None) from error
    except Exception as error:
        # safetensors tells of the disk in words: "Error while serializing: I/O error: ... (os error 28)"
        match = re.search(r"os error (\d+)|Os \{ code: (\d+)", str(error))
        if type(error).__name__ != "SafetensorError" or not match:
            raise
        number = int(match[1] or match[2])
        raise disk_error(OSError(number, os.strerror(number)), target) from error


def _within(path: Path, target: Path) -> bool:
    """Whether a path is a target, in it, where it is made, or a folder above it."""
    path, target = Path(os.path.abspath(path)), Path(os.path.abspath(target))
    return PARTIAL_PREFIX in str(path) or path.is_relative_to(target) or target.is_relative_to(path)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it. A `UserError` where there is a file, or the disk refuses."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)


def remove(path: Path) -> None:
    """Delete a file, a link, or a folder that diptych has just made. What may be a user's goes through `Written`."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync_all(path: Path) -> None:
    """`sync` a file, or a folder and all that is in it."""
    for one in [*path.rglob("*"), path]:  # a file has no children: only itself
        sync(one)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _entries(folder: Path) -> Iterator[Path]:
    """All that is in a folder and below it; links are not followed."""
    for path in folder.iterdir():
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _entries(path)
