"""The files of sharded checkpoints, read by any number of processes.

PyTorch's distributed checkpoints (DCP) in its safetensors form: the header of each file says which rows of its tensors
it holds. There is no pickle.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from diptych.core.errors import UserError


def stored(path: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and type of the tensors of a sharded checkpoint, by `part/name`."""
    found = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    entries = {name: entry for name, entry in found.items() if isinstance(entry, TensorStorageMetadata)}
    return {name: (entry.size, entry.properties.dtype) for name, entry in entries.items()}


def read(path: Path, targets: dict[str, Tensor]) -> None:
    """Fill tensors, plain or sharded over any number of processes, with those of a sharded checkpoint of these names
    and shapes."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")
            load(dict(targets), storage_reader=HuggingFaceStorageReader(str(path)), no_dist=True)
    except CheckpointException as failed:
        error, _ = next(iter(failed.failures.values()))
        raise UserError(f"{path} cannot be read: {error}") from error


def read_part(path: Path, part: str) -> dict[str, Tensor]:
    """One part of a sharded checkpoint, its tensors whole, on the CPU."""
    entries = {name: entry for name, entry in stored(path).items() if name.startswith(f"{part}/")}
    whole: dict[str, Tensor] = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in entries.items()}
    read(path, whole)
    return {name.removeprefix(f"{part}/"): tensor for name, tensor in whole.items()}
