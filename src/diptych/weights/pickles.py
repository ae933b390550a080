"""Tensors out of .ckpt, .pt and .bin files, which are pickles: with the user's leave, and never with code in them."""

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
from diptych.weights.pickled_values import STORAGES, Array, Laid, Name, RefusedPickle, Storage, Stub, whole
from diptych.weights.tensors import MAGIC, read_bytes
from diptych.weights.unpickle import Machine

OLDER = (0x1950A86A20F9469CFC6C, 1001)
"""The first two pickles of such an older file."""
NESTED = ("state_dict", "params_ema", "params", "model", "module")
"""Under which names programs nest their tensors; the first that is there."""
ZIP_ERRORS = (zipfile.BadZipFile, struct.error)
SHARING = 8
"""How many times the size of its file all tensors may have together, which may share their values."""


class Stored(NamedTuple):
    """A tensor that is read when it is asked for."""

    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def read_pickle(path: Path, allowed: bool = False) -> dict[str, Stored]:
    """The tensors of a pickle by name, those of its "state_dict" where it has one, none of them read yet.

    Tensors of dicts within are named by both keys, a dot between, where there are no others. Numpy's arrays count as
    tensors. What is no tensor is left out: objects of classes are never made.

    Raises a `UserError` without the user's leave, for a file that is damaged, and for one that asks for code to run.
    """
    if not allowed:
        raise UserError(
            f"{path} is a pickle, which diptych reads only with --allow-pickle (allow_pickle=True), its tensors alone; "
            "better is the model's .safetensors file, or this one made into one by `diptych convert`"
        )
    try:
        with path.open("rb") as file:
            archive = file.read(4) == MAGIC[0]
            values, place = (_archive if archive else _older)(file, path.stat().st_size)
            return _stored(path, _unwrapped(values), place)
    except RefusedPickle as error:
        raise UserError(f"{path} {error}; get the model's .safetensors file") from None
    except (OSError, ValueError, EOFError, LookupError, NotImplementedError, *ZIP_ERRORS) as error:
        raise UserError(f"{path} is a damaged PyTorch file ({str(error)[:120]}); get or make it again") from error


def _unwrapped(values: Any) -> dict[str, Any]:
    """The dict of names in what a file holds."""
    if isinstance(values, dict):
        inner = [values[key] for key in NESTED if isinstance(values.get(key), dict)]
        if inner and (NESTED[0] in values or not any(isinstance(value, Laid) for value in values.values())):
            values = inner[0]
    if isinstance(values, Stub):
        raise RefusedPickle(f"holds an object of the class {values.of}, and no named tensors")
    if not isinstance(values, dict):
        raise RefusedPickle(f"holds no named tensors but a {type(values).__name__}")
    if not any(isinstance(value, (Laid, Array)) for value in values.values()):
        parts = {id(value): (key, value) for key, value in values.items() if isinstance(value, dict)}  # each once
        return {f"{key}.{name}": value for key, part in parts.values() for name, value in part.items()}
    return values


def _stored(path: Path, values: Mapping[str, Any], places: Callable[[Storage], int]) -> dict[str, Stored]:
    found: dict[str, Stored] = {}
    total = 0
    for key, value in values.items():
        if isinstance(value, Laid):
            found[key] = Stored(value.shape, functools.partial(_read, path, key, value, places(value.storage)))
            total += value.span * value.dtype.itemsize
        elif isinstance(value, Array) and value.values is not None:
            found[key] = Stored(tuple(value.values.shape), functools.partial(torch.clone, value.values))
        elif isinstance(value, Stub) and value.of.name.startswith("_rebuild_"):
            raise RefusedPickle(f"holds {short(key)} as a tensor of {value.of}, which diptych does not read")
    if not found:
        raise RefusedPickle("holds no named tensors")
    if total > SHARING * path.stat().st_size:
        raise RefusedPickle(f"describes tensors of {total:,} bytes together, many times what is in it")
    return found


def _read(path: Path, key: str, tensor: Laid, start: int) -> Tensor:
    """One tensor, in memory of its own."""
    size = tensor.dtype.itemsize
    values = read_bytes(path, key, start + tensor.offset * size, tensor.span * size).view(tensor.dtype)
    return values.as_strided(tensor.shape, tensor.stride) if tensor.span else values.reshape(tensor.shape)


def _storage(identity: Any) -> Any:
    """The storage that an id in a pickle stands for."""
    match identity:
        case ("storage", Name(name=name), str(key), _, count, *view) if name in STORAGES and whole(count):
            match view:
                case [] | [None]:
                    return Storage(key, STORAGES[name], count)
                case [(_, offset, size)] if whole(offset) and whole(size):
                    return Storage(key, STORAGES[name], count, offset)
        case ("module", kind, *_):  # with its source text, which old files have along
            return kind
    raise RefusedPickle("refers to what is no storage of a tensor")


Opened = tuple[Any, Callable[[Storage], int]]
"""What a file holds, and where in it the bytes of a storage begin."""


def _archive(file: BinaryIO, size: int) -> Opened:
    """torch's zip archive: data.pkl, and beside it a file for each storage, none of them compressed."""
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
        """Where an entry's bytes begin, behind a header of its own."""
        if (info := entries.get(name)) is None:
            raise RefusedPickle(f"is damaged: it lacks {short(name)}")
        file.seek(info.header_offset)
        head = file.read(30)
        if len(head) < 30 or head[:4] != MAGIC[0] or info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise RefusedPickle(f"is damaged: {short(name)} in it is compressed, encrypted or not there")
        begins = info.header_offset + 30 + sum(struct.unpack("<HH", head[26:]))
        if begins + info.file_size > size:
            raise RefusedPickle(f"is damaged: it is cut short within {short(name)}")
        return begins

    if (order := f"{folder}byteorder") in entries:
        file.seek(start(order))
        if file.read(min(entries[order].file_size, 16)) != b"little":
            raise RefusedPickle("was written by a machine that orders bytes the other way round")
    file.seek(start(pickles[0]))
    values = Machine(file, entries[pickles[0]].file_size, _storage).run()
    starts: dict[str, int] = {}

    def place(storage: Storage) -> int:
        name = f"{folder}data/{storage.key}"
        if name not in starts:
            starts[name] = start(name)
        if entries[name].file_size < storage.nbytes:
            raise RefusedPickle(
                f"is damaged: {short(name)} has {entries[name].file_size:,} of {storage.nbytes:,} bytes"
            )
        return starts[name]

    return values, place


def _older(file: BinaryIO, size: int) -> Opened:
    """torch's format before 1.6: five pickles, and then each storage behind the number of its values."""
    file.seek(0)
    storages: dict[str, Storage] = {}

    def persistent(identity: Any) -> Any:
        found = _storage(identity)
        if isinstance(found, Storage):
            storages.setdefault(found.key, found)
        return found

    def value() -> Any:
        return Machine(file, size - file.tell(), persistent).run()

    if (value(), value()) != OLDER:
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
        begins = file.tell()
        if len(head) < 8 or struct.unpack("<q", head)[0] != storage.count or begins + storage.nbytes > size:
            raise RefusedPickle(f"is damaged: it is cut short within storage {short(key)}")
        places[key] = begins
        file.seek(begins + storage.nbytes)

    def place(storage: Storage) -> int:
        if storage.key not in places or storages[storage.key].nbytes < storage.nbytes:
            raise RefusedPickle(f"is damaged: it lacks storage {short(storage.key)}")
        return places[storage.key]

    return values, place


def short(text: str) -> str:
    """For messages: a text of the file's in one short line."""
    return ascii(text)[:80]
