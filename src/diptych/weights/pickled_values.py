"""Values of pickles: tensors as views of storages, numpy arrays and numbers, stubs for other objects."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

MAX_DIMENSIONS = 64
MAX_EXPANDED = 2**20
"""Most values of a tensor with strides of 0 beyond those of its storage."""
STORAGES: dict[str, torch.dtype | None] = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": None,
}
"""torch's storage classes and their types; None: untyped."""
NUMPY_TYPES = {
    "f2": torch.float16,
    "f4": torch.float32,
    "f8": torch.float64,
    "b1": torch.bool,
    "u1": torch.uint8,
    "i1": torch.int8,
    "i2": torch.int16,
    "i4": torch.int32,
    "i8": torch.int64,
}


class RefusedPickle(Exception):
    """A pickle is refused; the message follows its path."""


class Name(NamedTuple):
    """A class or function as a file names it; it is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return ascii(f"{self.module}.{self.name}")[1:-1][:120]


@dataclass(slots=True, eq=False, repr=False)
class Stub:
    """A placeholder for an object of a class that is not read."""

    of: Name


@dataclass(slots=True, eq=False, repr=False)
class Array:
    """A numpy array or number; no values for objects, text, or another byte order."""

    values: Tensor | None = None


@dataclass(slots=True, eq=False)
class NumpyType:
    """A numpy dtype such as "f8", and the order of its bytes."""

    code: str
    order: str = "|"


class Storage(NamedTuple):
    """A storage: values at another place of the file."""

    key: str
    dtype: torch.dtype | None
    """None: `count` is in bytes, and each tensor has its own type."""
    count: int
    start: int = 0
    """Offset of a view, in legacy files."""

    @property
    def nbytes(self) -> int:
        return self.count * (1 if self.dtype is None else self.dtype.itemsize)


class TensorView(NamedTuple):
    """A tensor as a strided view of a storage."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    """Of its first value, in values."""
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def span(self) -> int:
        """Number of storage values from its first to its last, inclusive."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**48


def sizes(values: Any) -> tuple[int, ...]:
    """A shape, or strides."""
    if not isinstance(values, (tuple, list)) or len(values) > MAX_DIMENSIONS or not all(map(is_count, values)):
        raise RefusedPickle("describes a tensor without a shape")
    return tuple(values)


def tensor_view(storage: Any, dtype: torch.dtype | None, offset: Any, shape: Any, stride: Any) -> TensorView:
    """A tensor view, checked to lie within its storage."""
    shape, stride = sizes(shape), sizes(stride)
    if not isinstance(storage, Storage) or dtype is None or not is_count(offset) or len(shape) != len(stride):
        raise RefusedPickle("describes a tensor without a storage")
    tensor = TensorView(storage, dtype, storage.start + offset, shape, stride)
    available = storage.nbytes // dtype.itemsize
    if (tensor.span and tensor.offset + tensor.span > available) or math.prod(shape) > max(available, MAX_EXPANDED):
        raise RefusedPickle(f"describes a tensor of shape {shape} in a storage of {available:,} values")
    return tensor


# Constructors by the names in a file. Each takes the arguments that the file states.


def rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> TensorView:
    return tensor_view(storage, storage.dtype if isinstance(storage, Storage) else None, offset, shape, stride)


def rebuild_typed(
    storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, kind: Any, *_: Any
) -> TensorView:
    dtype = getattr(torch, kind.name, None) if isinstance(kind, Name) and kind.module == "torch" else None
    return tensor_view(storage, dtype if isinstance(dtype, torch.dtype) else None, offset, shape, stride)


def first_argument(value: Any, *_: Any) -> Any:
    """The tensor of a parameter; the numbers of torch.Size."""
    return value


