"""Writing files of tensors: safetensors with metadata, whole or sharded, never half."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from diptych.core.errors import UserError
from diptych.weights.files import open_safetensors

SHARD_BYTES = 15 * 2**20
_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.int64: "I64", torch.int32: "I32", torch.int16: "I16"}
"""How safetensors calls the types that are written in parts."""


def save_safetensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write one file in one step. Tensors may be on any device and may share memory (each is then written)."""
    from diptych.core.disk import replacing

    stored: set[int] = set()
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if storage in stored else tensor
        stored.add(storage)
    with replacing(Path(path)) as partial:
        save_file(plain, partial, {"format": "pt", **(metadata or {})})
        _sort_metadata(partial)


def _sort_metadata(path: Path) -> None:
    """Put the text entries of a header in order: the library writes them in that of a hash table, which differs from
    run to run, and equal weights are to be equal files."""
    with path.open("r+b") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        ordered = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(ordered) <= length:  # as long as before, but where a text was escaped otherwise
            file.seek(8)
            file.write(ordered.ljust(length))


def join_safetensors(parts: Sequence[Path], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write one file of several that hold tensors of the same names: these, end to end along the first dimension.

    A single part is in memory at a time. Where their types differ, the wider one is written.
    """
    from diptych.core.disk import replacing

    types: dict[str, torch.dtype] = {}
    shapes: dict[str, list[int]] = {}
    for part in parts:
        with open_safetensors(part) as file:
            for name in file.keys():  # noqa: SIM118 (no mapping)
                rows = file.get_slice(name)
                one, shape = rows[:0].dtype, rows.get_shape()
                types[name] = torch.promote_types(types[name], one) if name in types else one
                shapes[name] = [shapes.get(name, [0])[0] + shape[0], *shape[1:]]
    header: dict[str, Any] = {"__metadata__": dict(sorted({"format": "pt", **(metadata or {})}.items()))}
    end = 0
    for name in sorted(types, key=lambda name: (-types[name].itemsize, name)):  # aligned, as the library writes them
        begin, end = end, end + math.prod(shapes[name]) * types[name].itemsize
        header[name] = {"dtype": _NAMES[types[name]], "shape": shapes[name], "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text = text.ljust(-(-len(text) // 8) * 8)
    with replacing(path) as partial, partial.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        for name in list(header)[1:]:
            for part in parts:
                with open_safetensors(part) as file:
                    tensor = file.get_tensor(name).to(types[name]).contiguous()
                out.write(tensor.flatten().view(torch.uint8).numpy().data)


def save_weights(
    state: Mapping[str, Tensor],
    folder: Path,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    name: str = "model",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a state dict in the hub's layout: one `model.safetensors`, or numbered shards and an index.

    `dtype` (for example bfloat16) is for floating tensors of two or more dimensions; the others (biases, norms,
    scales) are small and stay exact. A tensor larger than `shard_bytes` gets a shard of its own. `metadata` goes
    into the header of each file.
    """
    folder = Path(folder)
    shards: list[dict[str, Tensor]] = [{}]
    room = shard_bytes
    for key, tensor in state.items():
        if dtype is not None and tensor.is_floating_point() and tensor.ndim >= 2:
            tensor, exact = tensor.to(dtype), tensor
            if torch.isinf(tensor).any() and not torch.isinf(exact).any():
                raise UserError(f"{key} has values that {str(dtype)[6:]} cannot hold: save in another type")
        if shards[-1] and tensor.nbytes > room:
            shards.append({})
            room = shard_bytes
        shards[-1][key] = tensor
        room -= tensor.nbytes
    names = [f"{name}-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    index = folder / f"{name}.safetensors.index.json"
    if len(shards) == 1:
        names = [f"{name}.safetensors"]
    for shard, file in zip(shards, names, strict=True):
        save_safetensors(shard, folder / file, metadata)
    if len(shards) > 1:
        weight_map = {key: file for shard, file in zip(shards, names, strict=True) for key in shard}
        total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
        content = {"metadata": {"total_size": total}, "weight_map": weight_map}
        from diptych.core.disk import write_text

        write_text(index, json.dumps(content, indent=2) + "\n")
    else:
        index.unlink(missing_ok=True)
    for stale in {*folder.glob(f"{name}-*-of-*.safetensors"), folder / f"{name}.safetensors"}:
        if stale.name not in names:
            stale.unlink(missing_ok=True)
