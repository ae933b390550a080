"""Arrays of an index on disk: memory-mapped, so that processes share them, and written so that a kill loses little.

The index of a data path is a folder under $DIPTYCH_CACHE/index. It holds `pieces`, one file for each shard, so that
only what is new or has changed is read again, and folders of arrays, which all of the data's pieces make together.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import json
import math
import os
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diptych.core.caches import cache_folder, short_hash
from diptych.core.disk import Written, replacing, values_of
from diptych.core.errors import UserError
from diptych.core.terminal import print_err

VERSION = 1
"""Of what is written: an index of another one is made again."""
SETTLED = 2 * 10**9
"""Nanoseconds after which a file's time tells another change: a younger file may change once more and keep its time, so
its index is not kept."""
WHOLE = Written("an index of data", ("*.npy", "notes.json"), lambda folder: "index" in values_of(folder / "notes.json"))
SMALL = 2**16
"""Bytes up to which an array is in memory."""


class ArrayParts(NamedTuple):
    """An array (N,) that comes in parts, so that it is never in memory as a whole."""

    dtype: np.dtype
    total: int
    parts: Callable[[], Iterable[np.ndarray]]

    def fill(self, array: np.ndarray) -> None:
        at = 0
        for part in self.parts():
            array[at : at + len(part)] = part
            at += len(part)


class Arrays(Mapping[str, np.ndarray]):
    """Arrays by name, memory-mapped from a folder if there is one, and notes. Another process opens them by name."""

    def __init__(self, arrays: Mapping[str, np.ndarray], notes: dict[str, Any], folder: Path | None = None) -> None:
        self._arrays, self.notes, self.folder = dict(arrays), notes, folder

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.folder is not None:
            return reopen, (self.folder,)
        return Arrays, ({name: np.array(array) for name, array in self._arrays.items()}, self.notes)


def reopen(folder: Path) -> Arrays:
    """The arrays of a folder. Raises a `UserError` where it is gone."""
    if (arrays := open_arrays(folder)) is None:
        raise UserError(f"the index {folder} is gone: the data was changed meanwhile, start again")
    return arrays


def open_arrays(folder: Path) -> Arrays | None:
    """The arrays of a folder, or none where there is no whole one."""
    try:
        notes = json.loads((folder / "notes.json").read_text(encoding="utf-8"))
        if notes.pop("index") != VERSION:
            return None
        return Arrays({path.stem: load_array(path) for path in folder.glob("*.npy")}, notes, folder)
    except (OSError, ValueError, KeyError, EOFError):
        return None


def load_array(path: Path) -> np.ndarray:
    """An array of a file: memory-mapped, unless it is small (an empty one cannot be mapped)."""
    return np.load(path, mmap_mode="r" if path.stat().st_size > SMALL else None, allow_pickle=False)


def text_columns(name: str, texts: Sequence[bytes]) -> dict[str, np.ndarray]:
    """Texts as two arrays: "NAME", their bytes end to end, and "NAME_ends", where each ends."""
    ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
    return {name: np.frombuffer(b"".join(texts), np.uint8), f"{name}_ends": ends}


def text_at(arrays: Mapping[str, np.ndarray], name: str, index: int) -> bytes:
    """One of the texts of `text_columns`."""
    ends = arrays[f"{name}_ends"]
    return arrays[name][int(ends[index - 1]) if index else 0 : int(ends[index])].tobytes()


def nameless(array: np.ndarray | ArrayParts) -> np.ndarray:
    """The same array in a file without a name, which goes with the process: its memory can be written back there."""
    dtype, shape = array.dtype, (array.total,) if isinstance(array, ArrayParts) else array.shape
    made: np.ndarray | None = None
    if (size := dtype.itemsize * math.prod(shape)) > SMALL:
        with contextlib.suppress(OSError), tempfile.TemporaryFile() as file:  # none on a full disk
            os.posix_fallocate(file.fileno(), 0, size) if hasattr(os, "posix_fallocate") else file.truncate(size)
            made = np.memmap(file, dtype, "r+", shape=shape)
    if made is None:
        made = np.empty(shape, dtype)
    if isinstance(array, ArrayParts):
        array.fill(made)
    else:
        made[:] = array
    return made


class IndexFolder:
    """The index of one data path. What cannot be written is said once, and kept in memory instead."""

    def __init__(self, what: str) -> None:
        """what: the data path, or a pattern of addresses without their secrets."""
        self.what, self.folder = what, cache_folder("index", short_hash(what))

    def piece(self, name: str, kind: str) -> Path:
        """The file of a shard's piece of a kind."""
        return self.folder / "pieces" / f"{short_hash(name)}-{kind}.npz"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Within, no other process builds this index; it is waited for."""
        descriptor = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
            with contextlib.suppress(OSError):  # a file system without locks
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    print_err(f"{self.what}: another process is indexing this data, waiting for it")
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError:  # a home that may not be written to
            pass
        try:
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def put(
        self, name: str, arrays: Mapping[str, np.ndarray | ArrayParts], notes: dict[str, Any], keep: bool
    ) -> Arrays:
        """Keep arrays in the folder's `name`, memory-mapped, or in nameless files where they are not to be kept."""
        if keep:
            try:
                target = self.folder / name
                with replacing(target, WHOLE) as partial:
                    partial.mkdir()
                    for key, array in arrays.items():
                        if isinstance(array, ArrayParts) and array.total:
                            place = partial / f"{key}.npy"
                            file = np.lib.format.open_memmap(place, "w+", array.dtype, (array.total,))
                            array.fill(file)
                            file.flush()
                        else:
                            np.save(partial / f"{key}.npy", array if isinstance(array, np.ndarray) else nameless(array))
                    (partial / "notes.json").write_text(json.dumps({"index": VERSION, **notes}), encoding="utf-8")
                if (opened := open_arrays(target)) is not None:
                    return opened
            except UserError as error:
                print_err(f"the index is not kept: {error}")
        return Arrays({key: nameless(array) for key, array in arrays.items()}, notes)

    def forget_others(self, contents: str) -> None:
        """Remove the arrays of other contents, which the data had earlier. A process that reads them still can."""
        with contextlib.suppress(OSError):
            for folder in self.folder.glob("*-*"):
                if folder.is_dir() and folder.name.split("-")[1] != contents and not WHOLE.foreign(folder):
                    shutil.rmtree(folder, ignore_errors=True)


def settled(newest: int, read: int | None = None) -> bool:
    """Whether files, the newest of this time (ns), were so old when they were read, now or then, that another change
    would give them another time."""
    return newest < (read or time.time_ns()) - SETTLED


def write_piece(path: Path, identity: str, arrays: Mapping[str, np.ndarray], notes: dict[str, Any]) -> None:
    """Write a piece in one step. Raises `OSError`. A damaged one is noticed by its checksums and made again."""
    text = json.dumps({"version": VERSION, "identity": identity, **notes}).encode("utf-8", "surrogatepass")
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, notes=np.frombuffer(text, np.uint8), **arrays)  # type: ignore[arg-type]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(buffer.getbuffer())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_piece(path: Path, identity: str | None) -> tuple[dict[str, np.ndarray], dict[str, Any]] | None:
    """The arrays and notes of a piece, or none where there is none of this identity, or of any if it is none."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        notes = json.loads(arrays.pop("notes").tobytes().decode("utf-8", "surrogatepass"))
        if notes.pop("version") != VERSION or notes.pop("identity") != identity is not None:
            return None
        return arrays, notes
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
