"""Reading safetensors files, with errors that say what is wrong with a file."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from diptych.core.errors import UserError

_OTHER_FORMATS = {
    b"PK\x03\x04": "a zip or PyTorch pickle file",
    b"\x80": "a Python pickle",
    b"version https://git-lfs": "a Git LFS pointer (fetch the real file with `git lfs pull`)",
    b"<": "an HTML or XML page",
    b"\x1f\x8b": "a gzip archive",
    b"GGUF": "a GGUF file, whose weights are quantised,",
    b"\x89HDF": "an HDF5 file, as Keras writes it,",
}


def load_safetensors(path: Path, check_finite: bool = True) -> dict[str, Tensor]:
    """Read all tensors of one file to the CPU, dtypes as stored.

    Raises a `UserError` for a file that is missing, cut short or no safetensors by its content (whatever its name
    says), and for one that holds NaN or Inf (the format does not check), with the key.
    """
    path = Path(path)
    _require_header(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is a damaged safetensors file ({error}); get or make it again") from error
    if check_finite:
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
                raise UserError(f"{path}: tensor {name!r} holds NaN or Inf; the file is not usable")
    return tensors


def open_safetensors(path: Path):
    """A file opened for reading tensors one by one. Raises a `UserError` as `load_safetensors` does."""
    _require_header(Path(path))
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is a damaged safetensors file ({error}); get or make it again") from error


def load_metadata(path: Path) -> dict[str, str]:
    """The text entries of a file's header. Raises a `UserError` as `load_safetensors` does, the content aside."""
    with open_safetensors(path) as file:
        return dict(file.metadata() or {})


def _require_header(path: Path) -> None:
    """Raise a `UserError` unless the first bytes are a safetensors header that fits in the file."""
    if not path.is_file():
        raise UserError(f"there is no file {path}" if not path.is_dir() else f"{path} is a folder, not a file")
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(32)
    if size < 10:
        raise UserError(f"{path} is cut short: {size} bytes are no safetensors file; get or make it again")
    length = struct.unpack("<Q", head[:8])[0]
    if head[8:9] == b"{":
        if length + 8 > size:
            raise UserError(f"{path} is cut short: its header alone needs {length + 8} bytes; get or make it again")
        return
    actual = next((what for magic, what in _OTHER_FORMATS.items() if head.startswith(magic)), "something else")
    raise UserError(f"{path} is not a safetensors file but {actual}; diptych reads safetensors only")


def load_header_values(source: Path, key: str, name: str = "model") -> set[str]:
    """The values of the metadata entry `key` in the headers of a folder's weights, over all shards."""
    entries = [load_metadata(path) for path in sorted(Path(source).glob(f"{name}*.safetensors"))]
    return {entry[key] for entry in entries if key in entry}


def shard_files(
    source: Path, name: str = "model", ending: str = ".safetensors", variant: str = ""
) -> list[tuple[Path, list[str] | None]]:
    """The files of a state dict, each with its keys from the index; None without an index.

    A `variant` such as "fp16" stands before the ending of the file and of the index, as diffusers writes it.
    """
    source = Path(source)
    between = f".{variant}" if variant else ""
    index = source / f"{name}{ending}.index{between}.json"
    if not index.is_file():
        return [(source / f"{name}{between}{ending}" if source.is_dir() else source, None)]
    weight_map = _weight_map(index, ending)
    files: dict[str, list[str]] = {}
    for key, file in weight_map.items():
        files.setdefault(file, []).append(key)
    return [(source / file, keys) for file, keys in files.items()]


def _weight_map(index: Path, ending: str = ".safetensors") -> dict[str, str]:
    """Key -> file name, from the index of a folder of shards."""
    try:
        weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
        files = sorted(set(weight_map.values()))
        bad = [file for file in files if Path(file).name != file or not file.endswith(ending)]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{index} is not an index of {ending[1:]} shards; get or make it again") from None
    if bad:
        raise UserError(f"{index} names {bad[0]!r}, which is no {ending[1:]} file beside it")
    return weight_map