def rebuild_subclass(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    if function not in (REBUILD_V2, REBUILD_V3) or not isinstance(arguments, tuple):
        raise RefusedPickle(f"asks for a call of {function if isinstance(function, Name) else 'no function'}")
    return CONSTRUCTORS[function](*arguments)


def mapping(items: Any = (), *_: Any) -> dict[str, Any]:
    """The items of a dict, or of pairs, whose keys are text."""
    pairs = items.items() if isinstance(items, dict) else items if isinstance(items, (list, tuple)) else ()
    return {pair[0]: pair[1] for pair in pairs if isinstance(pair, (list, tuple)) and type(pair[0]) is str}


def listing(items: Any = (), *_: Any) -> list[Any]:
    return list(items) if isinstance(items, (list, tuple)) else []


def encode_latin1(text: Any = "", encoding: Any = "latin1", *_: Any) -> bytes:
    """Bytes as protocol 2 encodes them."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise RefusedPickle("asks for a call of _codecs.encode that makes no bytes")
    return text.encode("latin1")


def empty_array(*_: Any) -> Array:
    return Array()


def scalar(kind: Any = None, data: Any = b"", *_: Any) -> Array:
    fill_array(made := Array(), (1, (), kind, False, data))
    return made


def array_of_bytes(data: Any = b"", kind: Any = None, shape: Any = (), order: Any = "C", *_: Any) -> Array:
    fill_array(made := Array(), (1, shape, kind, order == "F", data))
    return made


def numpy_type(code: Any = "", *_: Any) -> NumpyType:
    return NumpyType(code if type(code) is str else "")


def fill_array(array: Array, state: Any) -> None:
    """Give an array its state: version, shape, dtype, whether its columns come first, bytes."""
    if not isinstance(state, tuple) or len(state) != 5:
        return
    _, shape, kind, columns, data = state
    dtype = NUMPY_TYPES.get(kind.code.lstrip("<=|")) if isinstance(kind, NumpyType) else None
    if dtype is None or kind.order == ">" or not isinstance(data, bytes):
        return
    shape = sizes(shape)
    if math.prod(shape) * dtype.itemsize != len(data):
        raise RefusedPickle(f"describes a numpy array of shape {shape} in {len(data):,} bytes")
    flat = torch.frombuffer(bytearray(data), dtype=dtype) if data else torch.empty(0, dtype=dtype)
    array.values = flat.reshape(shape[::-1]).permute(*reversed(range(len(shape)))) if columns else flat.reshape(shape)


REBUILD_V2, REBUILD_V3 = Name("torch._utils", "_rebuild_tensor_v2"), Name("torch._utils", "_rebuild_tensor_v3")
NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
CONSTRUCTORS: dict[Name, Callable[..., Any]] = {
    Name("torch._utils", "_rebuild_tensor"): rebuild_tensor,
    REBUILD_V2: rebuild_tensor,
    REBUILD_V3: rebuild_typed,
    Name("torch._utils", "_rebuild_parameter"): first_argument,
    Name("torch._utils", "_rebuild_parameter_with_state"): first_argument,
    Name("torch._utils", "_rebuild_device_tensor_from_numpy"): first_argument,
    Name("torch._utils", "_rebuild_xla_tensor"): first_argument,
    Name("torch._tensor", "_rebuild_from_type_v2"): rebuild_subclass,
    Name("torch.nn.parameter", "Parameter"): first_argument,
    Name("torch", "Size"): first_argument,
    Name("collections", "OrderedDict"): mapping,
    Name("collections", "Counter"): mapping,
    Name("collections", "defaultdict"): lambda *_: {},
    Name("builtins", "dict"): mapping,
    Name("builtins", "set"): listing,
    Name("builtins", "frozenset"): listing,
    Name("_codecs", "encode"): encode_latin1,
    Name("numpy", "dtype"): numpy_type,
    **{Name(module, "_reconstruct"): empty_array for module in NUMPY},
    **{Name(module, "_frombuffer"): array_of_bytes for module in NUMPY},
    **{Name(module, "scalar"): scalar for module in NUMPY},
}
