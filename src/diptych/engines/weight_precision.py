"""Weights in 8 bits, from which layers make those of the type in which they compute when they run.

Weight-only quantisation: each output channel has a scale, by which its weights are divided before they are rounded: to
whole numbers from -127 to 127 (`int8`), or to floating-point numbers with 3 bits of mantissa (`float8`, e4m3). Only the
layer that runs has its weights in full.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.errors import UserError, pick
from diptych.engines.host_weights import placeholder
from diptych.engines.memory_options import PRECISIONS
from diptych.engines.offload import networks
from diptych.networks.autoencoder import Autoencoder
from diptych.networks.tiny_decoder import TinyDecoder

LARGEST = {"float8": 448.0, "int8": 127.0}
"""The largest numbers of each kind."""
AT_ONCE = 2**24
"""Weights that are in float32 at a time while they are made."""


class QuantisedLayer(nn.Module):
    """A linear layer or convolution whose weights are in 8 bits; `quantise` turns a layer into one.

    It adds two parameters: the bytes, and the bits of the scales as integers, which a change of the model's type leaves
    as they are. `weight` answers as a placeholder with the shape and type of the weights in full, and without values.
    """

    kind: str
    computed: torch.dtype
    """The type in which it computes."""
    full_size: torch.Size
    bytes: nn.Parameter
    scale_bits: nn.Parameter

    @property
    def weight(self) -> Tensor:
        return placeholder(self.full_size, self.computed, self.bytes.device)

    def weights(self) -> Tensor:
        """Its weights in full."""
        rounded = self.bytes.view(torch.float8_e4m3fn) if self.kind == "float8" else self.bytes
        scales = self.scale_bits.view(torch.float32)
        full = torch.empty(self.full_size, dtype=self.computed, device=rounded.device)
        rows = max(1, AT_ONCE // max(1, rounded[0].numel()))
        for out, some, scale in zip(full.split(rows), rounded.split(rows), scales.split(rows), strict=True):
            out.copy_(some.float().mul_(scale))
        return full

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        raise UserError(
            f"these weights were rounded to {self.kind}: open the model without weight_precision to save it"
        )


class QuantisedLinear(QuantisedLayer, nn.Linear):
    """forward(x (..., in)) -> (..., out)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weights(), self.bias)


class QuantisedConv2d(QuantisedLayer, nn.Conv2d):
    """forward(x (B, in, H, W)) -> (B, out, H', W')."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weights(), self.bias)


@torch.no_grad()
def quantise_layer(layer: nn.Linear | nn.Conv2d, kind: str) -> None:
    """Round the weights of a layer, which computes as before."""
    weight = layer.weight.detach()
    full = weight.float()
    largest = full.flatten(1).abs().amax(1).view(-1, *[1] * (full.ndim - 1))  # of each output channel
    scale = torch.where(largest > 0, largest / LARGEST[kind], 1.0)
    rounded = full / scale
    if kind == "float8":
        rounded = rounded.to(torch.float8_e4m3fn).view(torch.uint8)
    else:
        rounded = rounded.round_().to(torch.int8)
    del layer.weight
    kinds = {nn.Linear: QuantisedLinear, nn.Conv2d: QuantisedConv2d}
    layer.__class__ = next(ours for theirs, ours in kinds.items() if isinstance(layer, theirs))  # type: ignore
    layer.kind, layer.computed, layer.full_size = kind, weight.dtype, weight.shape  # type: ignore[assignment]
    layer.register_parameter("bytes", nn.Parameter(rounded, requires_grad=False))
    layer.register_parameter("scale_bits", nn.Parameter(scale.view(torch.int32), requires_grad=False))


def quantise(module: nn.Module, kind: str) -> None:
    """Round the weights of the layers that a network repeats. The others (the first and last, those of times, classes
    and tokens, norms, biases) are few, and what is lost in them is lost in all that follows."""
    for layer in repeated_layers(module):
        quantise_layer(layer, pick("weight precision", kind, PRECISIONS[1:]))


def quantise_networks(model: Any, kind: str) -> None:
    """Round the weights of a model's networks that are in memory, but for autoencoders: they have few, and one sees
    what is lost in them."""
    for network in networks(model):
        if not isinstance(network, (Autoencoder, TinyDecoder)):
            quantise(network, kind)


def repeated_layers(module: nn.Module) -> Iterator[nn.Linear | nn.Conv2d]:
    """The linear layers and convolutions within the lists of a network's blocks."""
    for part in module.modules():
        if isinstance(part, nn.ModuleList):
            for layer in part.modules():
                if isinstance(layer, (nn.Linear, nn.Conv2d)) and not isinstance(layer, QuantisedLayer):
                    yield layer
