"""Operations of PyTorch as nodes of OpenVINO's opset 15.

Each takes the recorder and the arguments of the operation.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from openvino import opset15 as op
from torch import Tensor

from diptych.engines.openvino_graph import TYPES, Recorder, Untranslatable

aten = torch.ops.aten
TRANSLATIONS: dict[Any, Callable[..., Any]] = {}


def translation(func: Any) -> Callable[..., Any]:
    """How an operation is translated, whichever of its overloads was called."""
    made = TRANSLATIONS.get(func.overloadpacket)
    if made is None or str(func).split(".")[1].endswith("_"):  # which change a tensor that others may read
        raise Untranslatable(f"the operation {func}")
    return made


def promoted(x: Any, y: Any) -> torch.dtype:
    """The type in which PyTorch computes with these tensors and numbers."""
    dtype = torch.result_type(x, y)
    return dtype if dtype in TYPES else torch.float32


def translates(*operations: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def added(function: Callable[..., Any]) -> Callable[..., Any]:
        TRANSLATIONS.update(dict.fromkeys(operations, function))
        return function

    return added


def whole(values: int | Sequence[int]) -> Any:
    """Whole numbers as a constant."""
    return op.constant(np.asarray(values, dtype=np.int64))


def unary(make: Callable[[Any], Any]) -> Callable[..., Any]:
    def translate(graph: Recorder, x: Tensor) -> Any:
        return make(graph.node(x, x.dtype if x.is_floating_point() else torch.float32))

    return translate


def binary(make: Callable[[Any, Any], Any]) -> Callable[..., Any]:
    def translate(graph: Recorder, x: Any, y: Any, *, alpha: float = 1) -> Any:
        dtype = promoted(x, y)
        second = graph.node(y, dtype)
        return make(graph.node(x, dtype), second if alpha == 1 else op.multiply(second, graph.node(alpha, dtype)))

    return translate


def divide(graph: Recorder, x: Any, y: Any) -> Any:
    dtype = promoted(x, y)
    dtype = dtype if dtype.is_floating_point else torch.float32
    return op.divide(graph.node(x, dtype), graph.node(y, dtype))


TRANSLATIONS |= {
    aten.add: binary(op.add),
    aten.sub: binary(op.subtract),
    aten.mul: binary(op.multiply),
    aten.maximum: binary(op.maximum),
    aten.minimum: binary(op.minimum),
    aten.div: divide,
    aten.eq: binary(op.equal),
    aten.ne: binary(op.not_equal),
    aten.lt: binary(op.less),
    aten.le: binary(op.less_equal),
    aten.gt: binary(op.greater),
    aten.ge: binary(op.greater_equal),
    aten.cos: unary(op.cos),
    aten.sin: unary(op.sin),
    aten.exp: unary(op.exp),
    aten.log: unary(op.log),
    aten.sqrt: unary(op.sqrt),
    aten.neg: unary(op.negative),
    aten.abs: unary(op.absolute),
    aten.tanh: unary(op.tanh),
    aten.relu: unary(op.relu),
    aten.sigmoid: unary(op.sigmoid),
    aten.silu: unary(op.swish),
}


@translates(aten.rsqrt)
def _(graph: Recorder, x: Tensor) -> Any:
    return op.divide(graph.node(1.0, x.dtype), op.sqrt(graph.node(x)))


@translates(aten.pow)
def _(graph: Recorder, x: Any, y: Any) -> Any:
    dtype = promoted(x, y)
    return op.power(graph.node(x, dtype), graph.node(y, dtype))


@translates(aten.gelu)
def _(graph: Recorder, x: Tensor, *, approximate: str = "none") -> Any:
    return op.gelu(graph.node(x), "erf" if approximate == "none" else "tanh")


@translates(aten.leaky_relu)
def _(graph: Recorder, x: Tensor, slope: float = 0.01) -> Any:
    return op.prelu(graph.node(x), graph.node(slope))


@translates(aten.clamp)
def _(graph: Recorder, x: Tensor, least: float | None = None, most: float | None = None) -> Any:
    bounds = torch.finfo(torch.float32)
    return op.clamp(graph.node(x), bounds.min if least is None else least, bounds.max if most is None else most)


@translates(aten.where)
def _(graph: Recorder, condition: Tensor, x: Any, y: Any) -> Any:
    dtype = promoted(x, y)
    return op.select(graph.node(condition), graph.node(x, dtype), graph.node(y, dtype))


@translates(aten.masked_fill)
def _(graph: Recorder, x: Tensor, mask: Tensor, value: Any) -> Any:
    return op.select(graph.node(mask), graph.node(value, x.dtype), graph.node(x))


@translates(aten.logical_not, aten.bitwise_not)
def _(graph: Recorder, x: Tensor) -> Any:
    return op.logical_not(graph.node(x, torch.bool))


@translates(aten._to_copy)
def _(graph: Recorder, x: Tensor, *, dtype: torch.dtype | None = None, **how: Any) -> Any:
    if dtype is not None and dtype not in TYPES:
        raise Untranslatable(f"a conversion to {dtype}")
    return graph.node(x, dtype)


@translates(aten.clone, aten.alias, aten.detach, aten.lift_fresh, aten.lift_fresh_copy, aten.contiguous)
def _(graph: Recorder, x: Tensor, **how: Any) -> Any:
    return graph.node(x)


# Shapes


@translates(aten.view, aten._unsafe_view, aten.reshape)
def _(graph: Recorder, x: Tensor, shape: Sequence[int]) -> Any:
    return op.reshape(graph.node(x), whole(shape), False)


@translates(aten.unsqueeze)
def _(graph: Recorder, x: Tensor, dim: int) -> Any:
    return op.unsqueeze(graph.node(x), whole(dim))


@translates(aten.squeeze)
def _(graph: Recorder, x: Tensor, dims: int | Sequence[int] | None = None) -> Any:
    chosen = range(x.ndim) if dims is None else [dims] if isinstance(dims, int) else dims
    return op.squeeze(graph.node(x), whole([dim % x.ndim for dim in chosen if x.shape[dim] == 1]))


@translates(aten.expand)
def _(graph: Recorder, x: Tensor, shape: Sequence[int], *, implicit: bool = False) -> Any:
    now = [1] * (len(shape) - x.ndim) + list(x.shape)
    return op.broadcast(graph.node(x), whole([old if new == -1 else new for old, new in zip(now, shape, strict=True)]))


@translates(aten.transpose)
def _(graph: Recorder, x: Tensor, first: int, second: int) -> Any:
    axes = list(range(x.ndim))
    axes[first], axes[second] = axes[second], axes[first]
    return op.transpose(graph.node(x), whole(axes))


@translates(aten.t)
def _(graph: Recorder, x: Tensor) -> Any:
    return op.transpose(graph.node(x), whole(list(reversed(range(x.ndim)))))


@translates(aten.permute)
def _(graph: Recorder, x: Tensor, axes: Sequence[int]) -> Any:
    return op.transpose(graph.node(x), whole([axis % x.ndim for axis in axes]))


@translates(aten.cat)
def _(graph: Recorder, tensors: Sequence[Tensor], dim: int = 0) -> Any:
    dtype = functools.reduce(torch.promote_types, (tensor.dtype for tensor in tensors))
    return op.concat([graph.node(tensor, dtype) for tensor in tensors], dim)


@translates(aten.split, aten.split_with_sizes)
def _(graph: Recorder, x: Tensor, size: int | Sequence[int], dim: int = 0) -> Any:
    length = x.shape[dim]
    sizes = [min(size, length - start) for start in range(0, length, size)] if isinstance(size, int) else size
    return tuple(op.variadic_split(graph.node(x), whole(dim % x.ndim), whole(sizes)).outputs())


@translates(aten.slice)
def _(graph: Recorder, x: Tensor, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1) -> Any:
    length = x.shape[dim]
    ends = [length if end is None else min(end, length)]
    return op.slice(graph.node(x), whole([start or 0]), whole(ends), whole([step]), whole([dim % x.ndim]))


@translates(aten.select)
def _(graph: Recorder, x: Tensor, dim: int, index: int) -> Any:
    return op.gather(graph.node(x), whole(index % x.shape[dim]), whole(dim % x.ndim))


@translates(aten.embedding)
def _(graph: Recorder, weight: Tensor, indices: Tensor, *how: Any) -> Any:
    return op.gather(graph.node(weight), graph.node(indices), whole(0))


@translates(aten.constant_pad_nd)
def _(graph: Recorder, x: Tensor, pad: Sequence[int], value: float = 0) -> Any:
    before, after = [0] * x.ndim, [0] * x.ndim
    for axis in range(len(pad) // 2):  # from the last axis on
        before[-1 - axis], after[-1 - axis] = pad[2 * axis : 2 * axis + 2]
    return op.pad(graph.node(x), whole(before), whole(after), "constant", graph.node(value, x.dtype))


@translates(aten.upsample_nearest2d)
def _(graph: Recorder, x: Tensor, size: Sequence[int] | None, scales: Any = None, *how: Any) -> Any:
    if size is None:
        size = [int(side * scale) for side, scale in zip(x.shape[2:], scales, strict=True)]
    options = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    return op.interpolate(graph.node(x), whole(size), "nearest", "sizes", axes=whole([2, 3]), **options)


@translates(aten.avg_pool2d)
def _(graph: Recorder, x: Tensor, size: Sequence[int], stride: Sequence[int] = (), *how: Any) -> Any:
    if how:
        raise Untranslatable("an average over windows with a border")
    return op.avg_pool(graph.node(x), list(stride or size), [0, 0], [0, 0], list(size), exclude_pad=True)


@translates(aten.pixel_shuffle)
def _(graph: Recorder, x: Tensor, factor: int) -> Any:
    return op.depth_to_space(graph.node(x), "depth_first", factor)


@translates(aten.pixel_unshuffle)
def _(graph: Recorder, x: Tensor, factor: int) -> Any:
    return op.space_to_depth(graph.node(x), "depth_first", factor)


# Sums


@translates(aten.mean)
def _(graph: Recorder, x: Tensor, dims: Sequence[int] | None = None, keep: bool = False, **how: Any) -> Any:
    return op.reduce_mean(graph.node(x), whole(axes_of(x, dims)), keep)


@translates(aten.sum)
def _(graph: Recorder, x: Tensor, dims: Sequence[int] | None = None, keep: bool = False, **how: Any) -> Any:
    kept = x.dtype if x.is_floating_point() else torch.int64
    return op.reduce_sum(graph.node(x, kept), whole(axes_of(x, dims)), keep)


@translates(aten.all)
def _(graph: Recorder, x: Tensor, dim: int | None = None, keep: bool = False) -> Any:
    axes = axes_of(x, None if dim is None else [dim])
    return op.reduce_logical_and(graph.node(x, torch.bool), whole(axes), keep)


def axes_of(x: Tensor, dims: Sequence[int] | None) -> list[int]:
    return list(range(x.ndim)) if not dims else [dim % x.ndim for dim in dims]


@translates(aten._softmax)
def _(graph: Recorder, x: Tensor, dim: int, half: bool) -> Any:
    return op.softmax(graph.node(x), dim % x.ndim)


@translates(aten.native_layer_norm)
def _(graph: Recorder, x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Any:
    node = op.mvn(graph.node(x), whole(list(range(-len(shape), 0))), True, eps, "inside_sqrt")
    node = node if weight is None else op.multiply(node, graph.node(weight))
    return (node if bias is None else op.add(node, graph.node(bias)), None, None)


@translates(aten.native_group_norm)
def _(
    graph: Recorder,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    rows: int,
    channels: int,
    places: int,
    groups: int,
    eps: float,
) -> Any:
    ones, zeros = (np.full(channels, value, np.float32) for value in (1, 0))
    scale = op.constant(ones) if weight is None else graph.node(weight)
    shift = op.constant(zeros) if bias is None else graph.node(bias)
    return (op.group_normalization(graph.node(x), scale, shift, groups, eps), None, None)


@translates(aten.mm, aten.bmm, aten.matmul)
def _(graph: Recorder, x: Tensor, y: Tensor) -> Any:
    return op.matmul(graph.node(x), graph.node(y), False, False)


@translates(aten.addmm)
def _(graph: Recorder, added: Tensor, x: Tensor, y: Tensor) -> Any:
    return op.add(op.matmul(graph.node(x), graph.node(y), False, False), graph.node(added))


@translates(aten.convolution)
def _(
    graph: Recorder,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Any:
    if transposed:
        raise Untranslatable("a transposed convolution")
    how = [list(stride), list(padding), list(padding), list(dilation)]
    plain = groups == 1 and list(weight.shape[2:]) == [3, 3] and how == [[1, 1]] * 4
    plain = plain and graph.int8_name(weight) is None
    node = graph.convolution(graph, x, weight) if plain and graph.convolution else None
    if node is None and groups == 1:
        node = op.convolution(*graph.operands(x, weight), *how)
    elif node is None:
        shape = whole([groups, weight.shape[0] // groups, *weight.shape[1:]])
        node = op.group_convolution(graph.node(x), op.reshape(graph.node(weight), shape, False), *how)
    if bias is None:
        return node
    return op.add(node, op.reshape(graph.node(bias), whole([1, -1, *[1] * (x.ndim - 2)]), False))
