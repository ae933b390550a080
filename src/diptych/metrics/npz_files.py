"""Reading .npz files that others made: never a pickle, and one clear line for what is damaged."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from diptych.core.errors import UserError

DAMAGED = (OSError, ValueError, TypeError, EOFError, KeyError, NotImplementedError, RuntimeError)
DAMAGED += (zipfile.BadZipFile, zlib.error, struct.error)
"""What reading a damaged file may raise."""
SAMPLES = "arr_0"
"""Name of the images in an .npz."""


def is_npz(path: str | Path) -> bool:
    return Path(path).suffix.casefold() == ".npz"


def npz_names(path: Path) -> list[str]:
    """Of the arrays in a file. Raises a `UserError` where it is missing or damaged."""
    if not path.is_file():
        raise UserError(f"no file {path}")
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except DAMAGED as error:
        raise unreadable(path, error) from None


def read_npz(path: Path, names: Iterable[str]) -> list[np.ndarray]:
    """Arrays of a file, whole. Raises a `UserError` where one is missing, damaged or a pickle."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return [arrays[name] for name in names]
    except DAMAGED as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path} cannot be read as .npz: {' '.join(str(error).split())[:120] or type(error).__name__}")


class SamplesFile:
    """The images of an .npz, uint8 (N, H, W, 3), as ADM's samples are published. `np.savez`'s are read one by one;
    compressed ones are in memory as a whole."""

    def __init__(self, path: Path) -> None:
        """Raises a `UserError` where there is no such file, it is damaged, or holds something else."""
        names = npz_names(path)
        if SAMPLES not in names:
            raise UserError(f"{path} has no {SAMPLES}, where ADM has its images, but {', '.join(names) or 'nothing'}")
        try:
            shape, in_rows, dtype, self._start, stored = _array_header(path)
        except DAMAGED as error:
            raise unreadable(path, error) from None
        if len(shape) != 4 or shape[-1] != 3 or dtype != np.uint8 or 0 in shape:
            raise UserError(f"{path}: {SAMPLES} must be images, uint8 (N, H, W, 3), not {dtype} {shape}")
        self.path, self.shape = path, shape
        self._whole = None if stored and in_rows else read_npz(path, [SAMPLES])[0]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, number: int) -> np.ndarray:
        """An image (H, W, 3). Thread-safe."""
        if self._whole is not None:
            return np.ascontiguousarray(self._whole[number])
        size = int(np.prod(self.shape[1:]))
        with open(self.path, "rb", buffering=0) as file:
            data = os.pread(file.fileno(), size, self._start + number * size)
        if len(data) != size:
            raise EOFError("the file was cut short")
        return np.frombuffer(data, np.uint8).reshape(self.shape[1:])


def _array_header(path: Path) -> tuple[tuple[int, ...], bool, np.dtype, int, bool]:
    """Of the array of images: shape, whether the last axis runs fastest, dtype, place of its first value in the file,
    whether it is stored as it is."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(f"{SAMPLES}.npy")
        with archive.open(info) as member:
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, by_columns, dtype = read(member)
            header = member.tell()
    if not dtype.hasobject and info.file_size != header + int(np.prod(shape, dtype=object)) * dtype.itemsize:
        raise ValueError("its header and its size do not agree")
    with open(path, "rb") as file:
        file.seek(info.header_offset + 26)
        name, extra = struct.unpack("<HH", file.read(4))  # lengths; the file's own header has 30 bytes before them
    place = info.header_offset + 30 + name + extra + header
    return shape, not by_columns, dtype, place, info.compress_type == zipfile.ZIP_STORED
