"""Tensors from .ckpt, .pt and .bin files, which are pickles: only if the user allows it, and without running code."""

from __future__ import annotations

import functools
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from diptych.core.errors import UserError
from diptych.weights.pickled_values import STORAGES, Array, Name, RefusedPickle, Storage, Stub, TensorView, is_count
from diptych.weights.tensors import MAGIC, read_bytes
from diptych.weights.unpickle import PickleInterpreter

LEGACY_HEADER = (0x1950A86A20F9469CFC6C, 1001)
"""The first two pickles of a file in the legacy format."""
NESTED_KEYS = ("state_dict", "params_ema", "params", "model", "module")
"""Keys under which programs nest a state dict; the first one present is used."""
ZIP_ERRORS = (zipfile.BadZipFile, struct.error)
MAX_SHARING = 8
"""Largest ratio of the size of all tensors, which may share storages, to that of the file."""


class PickledTensor(NamedTuple):
    """A tensor that is read on demand."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def read_pickle(path: Path, allowed: bool = False) -> dict[str, PickledTensor]:
    """The tensors of a pickle by name, those of its "state_dict" where it has one, none of them read yet.

    Tensors of dicts within are named by both keys, a dot between, where there are no others. Numpy's arrays count as
    tensors. Other values are dropped: objects of classes are never made.

    Raises a `UserError` where it is not `allowed`, for a file that is damaged, and for one that asks for code to run.
    """
    if not allowed:
        raise UserError(
            f"{path} is a pickle, which diptych reads only with --allow-pickle (allow_pickle=True), its tensors alone; "
            "better is the model's .safetensors file, or this one made into one by `diptych convert`"
        )
    try:
        with path.open("rb") as file:
            archive = file.read(4) == MAGIC[0]
            values, place = (_read_archive if archive else _read_legacy)(file, path.stat().st_size)
            return _named_tensors(path, _unwrap(values), place)
    except RefusedPickle as error:
        raise UserError(f"{path} {error}; get the model's .safetensors file") from None
    except (OSError, ValueError, EOFError, LookupError, NotImplementedError, *ZIP_ERRORS) as error:
        raise UserError(f"{path} is a damaged PyTorch file ({str(error)[:120]}); get or make it again") from error


def _unwrap(values: Any) -> dict[str, Any]:
    """The state dict in a file's value."""
    if isinstance(values, dict):
        inner = [values[key] for key in NESTED_KEYS if isinstance(values.get(key), dict)]
        if inner and (NESTED_KEYS[0] in values or not any(isinstance(value, TensorView) for value in values.values())):
            values = inner[0]
    if isinstance(values, Stub):
        raise RefusedPickle(f"holds an object of the class {values.of}, and no named tensors")
    if not isinstance(values, dict):
        raise RefusedPickle(f"holds no named tensors but a {type(values).__name__}")
    if not any(isinstance(value, (TensorView, Array)) for value in values.values()):
        parts = {id(value): (key, value) for key, value in values.items() if isinstance(value, dict)}  # each once
        return {f"{key}.{name}": value for key, part in parts.values() for name, value in part.items()}
    return values


def _named_tensors(path: Path, values: Mapping[str, Any], places: Callable[[Storage], int]) -> dict[str, PickledTensor]:
    tensors: dict[str, PickledTensor] = {}
    total_bytes = 0
    for key, value in values.items():
        if isinstance(value, TensorView):
            tensors[key] = PickledTensor(value.shape, functools.partial(_read, path, key, value, places(value.storage)))
            total_bytes += value.span * value.dtype.itemsize
        elif isinstance(value, Array) and value.values is not None:
            tensors[key] = PickledTensor(tuple(value.values.shape), functools.partial(torch.clone, value.values))
        elif isinstance(value, Stub) and value.of.name.startswith("_rebuild_"):
            raise RefusedPickle(f"holds {short_text(key)} as a tensor of {value.of}, which diptych does not read")
    if not tensors:
        raise RefusedPickle("holds no named tensors")
    if total_bytes > MAX_SHARING * path.stat().st_size:
        raise RefusedPickle(f"describes tensors of {total_bytes:,} bytes together, many times what is in it")
    return tensors


def _read(path: Path, key: str, tensor: TensorView, start: int) -> Tensor:
    """One tensor, in its own memory."""
    size = tensor.dtype.itemsize
    values = read_bytes(path, key, start + tensor.offset * size, tensor.span * size).view(tensor.dtype)
    return values.as_strided(tensor.shape, tensor.stride) if tensor.span else values.reshape(tensor.shape)


