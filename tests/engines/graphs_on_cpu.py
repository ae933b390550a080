"""CUDA graphs on a CPU: a capture records the operations with the memory that they read and wrote, a replay does them
again on that memory. Python code between them runs no more, and weights that have moved are not seen, as on a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map


class CpuGraph:
    """Stands for `torch.cuda.CUDAGraph`."""

    captured = 0
    """How many there were."""

    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        for operation, args, kwargs, made in self.operations:
            again = operation(*args, **kwargs)
            for old, new in zip(tree_leaves(made), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


class Recorder(TorchDispatchMode):
    def __init__(self, graph: CpuGraph) -> None:
        super().__init__()
        self.graph = graph

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        args, kwargs, kept = tree_map(
            lambda one: one.detach() if isinstance(one, Tensor) else one, (args, kwargs or {}, made)
        )
        self.graph.operations.append((func, args, kwargs, kept))
        return made


@contextlib.contextmanager
def graph(graph: CpuGraph, pool: Any = None, stream: Any = None, capture_error_mode: str = "global") -> Iterator[None]:
    CpuGraph.captured += 1
    with Recorder(graph):
        yield


class Stream:
    def __init__(self, *_: Any) -> None:
        pass

    def wait_stream(self, _: Any) -> None:
        pass


def patch_graphs(patch: pytest.MonkeyPatch) -> type[CpuGraph]:
    """Put these in the place of PyTorch's."""
    CpuGraph.captured = 0
    for name, value in {
        "CUDAGraph": CpuGraph,
        "graph": graph,
        "Stream": Stream,
        "current_stream": Stream,
        "stream": lambda _: contextlib.nullcontext(),
        "graph_pool_handle": object,
    }.items():
        patch.setattr(torch.cuda, name, value)
    return CpuGraph
