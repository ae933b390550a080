"""Lazy reading of weights, tensor by tensor: a file of several gigabytes is never in memory twice."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diptych.core.errors import UserError
from diptych.weights.files import shard_files
from diptych.weights.tensors import is_finite, is_pickle, read_entries
from diptych.weights.tensors import read as read_tensor

VARIANTS = ("", "fp16", "bf16", "fp32", "ema", "non_ema")
"""Variants of a file of diffusers or transformers, in the order of preference."""


_NOTHING_READ = contextvars.ContextVar("_NOTHING_READ", default=False)


@contextlib.contextmanager
def shapes_only() -> Iterator[None]:
    """Within, tensors are on the meta device, with the shapes that the file states; no data is read."""
    token = _NOTHING_READ.set(True)
    try:
        yield
    finally:
        _NOTHING_READ.reset(token)


DRAWN = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_, Tensor.normal_, Tensor.uniform_)
"""What draws the first weights of a layer."""


class NothingDrawn(TorchFunctionMode):
    """Within, tensors without memory are not filled: PyTorch does that in Python, a tenth of a second a U-Net."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        weight = {"tensor": args[0] if args else None, **(kwargs or {})}["tensor"] if func in DRAWN else None
        return weight if weight is not None and weight.is_meta else func(*args, **(kwargs or {}))


@contextlib.contextmanager
def on_meta() -> Iterator[None]:
    """Within, tensors have shapes alone: a network is built until files are known to fill it."""
    with torch.device("meta"), NothingDrawn():
        yield


def reading_shapes() -> bool:
    """Whether this runs within `shapes_only`."""
    return _NOTHING_READ.get()


class LazyCheckpoint(Mapping[str, Tensor]):
    """Named tensors in files, each read on access, to the CPU and in its stored type.

    Reading a tensor with NaN or Inf raises a `UserError` that names it.
    """

    def __init__(
        self,
        tensors: Mapping[str, Callable[[], Tensor]],
        shapes: Mapping[str, tuple[int, ...]],
        source: str,
        stored: Mapping[str, str] | None = None,
    ) -> None:
        self._read, self.shapes, self.source = dict(tensors), dict(shapes), source
        self.stored = dict(stored or {})
        """Name -> name in the file, where they differ."""

    @classmethod
    def open(cls, path: Path, name: str = "model", allow_pickle: bool = False) -> LazyCheckpoint:
        """A file, or a folder with `name`.safetensors, whole or in numbered shards with their index.

        A folder may have a variant instead (`name`.fp16.safetensors), or, where `allow_pickle` is given, a .bin file
        (`name`.bin, pytorch_model.bin). Raises a `UserError` for what is missing, damaged or not allowed.
        """
        path = Path(path)
        read: dict[str, Callable[[], Tensor]] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for file, indexed in weight_files(path, name):
            if file.is_file() and is_pickle(file):
                from diptych.weights.pickles import read_pickle

                tensors = read_pickle(file, allow_pickle)
                readers = {key: tensor.read for key, tensor in tensors.items()}
                file_shapes = {key: tensor.shape for key, tensor in tensors.items()}
            else:
                file_entries = read_entries(file)
                readers = {key: functools.partial(read_tensor, file, key, entry) for key, entry in file_entries.items()}
                file_shapes = {key: entry.shape for key, entry in file_entries.items()}
            for key in indexed if indexed is not None else readers:
                if key not in readers:
                    raise UserError(f"{file} lacks tensor {key!r} that the index promises")
                read[key], shapes[key] = readers[key], file_shapes[key]
        return cls(read, shapes, str(path))

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], source: str) -> LazyCheckpoint:
        """From tensors in memory."""
        return cls(
            {key: lambda tensor=tensor: tensor for key, tensor in tensors.items()},
            {key: tuple(tensor.shape) for key, tensor in tensors.items()},
            source,
        )

    def __getitem__(self, key: str) -> Tensor:
        if _NOTHING_READ.get():
            return torch.empty(self.shapes[key], device="meta")
        tensor = self._read[key]()
        if not is_finite(tensor):
            raise UserError(f"{self.source}: tensor {key!r} holds NaN or Inf; the file is not usable")
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._read)

    def __len__(self) -> int:
        return len(self._read)

    def __contains__(self, key: object) -> bool:
        return key in self._read

    def under(self, prefix: str) -> LazyCheckpoint:
        """The tensors whose names begin with `prefix`, which is removed."""
        keys = [key for key in self._read if key.startswith(prefix)]
        return LazyCheckpoint(
            {key.removeprefix(prefix): self._read[key] for key in keys},
            {key.removeprefix(prefix): self.shapes[key] for key in keys},
            self.source,
        )

    def only(self, keys: Iterable[str]) -> LazyCheckpoint:
        """The tensors of these names."""
        names = list(keys)
        return LazyCheckpoint(
            {key: self._read[key] for key in names}, {key: self.shapes[key] for key in names}, self.source
        )


