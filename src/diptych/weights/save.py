"""Writing files of tensors: safetensors with metadata, whole or sharded, never half."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from diptych.core.errors import UserError

SHARD_BYTES = 15 * 2**20


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
