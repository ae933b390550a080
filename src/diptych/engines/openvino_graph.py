"""A network as a graph of OpenVINO, recorded while it runs on tensors without memory.

No tracing compiler is needed: PyTorch calls `__torch_dispatch__` for each operation, which is translated there
(`openvino_ops`). That takes a quarter of a second for a U-Net of 700 tensors, a trace and its conversion four.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import openvino as ov
import torch
from openvino import opset15 as op
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from diptych.networks.lora import adapters

TYPES = {
    torch.float32: (np.float32, ov.Type.f32),
    torch.float64: (np.float64, ov.Type.f64),
    torch.int64: (np.int64, ov.Type.i64),
    torch.int32: (np.int32, ov.Type.i32),
    torch.bool: (np.bool_, ov.Type.boolean),
}
"""Types of tensors that a graph may have, in numpy and OpenVINO."""


class Untranslatable(Exception):
    """What no graph can be made of: an operation without a translation, or a value that is not known in advance."""


class Recorder(TorchDispatchMode):
    """Within, operations on tensors of the `meta` device become nodes of a graph.

    convolution: makes the node of a 3x3 convolution of stride 1, given (recorder, input, weight); none for OpenVINO's.
    int8: makes inputs and weights of some layers integers (`int8_graph.Int8Layers`).
    """

    def __init__(
        self, convolution: Callable[[Recorder, Tensor, Tensor], Any] | None = None, int8: Any | None = None
    ) -> None:
        super().__init__()
        self.convolution, self.int8 = convolution, int8
        self.values: dict[int, Tensor] = {}
        """Weights, by the id of the tensor that stands for each."""
        self.names: dict[int, str] = {}
        """Their names in the module, likewise."""
        self.nodes: dict[int, Any] = {}
        self._kept: list[Tensor] = []  # an id is that of one tensor only as long as it lives
        self._silent = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # or PyTorch imports its compiler, seconds, to leave this out of what it compiles

    def bind(self, tensor: Tensor, node: Any) -> Tensor:
        """Have a node stand for a tensor."""
        self.nodes[id(tensor)] = node
        self._kept.append(tensor)
        return tensor

    def operands(self, x: Tensor, weight: Tensor) -> tuple[Any, Any]:
        """The nodes of a layer's input and weight."""
        name = self.int8_name(weight)
        if name is None or self.int8 is None:
            return self.node(x), self.node(weight)
        return self.int8.input(self, x, name), self.int8.weight(self.values[id(weight)])

    def int8_name(self, weight: Tensor) -> str | None:
        """The name of a weight whose layer is to compute with integers; none for others."""
        name = self.names.get(id(weight))
        return name if self.int8 is not None and name in self.int8 else None

    def weight(self, value: Tensor, name: str = "") -> Tensor:
        """What stands for a weight, whose memory the graph shares. LoRA's may be in 16 bits: it converts them."""
        stored = value.dtype
        if name.startswith("changes.") and stored in (torch.float16, torch.bfloat16):
            value = value.float()
        if value.dtype not in TYPES or value.dtype == torch.float64:  # which the CPU would compute in float32
            raise Untranslatable(f"weights of {value.dtype}")
        value = value.detach().contiguous()
        stand_in = self.empty(value.shape, stored)
        self.values[id(stand_in)], self.names[id(stand_in)] = value, name
        return self.bind(stand_in, op.constant(value.numpy(), shared_memory=True))

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor without memory, whose making is not recorded."""
        before, self._silent = self._silent, True
        try:
            return torch.empty(tuple(shape), dtype=dtype, device="meta")
        finally:
            self._silent = before

    def node(self, value: Any, dtype: torch.dtype | None = None) -> Any:
        """The node of a tensor, converted to a dtype if it is of another, or of a number of that dtype."""
        if not isinstance(value, Tensor):
            return op.constant(np.asarray(value, dtype=TYPES[dtype or torch.float32][0]))
        if id(value) not in self.nodes:
            if value.device.type == "meta" or value.dtype not in TYPES:
                raise Untranslatable("a tensor that no recorded operation made")
            self.bind(value, op.constant(value.detach().contiguous().numpy()))
        node = self.nodes[id(value)]
        return node if dtype in (None, value.dtype) else op.convert(node, TYPES[dtype][1])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if self._silent:
            return func(*args, **kwargs)
        tensors = list(_tensors(args))
        if not any(
            tensor.device.type == "meta" for tensor in tensors
        ):  # a table: computed now, a constant of the graph
            return func(*args, **({**kwargs, "device": "cpu"} if "device" in kwargs else kwargs))
        from diptych.engines.openvino_ops import translation

        # OpenVINO knows the shapes. PyTorch asks Python code that imports its compiler, which takes seconds.
        made = translation(func)(self, *(self._stand_in(value) for value in args), **kwargs)
        return tuple(self.result(node) for node in made) if isinstance(made, tuple) else self.result(made)

    def result(self, node: Any) -> Tensor:
        """A tensor for what a node gives; an empty one for what nobody reads."""
        if node is None:
            return self.empty((0,), torch.float32)
        output = node if isinstance(node, ov.Output) else node.output(0)
        dtype = next(torch_type for torch_type, (_, kind) in TYPES.items() if kind == output.get_element_type())
        return self.bind(self.empty(tuple(output.get_shape()), dtype), node)

    def _stand_in(self, value: Any) -> Any:
        """Constants among arguments as tensors of the device of the others."""
        if isinstance(value, Tensor) and value.device.type != "meta":
            return self.bind(self.empty(value.shape, value.dtype), self.node(value))
        if isinstance(value, (list, tuple)):
            return type(value)(self._stand_in(one) for one in value)
        return value


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


class WholeFunctions(TorchFunctionMode):
    """Within, functions that OpenVINO has as one node are not taken apart."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            return self.linear(*args, **(kwargs or {}))
        if func is F.scaled_dot_product_attention:
            return self.attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        node = op.matmul(*self.recorder.operands(input, weight), False, True)
        return self.recorder.result(node if bias is None else op.add(node, self.recorder.node(bias)))

    def attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
    ) -> Tensor:
        arguments = [self.recorder.node(tensor) for tensor in (query, key, value)]
        if attn_mask is not None:
            mask = self.recorder.node(attn_mask)
            if attn_mask.dtype == torch.bool:  # added, OpenVINO's kernels take it faster
                mask = op.select(mask, op.constant(np.float32(0)), op.constant(np.float32(LEAST)))
            arguments.append(mask)
        if scale is not None:
            arguments[0] = op.multiply(arguments[0], op.constant(np.float32(scale * query.shape[-1] ** 0.5)))
        return self.recorder.result(op.scaled_dot_product_attention(*arguments, causal=is_causal))


