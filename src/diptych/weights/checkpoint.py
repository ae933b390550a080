"""Published weights, read tensor by tensor: a file of several gigabytes is never in memory twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from diptych.errors import UserError
from diptych.weights.files import open_safetensors, shard_files


class Checkpoint(Mapping[str, Tensor]):
    """Named tensors in files, each read when it is asked for, to the CPU and in the type in which it is stored.

    Asking for a tensor that holds NaN or Inf raises a `UserError` that names it.
    """

    def __init__(
        self, tensors: Mapping[str, Callable[[], Tensor]], shapes: Mapping[str, tuple[int, ...]], source: str
    ) -> None:
        self._read, self.shapes, self.source = dict(tensors), dict(shapes), source

    @classmethod
    def open(cls, path: Path, name: str = "model") -> Checkpoint:
        """A safetensors file, or a folder with `name`.safetensors, whole or in numbered shards with their index."""
        read: dict[str, Callable[[], Tensor]] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for file, keys in shard_files(path, name):
            handle = open_safetensors(file)
            for key in keys if keys is not None else handle.keys():
                if key not in handle.keys():  # noqa: SIM118 (a handle is no dictionary)
                    raise UserError(f"{file} lacks tensor {key!r} that the index promises")
                read[key] = lambda handle=handle, key=key: handle.get_tensor(key)
                shapes[key] = tuple(handle.get_slice(key).get_shape())
        return cls(read, shapes, str(path))

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], source: str) -> Checkpoint:
        """Tensors that are in memory already."""
        return cls(
            {key: lambda tensor=tensor: tensor for key, tensor in tensors.items()},
            {key: tuple(tensor.shape) for key, tensor in tensors.items()},
            source,
        )

    def __getitem__(self, key: str) -> Tensor:
        tensor = self._read[key]()
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{self.source}: tensor {key!r} holds NaN or Inf; the file is not usable")
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)

    def __contains__(self, key: object) -> bool:
        return key in self._read

    def under(self, prefix: str) -> Checkpoint:
        """Those whose names begin with `prefix`, by the rest of their names."""
        keys = [key for key in self._read if key.startswith(prefix)]
        return Checkpoint(
            {key.removeprefix(prefix): self._read[key] for key in keys},
            {key.removeprefix(prefix): self.shapes[key] for key in keys},
            self.source,
        )


def fill(
    module: nn.Module, tensors: Mapping[str, Tensor], source: str, dtype: torch.dtype | None = torch.float32
) -> None:
    """Give a module on the meta device its tensors, one at a time, floating ones as `dtype` (none: as stored).

    A missing, unexpected or wrongly shaped key raises a `UserError` that names it.
    """
    own = module.state_dict()
    shapes = tensors.shapes if isinstance(tensors, Checkpoint) else {k: tuple(v.shape) for k, v in tensors.items()}
    kind = type(module).__name__
    for name, tensor in own.items():
        if name not in shapes:
            missing = sum(key not in shapes for key in own)
            raise UserError(f"{source}: key {name!r} of {kind} is missing ({missing} missing in all)")
        if shapes[name] != tuple(tensor.shape):
            raise UserError(f"{source}: key {name!r} has shape {shapes[name]}, but {kind} needs {tuple(tensor.shape)}")
    if extra := [name for name in shapes if name not in own]:
        raise UserError(f"{source}: unexpected key {extra[0]!r} for {kind} ({len(extra)} in all)")
    for name in own:
        tensor = tensors[name]
        module.load_state_dict(
            {name: tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor},
            strict=False,
            assign=True,
        )
