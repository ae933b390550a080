"""Low-rank changes of a network's layers (LoRA; Hu et al. 2021, section 4.1), live or merged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from diptych.core.errors import UserError

AdaptableLayer = nn.Linear | nn.Conv2d
"""Layers that a low-rank change applies to; convolutions of one group."""
PLACE = "low_rank"
"""The attribute of a layer that holds its changes: no module and no buffer, so that they are in no state dict."""


class LowRank(nn.Module):
    """The change of one layer's weight, (alpha / rank) B A, with two thin matrices.

    down, A: (rank, in) for a linear layer, (rank, in, kh, kw) with the kernel of a convolution.
    up, B: (out, rank), or (out, rank, 1, 1) for a convolution.
    alpha: the rank unless given, so that nothing is scaled.

    forward(layer, x) -> the term that is added to `layer(x)`. Differentiable in both matrices.
    """

    def __init__(self, down: Tensor, up: Tensor, alpha: float | None = None) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(down, requires_grad=False), nn.Parameter(up, requires_grad=False)
        self.alpha = float(self.rank if alpha is None else alpha)

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    def delta(self) -> Tensor:
        """The change as a matrix or kernel of the weight's shape, in float32.

        A kernel in rows, (rank, in kh kw), is multiplied like a matrix: B is a 1x1 convolution of the
        output of A's.
        """
        change = self.up.float().flatten(1) @ self.down.float().flatten(1)  # (out, in) or (out, in kh kw)
        return self.alpha / self.rank * change.unflatten(1, self.down.shape[1:])

    def forward(self, layer: AdaptableLayer, x: Tensor) -> Tensor:
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        if isinstance(layer, nn.Conv2d):
            added = F.conv2d(F.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation), up)
        else:
            added = F.linear(F.linear(x, down), up)
        return self.alpha / self.rank * added


class Adapter(NamedTuple):
    """One low-rank change of a layer."""

    change: LowRank
    scale: float
    """Factor in addition to alpha / rank; 0 is no change, negative ones reverse it."""
    live: bool
    """Added to the layer's output at each call; otherwise to its weight."""


@dataclass
class LayerAdapters:
    """The changes of a layer, and its original weight."""

    adapters: dict[str, Adapter] = field(default_factory=dict)
    base: Tensor | None = None
    """The weight itself, as long as changes are merged into the one in use."""
    hook: RemovableHandle | None = None


@torch.no_grad()
def adapt(layer: AdaptableLayer, name: str, adapter: Adapter | None) -> None:
    """Give a layer the change of this name in the place of any it had under it; none takes that away.

    The layer's original weight is never written to. Merged changes replace it by a new one, computed from it and all of
    them; when the last is removed, the original is restored to the bit.
    """
    if adapter is not None and not adapter.live and layer.weight.numel() > 1 and not any(layer.weight.stride()):
        raise UserError("weights that are offloaded or in 8 bits take no merged LoRA: apply it live")
    carried: LayerAdapters = vars(layer).setdefault(PLACE, LayerAdapters())
    carried.adapters.pop(name, None)
    if adapter is not None:
        carried.adapters[name] = adapter._replace(change=adapter.change.to(layer.weight.device))

    merged = [each for each in carried.adapters.values() if not each.live]
    if merged and carried.base is None:
        carried.base = layer.weight.detach()
    if carried.base is not None:
        weight = carried.base.to(layer.weight.device)
        for each in merged:
            weight = each.scale * each.change.to(weight.device).delta() + weight  # in float32 at least
        layer.weight.data = weight.to(layer.weight.dtype)
        carried.base = carried.base if merged else None

    live = len(merged) < len(carried.adapters)
    if live and carried.hook is None:
        carried.hook = layer.register_forward_hook(add_live_adapters)
    if not live and carried.hook is not None:
        carried.hook.remove()
        carried.hook = None
    if not carried.adapters:
        del vars(layer)[PLACE]


def add_live_adapters(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """A forward hook: the layer's output plus its live changes."""
    for _, (change, scale, live) in adapters(layer):
        if live:
            if change.down.device != output.device:  # the network has been moved since
                change.to(output.device)
            output = output + scale * change(layer, inputs[0])
    return output


def adapters(layer: nn.Module) -> Iterator[tuple[str, Adapter]]:
    """The changes of one layer by their names, in the order in which they came."""
    carried: LayerAdapters | None = vars(layer).get(PLACE)
    yield from carried.adapters.items() if carried else ()


def adapted(*networks: nn.Module | None) -> dict[str, float]:
    """Name and scale of each change that a layer of these networks carries."""
    layers = (layer for network in networks if network is not None for layer in network.modules())
    return {name: each.scale for layer in layers for name, each in adapters(layer)}