LEAST = -1e30
"""What is added to the logits of what may not be attended to: its exponential is 0."""


class _Bound(nn.Module):
    """A method of a module as a module's forward, and what LoRA adds to its layers, which are no submodules of it."""

    def __init__(self, module: nn.Module, method: Callable[..., Tensor]) -> None:
        super().__init__()
        self.module, self.method = module, method
        self.changes = nn.ModuleList(each.change for layer in module.modules() for _, each in adapters(layer))

    def forward(self, **inputs: Tensor) -> Tensor:
        return self.method(**inputs)


def record(
    module: nn.Module,
    method: Callable[..., Tensor],
    inputs: Mapping[str, tuple[Sequence[int], torch.dtype]],
    convolution: Callable[[Recorder, Tensor, Tensor], Any] | None = None,
    int8: Any | None = None,
) -> ov.Model:
    """The graph of a method of a module, for inputs of these shapes and types, in this order. It shares the memory of
    the weights. Raises `Untranslatable`.
    """
    recorder, bound = Recorder(convolution, int8), _Bound(module, method)
    parameters, stand_ins = [], {}
    for name, (shape, dtype) in inputs.items():
        parameters.append(op.parameter(list(shape), TYPES[dtype][1], name=name))
        stand_ins[name] = recorder.bind(recorder.empty(shape, dtype), parameters[-1])
    tensors = {**dict(bound.named_parameters()), **dict(bound.named_buffers())}
    weights = {name: recorder.weight(tensor, name.removeprefix("module.")) for name, tensor in tensors.items()}
    with torch.no_grad(), recorder, WholeFunctions(recorder), untranslatable():
        out = torch.func.functional_call(bound, weights, (), stand_ins)
    return ov.Model([op.result(recorder.nodes[id(out)])], parameters, type(module).__name__)  # type: ignore[reportGeneralTypeIssues]


@contextlib.contextmanager
def untranslatable() -> Iterator[None]:
    """Within, failures of PyTorch at what needs values, which `meta` tensors have not, are `Untranslatable`."""
    try:
        yield
    except (RuntimeError, NotImplementedError, TypeError, KeyError) as error:
        raise Untranslatable(str(error).splitlines()[0][:200]) from error
