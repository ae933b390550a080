"""The passes of a network as CUDA graphs: launched at once, where eager PyTorch launches each kernel."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from diptych.core.terminal import print_err
from diptych.networks.compiled_blocks import reason, relative

TOLERANCE = 1e-2
"""Largest distance of captured outputs and gradients from eager ones, by their norm: they may be of bfloat16."""

Captured = Callable[..., Tensor]
"""What takes the tensors that a network takes, in their order, and gives its output with a gradient."""


class GraphedNetwork(nn.Module):
    """A network `(x, time, **cond) -> output` whose training passes are captured at the first one and replayed.

    A replay needs the shapes of the capture: others, and passes without a gradient, run as they are. What cannot be
    captured, or gives other values than the network itself, runs as it is too, and a line says why. A parameter's
    gradient lies in memory of the graph, and the next replay overwrites it: one pass a step, without accumulation.
    """

    def __init__(self, network: nn.Module, capture: Callable[..., Captured] | None = None) -> None:
        super().__init__()
        self.network, self._capture = network, capture or captured
        self.passes: Captured | None = None
        self.shapes: object = None
        """What was captured; with `passes` none, what could not be."""

    def forward(self, x: Tensor, time: Tensor, **cond: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and self.network.training):
            return self.network(x, time, **cond)
        given = {"x": x, "time": time, **{key: cond[key] for key in sorted(cond) if cond[key] is not None}}
        shapes = [(key, value.shape, value.dtype, value.requires_grad) for key, value in given.items()]
        if self.shapes is None:
            self.shapes = shapes
            self.try_to_capture(given)
        if self.passes is None or self.shapes != shapes:
            return self.network(**given)
        return self.passes(*given.values())

    def try_to_capture(self, given: dict[str, Tensor]) -> None:
        devices = [given["x"].device] if given["x"].is_cuda else []
        with torch.random.fork_rng(devices):  # dropout of the first step is that of a run without graphs
            try:
                passes = self._capture(self.network, given)
            except (RuntimeError, AssertionError) as error:
                print_err(f"training.cuda_graphs: the network runs without, as it cannot be captured ({reason(error)})")
                return
            if (distance := self.distance(passes, given)) > TOLERANCE:
                print_err(
                    f"training.cuda_graphs: the network runs without, as its captured passes are off by {distance:.2g}"
                )
                return
        self.passes = passes

    def distance(self, passes: Captured, given: dict[str, Tensor]) -> float:
        """How far the captured output, or the gradients, are from the network's own, relative to these."""
        parameters = [p for p in self.network.parameters() if p.requires_grad]
        outputs, gradients = list[Tensor](), list[Tensor]()
        for run in (lambda: self.network(**given), lambda: passes(*given.values())):
            torch.manual_seed(0)
            output = run()
            weights = torch.linspace(-1, 1, output.numel(), device=output.device).view_as(output)
            grads = torch.autograd.grad((output.float() * weights).sum(), parameters, allow_unused=True)
            outputs.append(output.detach().float().clone())
            gradients.append(torch.cat([grad.detach().float().flatten() for grad in grads if grad is not None]))
        return max(relative(*outputs), relative(*gradients))


class Positional(nn.Module):
    """A network that takes its arguments in the order of `names`."""

    def __init__(self, network: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *values: Tensor) -> Tensor:
        return self.network(**dict(zip(self.names, values, strict=True)))


def captured(network: nn.Module, given: dict[str, Tensor]) -> Captured:
    """The forward and the backward pass of a network for inputs like these, as two graphs."""
    samples = tuple(value.detach().clone().requires_grad_(value.requires_grad) for value in given.values())
    plain = torch.cuda.graph
    bf16 = torch.is_autocast_enabled("cuda")
    # Threads that prepare batches allocate pinned memory meanwhile: only this one may not, during a capture.
    torch.cuda.graph = functools.partial(plain, capture_error_mode="thread_local")  # type: ignore[assignment, misc]
    try:
        with torch.autocast("cuda", torch.get_autocast_dtype("cuda"), enabled=bf16, cache_enabled=False):
            positional = Positional(network, tuple(given))
            return torch.cuda.make_graphed_callables(positional, samples, allow_unused_input=True)  # type: ignore
    finally:
        torch.cuda.graph = plain
