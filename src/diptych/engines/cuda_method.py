"""A method of a network on a GPU: its blocks compiled by torch.compile, and the whole a CUDA graph for each shape.

Compiling fuses what lies between convolutions and matrix products, group norms with their SiLU above all; equal blocks
share what is compiled, which takes a tenth of the time that the whole network would. A graph takes away what launching
a thousand kernels costs the host. Compiled blocks are in place only while a graph is captured, so that all that is not
for a graph runs as if there was none: gradients, hooks such as live LoRA, shapes beyond `MOST_SHAPES`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diptych.core.terminal import print_err
from diptych.engines import cuda_artifacts
from diptych.engines.cuda_capture import Call, Given, Graph, new_pool
from diptych.engines.replace import Part, Runner, Unfit, pad_context
from diptych.networks.blocks import blocks_of
from diptych.networks.compiled_blocks import allow_recompiling, reason, relative

MOST_SHAPES = 8
"""For which graphs are kept: with guidance and without, a batch of one and a larger one, two sizes."""
MOST_CHANGES = 4
"""Calls in a row that find other weights than the last, after which graphs are given up."""
TOLERANCE = {torch.float32: 2e-2, torch.float16: 5e-2, torch.bfloat16: 1e-1}
"""Largest distance from the method itself, by the norm: several times what rounding amounts to in a U-Net. In float32 a
GPU may multiply in TF32. A graph that reads the wrong memory is off by about 1."""
BACKEND = "inductor"
"""Of torch.compile."""

Regions = Literal["blocks", "whole", "none"]
"""What is compiled: each block of a network by itself, all of it, or nothing."""
Capture = Callable[[Call, Given, Any], Callable[[Given], Tensor]]
"""(call, inputs, pool) -> what answers for inputs of the same shapes."""


class CudaMethod(Runner):
    """Runs a part's method by graphs, each captured at the first call of its shape and compared with the method."""

    def __init__(
        self,
        part: Part,
        regions: Regions = "blocks",
        *,
        bf16: bool = False,
        tuned: bool = False,
        capture: Capture = Graph,
        cached: bool = True,
    ) -> None:
        """bf16: matrix products and convolutions are in bfloat16, whatever the weights are. tuned: cuDNN tries which of
        its convolutions is the fastest, so that last bits may differ between processes. capture: tests on a CPU have
        another. cached: compiled kernels are kept for the next process."""
        super().__init__(part)
        self.regions: Regions = regions
        self.bf16, self.tuned, self.capture, self.cached = bf16, tuned, capture, cached
        self.graphs: dict[tuple[Any, ...], Callable[[Given], Tensor] | None] = {}
        """By shapes; none for one that could not be captured."""
        self.weights: Weights | None = None  # of a copy, the module is not whole yet
        self.pool: Any = None
        self.changes = 0
        self.compiled: dict[nn.Module, Callable[..., Any]] | None = None
        self.told = set[str]()
        self.lock = threading.Lock()

    def again(self, part: Part) -> CudaMethod:
        how: Any = {"bf16": self.bf16, "tuned": self.tuned, "capture": self.capture, "cached": self.cached}
        return CudaMethod(part, self.regions, **how)

    def run(self, *args: Any, **kwargs: Any) -> Tensor:
        given = self.named(args, kwargs)
        shapes = tuple((name, value.shape, value.dtype, value.device) for name, value in given.items())
        with self.lock:
            self.weights = self.weights or Weights(self.part.module)
            self.look_at_weights(self.weights, next(iter(given.values())).device)
            if shapes not in self.graphs:
                if len(self.graphs) >= MOST_SHAPES:
                    self.tell(f"runs further shapes without CUDA graphs, of which it keeps {MOST_SHAPES}")
                    raise Unfit
                self.graphs[shapes] = self.captured(given, shapes)
            graph = self.graphs[shapes]
            if graph is None:
                raise Unfit
            return graph(given)

    def named(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
        """The tensors among the arguments, in one order, the context padded; `Unfit` where there is something else."""
        named: dict[str, Any] = {f"_{place}": value for place, value in enumerate(args)}
        named |= {name: kwargs[name] for name in sorted(kwargs) if kwargs[name] is not None}
        if not args or not all(isinstance(value, Tensor) for value in named.values()):
            raise Unfit
        return pad_context(named)

    def call(self, **given: Tensor) -> Tensor:
        """The method, of `named` arguments."""
        args = [value for name, value in given.items() if name[0] == "_"]
        kwargs = {name: value for name, value in given.items() if name[0] != "_"}
        if not self.bf16:
            return self.part.eager(*args, **kwargs)
        with torch.autocast(args[0].device.type, torch.bfloat16, cache_enabled=False):
            return self.part.eager(*args, **kwargs).float()

    def look_at_weights(self, weights: Weights, device: torch.device) -> None:
        """Drop graphs that read weights where these no longer lie, as after a change of LoRA. `Unfit` where graphs are
        of no use."""
        if weights.hooked:
            self.tell("runs without CUDA graphs as long as something is hooked into its layers, such as live LoRA")
            raise Unfit
        changed = weights.moved()
        self.changes = self.changes + 1 if changed else 0
        if changed:
            self.graphs.clear()
            self.pool = None
        if weights.device != device:
            raise Unfit
        if self.changes > MOST_CHANGES:
            self.tell("runs without CUDA graphs, as its weights move between calls")
            raise Unfit

    def captured(self, given: Given, shapes: Any) -> Callable[[Given], Tensor] | None:
        """A graph for inputs like these, or none, which is told. Where compiling fails, a graph of the method as it
        is."""
        first = next(iter(given.values()))
        if first.is_cuda and self.pool is None:
            self.part.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            assert self.weights is not None
            self.weights.moved()  # which is no change
            self.pool = new_pool()
        devices = [first.device] if first.is_cuda else []
        with torch.random.fork_rng(devices):
            own = self.call(**given)
            regions: Regions
            for regions in (self.regions, "none")[self.regions == "none" :]:
                how = "as a CUDA graph" if regions == "none" else "compiled"
                try:
                    with fastest_convolutions(self.tuned):
                        graph = self.compiled_graph(regions, given, shapes)
                    off = relative(own, graph(given))
                except Exception as error:  # compilers and CUDA raise many kinds
                    self.tell(f"cannot run {how} here ({reason(error)})")
                    continue
                if off <= TOLERANCE.get(torch.bfloat16 if self.bf16 else own.dtype, 0.0):
                    return graph
                self.tell(f"runs not {how}, as the result would be off by {off:.2g}")
        return None

    def compiled_graph(self, regions: Regions, given: Given, shapes: Any) -> Callable[[Given], Tensor]:
        """A graph for inputs like these, of compiled kernels; those are kept for the next process."""
        if regions == "none":
            return self.capture(self.call, given, self.pool)
        module = self.part.module
        key = cuda_artifacts.key_of(module, self.part.method, (shapes, self.bf16), regions)
        known = self.cached and cuda_artifacts.load(key, self.part.name)
        blocks = blocks_of(module, frozen=True) if regions == "blocks" else []
        if not known:
            first = list(next(iter(given.values())).shape)
            print_err(f"compiling the {self.part.name} for inputs of {first}: up to minutes, this once")
        if blocks:
            allow_recompiling(len(blocks), MOST_SHAPES)
            if self.compiled is None:
                self.compiled = {block: compiled(block.forward) for block in blocks}
            with in_place(self.compiled):
                graph = self.capture(self.call, given, self.pool)
        else:
            graph = self.capture(compiled(self.call), given, self.pool)
        if self.cached and not known:
            cuda_artifacts.save(key)
        return graph

    def tell(self, what: str) -> None:
        """Say something once."""
        if what not in self.told:
            self.told.add(what)
            print_err(f"engine compile: the {self.part.name} {what}")


class Weights:
    """Where the weights and buffers of a module lie. It is looked at in each call, so it goes through tables that it
    keeps, not through the module."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.layers = list(module.modules())
        tables = [table for layer in self.layers for table in (layer._parameters, layer._buffers)]
        self.places: list[tuple[dict[str, Any], str]] = [
            (table, name) for table in tables for name, value in table.items() if value is not None
        ]
        self.addresses: list[int] | None = None
        self.device: torch.device | None = None
        """Of all of them; none where they lie on several."""

    @property
    def hooked(self) -> bool:
        """Whether something is called beside a layer, or changes what it gives."""
        return any(layer._forward_hooks or layer._forward_pre_hooks for layer in self.layers)

    def moved(self) -> bool:
        """Whether they lie elsewhere than when this was last asked."""
        addresses = [table[name].data_ptr() for table, name in self.places]
        before, self.addresses = self.addresses, addresses
        if before == addresses:
            return False
        devices = {table[name].device for table, name in self.places}
        self.device = devices.pop() if len(devices) == 1 else None
        return before is not None


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function by torch.compile, for each shape by itself."""
    return torch.compile(function, dynamic=False, backend=BACKEND)


@contextlib.contextmanager
def fastest_convolutions(tried: bool) -> Iterator[None]:
    """Within, cuDNN tries its convolutions at the first call of each, if `tried`; a graph keeps the chosen ones."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = before or tried
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextlib.contextmanager
def in_place(calls: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Within, calls of these modules are calls of what was compiled of them."""
    for module, call in calls.items():
        module._compiled_call_impl = call
    try:
        yield
    finally:
        for module in calls:
            module._compiled_call_impl = None
