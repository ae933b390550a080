"""Training low-rank changes of a network whose own weights stay as they are (LoRA; Hu et al. 2021)."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal, TypeVar

import torch
from torch import nn

from diptych.core.config import Config, Within
from diptych.networks.lora import AdaptableLayer, Adapter, LowRank, adapt

Module = TypeVar("Module", bound=nn.Module)
NAME = "trained"
"""Of the change among those of a layer."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig(Config):
    """A LoRA to train."""

    rank: Annotated[int, Within(1, 4096)] = 16
    """Rank of each layer's change, or that of the layer where it is lower."""
    alpha: float | None = None
    """The change is (alpha / rank) B A; none is the rank."""
    layers: Literal["all", "attention"] = "all"
    """Which layers are changed: convolutions too, or those of the transformers alone."""

    def check(self) -> None:
        self.require(self.alpha is None or self.alpha > 0, "alpha", "be more than 0, or none")

    def build(self, layers: Mapping[str, AdaptableLayer]) -> LoraLayers:
        """The changes of those of these layers that are to be changed."""
        chosen = {name: layer for name, layer in layers.items() if self.layers == "all" or ".attentions." in name}
        return LoraLayers(chosen, self.rank, self.alpha)


class LoraLayers(nn.Module):
    """The low-rank changes of some layers, by their names, live on them: what is trained, and nothing else.

    B starts at zero, so that the network is what it was; A as a linear layer's weight does (section 4.1).
    """

    def __init__(self, layers: Mapping[str, AdaptableLayer], rank: int, alpha: float | None = None) -> None:
        super().__init__()
        self.changes = nn.ModuleDict()
        for name, layer in layers.items():
            weight = layer.weight
            low = min(rank, weight.shape[0], math.prod(weight.shape[1:]))
            down = torch.empty(low, *weight.shape[1:], device=weight.device)
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))
            up = torch.zeros(weight.shape[0], low, *[1] * (weight.ndim - 2), device=weight.device)
            change = LowRank(down, up, None if alpha is None else alpha * low / rank).requires_grad_(True)
            self.changes[name.replace(".", "/")] = change  # names of modules hold no dots
            adapt(layer, NAME, Adapter(change, 1.0, live=True))

    def named_changes(self) -> dict[str, LowRank]:
        """The change of each layer, by its name."""
        return {name.replace("/", "."): change for name, change in self.changes.items()}  # type: ignore[misc]


def sharing_weights(network: Module) -> Module:
    """A copy of a network with the same tensors as weights: one may be adapted, and the other stays as it is."""
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    return copy.deepcopy(network, shared)
