"""One call of a network as a CUDA graph: its kernels are launched at once, where PyTorch launches each by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Call = Callable[..., Tensor]
"""A network: tensors by their names in, one tensor out."""
Given = Mapping[str, Tensor]
WARM_UPS = 3
"""Calls before the capture, in which kernels are compiled and chosen, and libraries take their memory."""


class Graph:
    """A captured call. It reads the inputs' values from tensors of its own, and the weights where they lay when it was
    captured; graphs of one `pool` use the same memory, so only one of them may run at a time."""

    def __init__(self, call: Call, given: Given, pool: object = None) -> None:
        """To be called without gradients, on the stream of the later calls. Raises whatever PyTorch raises where
        something cannot be captured: a wait for the GPU, memory that does not suffice."""
        self.inputs = {name: value.detach().clone() for name, value in given.items()}
        device = next(iter(self.inputs.values())).device
        here, side = torch.cuda.current_stream(device), torch.cuda.Stream(device)
        side.wait_stream(here)
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                call(**self.inputs)
        here.wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        # Other threads may allocate meanwhile: a server prepares the next image.
        with torch.cuda.graph(self.graph, pool=pool, stream=side, capture_error_mode="thread_local"):  # type: ignore[arg-type]
            self.output = call(**self.inputs)

    def __call__(self, given: Given) -> Tensor:
        """The output for inputs of the same shapes and types; nothing is waited for."""
        for name, own in self.inputs.items():
            own.copy_(given[name])
        self.graph.replay()
        return self.output.clone()  # the next replay overwrites it


def new_pool() -> object:
    """Memory that graphs share."""
    return torch.cuda.graph_pool_handle()