def _storage(identity: Any) -> Any:
    """The storage of a persistent id."""
    match identity:
        case ("storage", Name(name=name), str(key), _, count, *view) if name in STORAGES and is_count(count):
            match view:
                case [] | [None]:
                    return Storage(key, STORAGES[name], count)
                case [(_, offset, size)] if is_count(offset) and is_count(size):
                    return Storage(key, STORAGES[name], count, offset)
        case ("module", kind, *_):  # with its source text, which old files have along
            return kind
    raise RefusedPickle("refers to what is no storage of a tensor")


PickleContent = tuple[Any, Callable[[Storage], int]]
"""The value of a file, and a function that gives the offset of a storage in bytes."""


def _read_archive(file: BinaryIO, size: int) -> PickleContent:
    """torch's zip archive: data.pkl and an uncompressed file for each storage."""
    with zipfile.ZipFile(file) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        if len(entries) != len(archive.infolist()):
            raise RefusedPickle("has two files of one name in it")
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise RefusedPickle("is a zip archive, but none of PyTorch's")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in entries:
        raise RefusedPickle("is a TorchScript program, which diptych never runs, and no file of weights")

    def start(name: str) -> int:
        """The offset of an entry's data, after its local header."""
        if (info := entries.get(name)) is None:
            raise RefusedPickle(f"is damaged: it lacks {short_text(name)}")
        file.seek(info.header_offset)
        head = file.read(30)
        if len(head) < 30 or head[:4] != MAGIC[0] or info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise RefusedPickle(f"is damaged: {short_text(name)} in it is compressed, encrypted or not there")
        offset = info.header_offset + 30 + sum(struct.unpack("<HH", head[26:]))
        if offset + info.file_size > size:
            raise RefusedPickle(f"is damaged: it is cut short within {short_text(name)}")
        return offset

    if (order := f"{folder}byteorder") in entries:
        file.seek(start(order))
        if file.read(min(entries[order].file_size, 16)) != b"little":
            raise RefusedPickle("was written by a machine that orders bytes the other way round")
    file.seek(start(pickles[0]))
    values = PickleInterpreter(file, entries[pickles[0]].file_size, _storage).run()
    starts: dict[str, int] = {}

    def place(storage: Storage) -> int:
        name = f"{folder}data/{storage.key}"
        if name not in starts:
            starts[name] = start(name)
        if entries[name].file_size < storage.nbytes:
            raise RefusedPickle(
                f"is damaged: {short_text(name)} has {entries[name].file_size:,} of {storage.nbytes:,} bytes"
            )
        return starts[name]

    return values, place


def _read_legacy(file: BinaryIO, size: int) -> PickleContent:
    """torch's format before 1.6: five pickles, then the storages, each after its number of values."""
    file.seek(0)
    storages: dict[str, Storage] = {}

    def persistent(identity: Any) -> Any:
        storage_ = _storage(identity)
        if isinstance(storage_, Storage):
            storages.setdefault(storage_.key, storage_)
        return storage_

    def value() -> Any:
        return PickleInterpreter(file, size - file.tell(), persistent).run()

    if (value(), value()) != LEGACY_HEADER:
        raise RefusedPickle("is a pickle, but none of PyTorch's")
    system = value()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise RefusedPickle("was written by a machine that orders bytes the other way round")
    values, keys = value(), value()
    places: dict[str, int] = {}
    for key in keys if isinstance(keys, list) else ():
        if type(key) is not str or (storage := storages.get(key)) is None:
            raise RefusedPickle("is damaged: it holds a storage of no tensor")
        head = file.read(8)
        offset = file.tell()
        if len(head) < 8 or struct.unpack("<q", head)[0] != storage.count or offset + storage.nbytes > size:
            raise RefusedPickle(f"is damaged: it is cut short within storage {short_text(key)}")
        places[key] = offset
        file.seek(offset + storage.nbytes)

    def place(storage: Storage) -> int:
        if storage.key not in places or storages[storage.key].nbytes < storage.nbytes:
            raise RefusedPickle(f"is damaged: it lacks storage {short_text(storage.key)}")
        return places[storage.key]

    return values, place


def short_text(text: str) -> str:
    """A text from the file in one short line, for messages."""
    return ascii(text)[:80]
