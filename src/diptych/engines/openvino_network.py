"""A method of a network, compiled by OpenVINO for the CPU, once a shape."""

from __future__ import annotations

import contextlib
import functools
import gc
import inspect
import json
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import openvino as ov
import torch
from torch import Tensor

from diptych.core.caches import short_hash
from diptych.core.devices import free_memory
from diptych.core.processors import processor_name
from diptych.engines import compiled_cache, open_ahead, openvino_core, openvino_graph, winograd
from diptych.engines.compute_precision import Precision
from diptych.engines.int8_graph import Int8Layers
from diptych.engines.int8_ranges import NetworkRanges
from diptych.engines.network_hash import lora_hash, network_config, weights_hash
from diptych.engines.openvino_core import DEVICE, compile_options, core, exported, open_compiled
from diptych.engines.replace import Part, Runner, Unfit, pad_context
from diptych.engines.say_once import short, tell
from diptych.engines.weights_watch import WeightsWatch, numbers

MOST_SHAPES = 6
"""Compiled at a time; each holds weights of its own."""
STREAMS = 2
"""Rows that run at a time, with half of the threads each: a tenth faster than one after the other with all of them."""
COPIES, INT8_COPIES = 2.2, 1.0
"""Memory that compiling takes, in sizes of the weights: those laid out anew, and those of Winograd's convolutions. In
int8 a weight is a quarter of itself."""