def weight_files(path: Path, name: str = "model") -> list[tuple[Path, list[str] | None]]:
    """The files of a state dict, each with its keys from the index (None without an index).

    In a folder, safetensors before pickles, and the plain file before its variants; without any, the expected file.
    """
    pickled = [(stem, ".bin") for stem in dict.fromkeys((name, "pytorch_model"))]
    for stem, ending in [(name, ".safetensors"), *pickled]:
        for variant in VARIANTS if path.is_dir() else ():
            files = shard_files(path, stem, ending, variant)
            if files[0][1] is not None or files[0][0].is_file():
                return files
    return shard_files(path, name)


def load_module(module: nn.Module, folder: Path, name: str = "model") -> None:
    """Give a module, which may be on the meta device, the weights in a folder (or file), floating ones as float32.

    Raises a `UserError` that names the file or key at fault: missing, cut short, of another shape, NaN or Inf.
    """
    fill(module, LazyCheckpoint.open(folder, name), str(folder))


def load_weights(source: Path, dtype: torch.dtype | None = torch.float32, name: str = "model") -> dict[str, Tensor]:
    """All tensors of a file or folder, floating ones as `dtype` (none: as stored). Errors as `load_module`."""
    tensors = LazyCheckpoint.open(source, name)
    loaded = ((key, tensors[key]) for key in tensors)
    return {key: t.to(dtype) if dtype is not None and t.is_floating_point() else t for key, t in loaded}


def load_into(module: nn.Module, tensors: Mapping[str, Tensor], source: str = "the weights") -> None:
    """Copy tensors into a module's parameters in place, so that an optimizer continues with them. Errors as `fill`."""
    require_shapes(module.state_dict(), tensors, source, type(module).__name__)
    module.load_state_dict(dict(tensors))


def fill(
    module: nn.Module, tensors: Mapping[str, Tensor], source: str, dtype: torch.dtype | None = torch.float32
) -> None:
    """Give a module on the meta device its tensors, one at a time, floating ones as `dtype` (none: as stored).

    A missing, unexpected or wrongly shaped key raises a `UserError` that names it.
    """
    expected = module.state_dict()
    require_shapes(expected, tensors, source, type(module).__name__)
    for name in expected:
        tensor = tensors[name]
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        if tensor.untyped_storage().nbytes() > tensor.nbytes:  # a part of a larger tensor, which it would keep alive
            tensor = tensor.clone()
        place, _, last = name.rpartition(".")
        holder = module.get_submodule(place)  # load_state_dict would visit every module for every tensor
        if (previous := holder._parameters.get(last)) is not None:
            tensor = nn.Parameter(tensor, requires_grad=previous.requires_grad)
        setattr(holder, last, tensor)


def require_shapes(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str, kind: str) -> None:
    """Raise a `UserError` unless `tensors` have the `expected` names and shapes; none of them is read."""
    shapes = tensors.shapes if isinstance(tensors, LazyCheckpoint) else {k: tuple(v.shape) for k, v in tensors.items()}
    for name, tensor in expected.items():
        if name not in shapes:
            missing = sum(key not in shapes for key in expected)
            raise UserError(f"{source}: key {name!r} of {kind} is missing ({missing} missing in all)")
        if shapes[name] != tuple(tensor.shape):
            stored = tensors.stored.get(name, name) if isinstance(tensors, LazyCheckpoint) else name
            actual, needed = shapes[name], tuple(tensor.shape)
            ours = "" if stored == name else f" for {name!r}"
            raise UserError(f"{source}: key {stored!r} has shape {actual}, but {kind} needs {needed}{ours}")
    if extra := [name for name in shapes if name not in expected]:
        raise UserError(f"{source}: unexpected key {extra[0]!r} for {kind} ({len(extra)} in all)")
