"""Tensors of one safetensors file, each read into its own memory.

The file is not memory-mapped: mapped pages would count in addition to the tensors made from them, and a model would
depend on a file that may change.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diptych.core.errors import UserError
from diptych.weights.files import open_safetensors

PICKLE_ENDINGS = (".ckpt", ".pt", ".pth", ".bin")
"""Endings of the names of pickled checkpoints."""
MAGIC = (b"PK\x03\x04", b"\x80")
"""First bytes of pickles: torch's zip archives, and its legacy format."""
OTHER_MAGIC = (b"GGUF", b"\x89HDF", b"version h")
"""First bytes of other formats, which raise an error with the format's name."""


DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
FINITE_CHUNK = 2**18
"""Values checked together for NaN and Inf."""


class TensorEntry(NamedTuple):
    """Type, shape and offset of a tensor in its file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    """The first byte, from the beginning of the file."""


def read_entries(path: Path) -> dict[str, TensorEntry]:
    """The entries of a safetensors header, checked against the file.

    Raises a `UserError` for a file that is missing, cut short or no safetensors, and for one whose header names a key
    twice, places a tensor outside of the file, or has a type that we do not read.
    """
    with open_safetensors(path):  # offsets against shapes, against each other, and against the file's length
        pass
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length), object_pairs_hook=lambda pairs: _once(pairs, path))
    header.pop("__metadata__", None)
    result = {}
    for key, fields in header.items():
        if fields["dtype"] not in DTYPES:
            raise UserError(f"{path}: tensor {key!r} is of type {fields['dtype']}, which diptych does not read")
        result[key] = TensorEntry(
            DTYPES[fields["dtype"]], tuple(fields["shape"]), 8 + length + fields["data_offsets"][0]
        )
    return result


def _once(pairs: list[tuple[str, Any]], path: Path) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise UserError(f"{path}: its header names {key!r} twice; get or make it again")
        result[key] = value
    return result


def read(path: Path, key: str, entry: TensorEntry) -> Tensor:
    """One tensor, in its own memory. Raises a `UserError` where the file has become shorter or is missing."""
    raw = read_bytes(path, key, entry.start, math.prod(entry.shape) * entry.dtype.itemsize)
    return raw.view(entry.dtype).reshape(entry.shape)


def read_bytes(path: Path, key: str, start: int, size: int) -> Tensor:
    """`size` bytes of a file from `start`, uint8 (size,), the data of the tensor `key`. Raises a `UserError` where the
    file has become shorter or is missing."""
    raw = torch.empty(size, dtype=torch.uint8)
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            left = memoryview(raw.numpy())  # pyright: ignore[reportArgumentType]
            while left and (count := file.readinto(left)):
                left = left[count:]
    except OSError as error:
        raise UserError(f"{path}: tensor {key!r} cannot be read ({error.strerror})") from error
    if left:
        raise UserError(f"{path} is cut short within tensor {key!r}; get or make it again")
    return raw


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor has no NaN and no Inf, checked in chunks."""
    if not tensor.is_floating_point():
        return True
    narrow = tensor.dtype.itemsize == 1  # torch has no isfinite for 8-bit floats
    parts = (part.float() if narrow else part for part in tensor.reshape(-1).split(FINITE_CHUNK))
    return all(math.isfinite(part.sum()) or torch.isfinite(part).all() for part in parts)  # a sum may overflow


def is_weights(path: Path) -> bool:
    """Whether a file has the first bytes or the suffix of weights: safetensors, a pickle, or another format's."""
    with path.open("rb") as file:
        head, size = file.read(9), path.stat().st_size
    safe = head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size
    return (
        safe
        or head.startswith((*MAGIC, *OTHER_MAGIC))
        or path.suffix in (".safetensors", ".sft", ".gguf", *PICKLE_ENDINGS)
    )


def is_pickle(path: Path) -> bool:
    """Whether a file has the first bytes of a pickle and is not named as safetensors."""
    with path.open("rb") as file:
        head = file.read(9)
    header = head[8:9] == b"{"  # a safetensors header, whose length may begin with any byte
    return path.suffix != ".safetensors" and head.startswith(MAGIC) and not header