class OpenVINOMethod(Runner):
    """Runs a part's method row by row: what an image becomes does not depend on those beside it, and one shape is
    compiled whatever the size of the batch. On CPUs, batches of these networks would be hardly faster.

    A row alone has all threads; of several, `STREAMS` run at a time, which may round the last bit in another way.

    Weights may change between calls (LoRA): what was compiled from others is not used again.
    """

    def __init__(
        self,
        part: Part,
        precision: Precision = "float32",
        source: str = "",
        ranges: NetworkRanges | None = None,
    ) -> None:
        super().__init__(part)
        self.ranges = ranges  # of the layers that compute in int8
        self.source = source  # of the model, by which what it used last is opened ahead
        self.precision: Precision = precision
        self._compiled: OrderedDict[Any, list[ov.InferRequest]] = OrderedDict()
        self._lock, self._watch = threading.Lock(), WeightsWatch(part.module)

    def again(self, part: Part) -> OpenVINOMethod:
        ranges = None if self.ranges is None else self.ranges.again(self.part.module, part.module)
        return OpenVINOMethod(part, self.precision, self.source, ranges)

    def __reduce__(self) -> Any:
        return OpenVINOMethod, (self.part, self.precision, self.source, self.ranges)

    def run(self, *args: Any, **kwargs: Any) -> Tensor:
        if openvino_core.forked:
            tell("networks run in PyTorch: OpenVINO does not outlive a fork; start processes by spawn")
            raise Unfit
        inputs = self._read(args, kwargs)
        rows = len(next(iter(inputs.values())))
        shapes = {name: ((1, *value.shape[1:]), value.dtype) for name, value in inputs.items()}
        with self._lock:
            key, requests = self._requests(shapes, rows)
            out: list[Tensor] = []
            try:
                for start in range(0, rows, len(requests)):
                    some = range(start, min(start + len(requests), rows))
                    out += infer(requests, [{name: inputs[name][row : row + 1] for name in inputs} for row in some])
            except (RuntimeError, MemoryError) as error:
                tell(f"the {self.part.name} runs in PyTorch: OpenVINO failed ({short(error)})")
                self._compiled[key] = []
                raise Unfit from None
        return torch.cat(out)

    @property
    def compiled_bytes(self) -> int:
        """Memory that what was compiled takes, about."""
        return round(sum(map(bool, self._compiled.values())) * self._bytes_of_one())

    def _bytes_of_one(self) -> float:
        copies = COPIES if self.ranges is None else INT8_COPIES
        state = self.part.module.state_dict()
        return copies * sum(value.numel() * value.element_size() for value in state.values())

    def _read(self, args: Any, kwargs: Any) -> dict[str, Tensor]:
        """The tensors of a call by their names, ready for OpenVINO; `Unfit` if some are not for it."""
        names = _signature(type(self.part.module), self.part.method)
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        inputs = {name: value for name, value in given.items() if value is not None}
        tensors = all(
            isinstance(value, Tensor) and value.device.type == "cpu" and value.ndim for value in inputs.values()
        )
        if not inputs or not tensors:
            raise Unfit
        for value in inputs.values():
            if value.dtype not in openvino_graph.TYPES:
                tell(f"the {self.part.name} runs in PyTorch, since OpenVINO is given no {value.dtype}")
                raise Unfit
        if len({len(value) for value in inputs.values()}) != 1 or not len(next(iter(inputs.values()))):
            raise Unfit
        if "context_mask" in inputs and not inputs["context_mask"].any(1).all():
            raise Unfit  # where nothing is attended to, PyTorch's attention gives zeros, OpenVINO's an average
        return {name: value.contiguous() for name, value in pad_context(inputs).items()}

    def _requests(self, shapes: Mapping[str, Any], rows: int) -> tuple[Any, list[ov.InferRequest]]:
        """What runs on these shapes, each a row at a time, compiled if it is not, and the key under which it is kept;
        `Unfit` where that cannot be done."""
        streams = min(STREAMS, rows, torch.get_num_threads())
        state = self._watch.state(), torch.get_num_threads()
        if self._watch.hooked:
            tell(f"the {self.part.name} runs in PyTorch as long as something is hooked into its layers")
            raise Unfit
        key = (tuple(shapes.items()), streams, state)
        if key not in self._compiled:
            for old in [other for other in self._compiled if other[-1] != state]:
                del self._compiled[old]
            while len(self._compiled) >= MOST_SHAPES:
                self._compiled.popitem(last=False)
            self._compiled[key] = self._made(shapes, streams) if self._has_memory() else []
        self._compiled.move_to_end(key)
        if not (requests := self._compiled[key]):
            raise Unfit
        return key, requests

    def _has_memory(self) -> bool:
        """Whether the network can be compiled; those for other shapes make room."""
        needed = self._bytes_of_one()
        if (free := free_memory()) is not None and needed > free:
            gc.collect()  # of models that are no longer used
        while (free := free_memory()) is not None and needed > free:
            if not self._compiled:
                sizes = f"{needed / 2**30:.1f} GiB, and {free / 2**30:.1f} are free"
                tell(f"the {self.part.name} runs in PyTorch: to compile it takes {sizes}")
                return False
            self._compiled.popitem(last=False)
        return True

    def _made(self, shapes: Mapping[str, Any], streams: int) -> list[ov.InferRequest]:
        """What runs on these shapes; nothing where it cannot be made, which a line says: PyTorch needs none of it."""
        try:
            compiled = self._compile(shapes, streams)
            return [compiled.create_infer_request() for _ in range(streams)]
        except openvino_graph.Untranslatable as error:
            tell(f"the {self.part.name} runs in PyTorch: OpenVINO has no translation of {error}")
        except Exception as error:
            tell(f"the {self.part.name} runs in PyTorch: OpenVINO cannot compile it ({short(error)})")
        return []

    def _compile(self, shapes: Mapping[str, Any], streams: int) -> ov.CompiledModel:
        part = self.part
        options = compile_options(self.precision, torch.get_num_threads(), streams)
        key = {
            "openvino": ov.__version__,
            "processor": processor_name(),
            "code": compiled_cache.code_hash(),
            "network": f"{type(part.module).__qualname__}.{part.method}",
            "config": network_config(part.module),
            "layers": short_hash(repr([part.module, *map(numbers, part.module.modules())])),  # which may have changed
            "weights": weights_hash(part.module),
            "inputs": json.loads(json.dumps({name: [shape, str(dtype)] for name, (shape, dtype) in shapes.items()})),
            "options": options,
            "precision": self.precision,
        }
        int8 = None
        if self.ranges is not None:
            int8 = Int8Layers(self.ranges.layers)
            key["int8"] = short_hash(repr(sorted(self.ranges.layers.items())))
            if lora_hash(part.module) not in ("", self.ranges.lora):
                tell(f"int8: the {part.name} was measured without its LoRA: `diptych calibrate --lora` does so with it")
        compiled = self._compiled_before(key)
        if compiled is None:
            graph = openvino_graph.record(part.module, part.eager, shapes, winograd.Convolutions(), int8)
            compiled = core().compile_model(graph, DEVICE, options)
            compiled_cache.write(key, exported(compiled))
        open_ahead.note(self.source, f"{part.name} {streams}", compiled_cache.path_of(key))
        return compiled

    def _compiled_before(self, key: dict[str, Any]) -> ov.CompiledModel | None:
        """What was compiled under this key in this process, ahead of its use, or in an earlier one."""
        if (compiled := open_ahead.take(self.source, compiled_cache.path_of(key), key)) is not None:
            return compiled
        try:
            body = compiled_cache.read(key)
            return None if body is None else open_compiled(compiled_cache.Stored(key, body))
        except ValueError as error:
            tell(f"{error}: compiled again")
        except RuntimeError as error:
            tell(f"a compiled network could not be opened ({short(error)}): compiled again")
        return None


def infer(requests: Sequence[ov.InferRequest], rows: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
    """What requests make of as many rows, which run at a time. A `RuntimeError` or `MemoryError` where one fails."""
    running = list(zip(requests, rows, strict=False))
    try:
        for request, row in running:  # which keeps the memory of the inputs alive
            request.start_async({name: value.numpy() for name, value in row.items()}, share_inputs=True)
        for request, _ in running:
            request.wait()
        return [torch.from_numpy(request.get_output_tensor(0).data.copy()) for request, _ in running]
    finally:  # even after Ctrl-C none is left running: it could not be started again
        for request, _ in running:
            with contextlib.suppress(RuntimeError):
                request.wait()


@functools.cache
def _signature(kind: type, method: str) -> tuple[str, ...]:
    """The names of a method's arguments, without itself."""
    return tuple(inspect.signature(getattr(kind, method)).parameters)[1:]
