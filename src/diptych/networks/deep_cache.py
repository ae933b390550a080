"""Feature caching of U-Nets: what is deep in them changes little from step to step (DeepCache: Ma et al. 2023).

A U-Net is cut (section 3.2) between its outermost blocks, which run in every call, and all that is beneath them, which
runs in every N-th. A network has no state: its two halves take and give tensors, so that each can be compiled, and
`FeatureCache` lives as long as one sampling.
"""

from __future__ import annotations

import copy
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.errors import UserError
from diptych.networks.adm import AdmBlock, AdmUNet
from diptych.networks.efficient_unet import EfficientUNet
from diptych.networks.layers import Downsample, Upsample
from diptych.networks.unet import UNet

D = TypeVar("D", bound="HasNetwork")


class HasNetwork(Protocol):
    """A denoiser."""

    network: Any


class CutUNet:
    """The two halves of a network. Both take the arguments of its `forward`."""

    def __init__(self, network: Any) -> None:
        self.network = network

    def full(self, x: Tensor, time: Tensor, **cond: Tensor) -> tuple[Tensor, Tensor]:
        """The network's output (B, out_channels, H, W), and what comes up from beneath the cut (B, C, h, w)."""
        return self.all_blocks(*self.prepare(x, time, cond))

    def shallow(self, deep: Tensor, x: Tensor, time: Tensor, **cond: Tensor) -> Tensor:
        """The output by the outermost blocks, with what came up from beneath the cut in an earlier call."""
        return self.outer_blocks(deep, *self.prepare(x, time, cond))

    def prepare(self, x: Tensor, time: Tensor, cond: dict[str, Tensor]) -> tuple:
        conditions: dict[str, Tensor | None] = {key: value for key, value in cond.items() if key != "concat"}
        return self.network.prepare(x, time, cond.get("concat"), conditions)

    def all_blocks(
        self, x: Tensor, embedding: Tensor, context: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def outer_blocks(
        self, deep: Tensor, x: Tensor, embedding: Tensor, context: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        raise NotImplementedError


class PlainCut(CutUNet):
    """Of a `UNet`: its first block on the way down and its last two on the way up are the outermost."""

    network: UNet

    def all_blocks(
        self, x: Tensor, embedding: Tensor, context: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        net = self.network
        x = net.conv_in(x)
        skips = [x]
        for block in net.down:
            x = block(x, embedding, context, mask)
            skips.append(x)
            if isinstance(block.resample, Downsample):
                x = block.resample(x)
                skips.append(x)
        before, attention, after = net.middle
        x = after(attention(before(x, embedding), context, mask), embedding)
        for block in net.up[:-2]:
            x = block(torch.cat([x, skips.pop()], dim=1), embedding, context, mask)
            if isinstance(block.resample, Upsample):
                x = block.resample(x, skips[-1].shape[-2:])
        return self.ending(x, skips, embedding, context, mask), x

    def outer_blocks(
        self, deep: Tensor, x: Tensor, embedding: Tensor, context: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        first = self.network.conv_in(x)
        skips = [first, self.network.down[0](first, embedding, context, mask)]
        return self.ending(deep, skips, embedding, context, mask)

    def ending(
        self, x: Tensor, skips: list[Tensor], embedding: Tensor, context: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        net = self.network
        for block in net.up[-2:]:
            x = block(torch.cat([x, skips.pop()], dim=1), embedding, context, mask)
        return net.conv_out(F.silu(net.norm_out(x)))


class AdmCut(CutUNet):
    """The same of an `AdmUNet`."""

    network: AdmUNet

    def all_blocks(
        self, x: Tensor, embedding: Tensor, context: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        x, skips = self.network.encode(x, embedding, context, mask)
        for block in self.network.up[:-2]:
            assert isinstance(block, AdmBlock)
            if not block.doubles:
                x = torch.cat([x, skips.pop()], dim=1)
            x = block(x, embedding, context, mask)
        return self.ending(x, skips, embedding, context, mask), x

    def outer_blocks(
        self, deep: Tensor, x: Tensor, embedding: Tensor, context: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        first = self.network.conv_in(x)
        skips = [first, self.network.down[0](first, embedding, context, mask)]
        return self.ending(deep, skips, embedding, context, mask)

    def ending(
        self, x: Tensor, skips: list[Tensor], embedding: Tensor, context: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        net = self.network
        for block in net.up[-2:]:
            x = block(torch.cat([x, skips.pop()], dim=1), embedding, context, mask)
        return net.conv_out(net.activated(net.norm_out(x)))


class EfficientCut(CutUNet):
    """Of an `EfficientUNet` with a skip connection for each block: the first level's first block on the way down, its
    last on the way up, and the resampling around them."""

    network: EfficientUNet

    def all_blocks(
        self, x: Tensor, embedding: Tensor, context: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        net, skips = self.network, list[Tensor]()
        x = first = net.conv_in(x)
        for shrink, level in zip(net.shrink, net.down, strict=True):
            x = shrink(x)
            for block in level.blocks:  # type: ignore[union-attr]
                x = block(x, embedding)
                skips.append(x)
            x = attended(level, x, context, mask)
        deep = x
        for depth, level in reversed(list(enumerate(net.up))):
            for block in level.blocks:  # type: ignore[union-attr]
                deep = x
                x = block(torch.cat([x, skips.pop() * net.config.skip_scale], dim=1), embedding)
            if depth:
                x = net.grow[depth](attended(level, x, context, mask))
        return self.ending(x, first, context, mask), deep

    def outer_blocks(
        self, deep: Tensor, x: Tensor, embedding: Tensor, context: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        net = self.network
        first = net.conv_in(x)
        skip = net.down[0].blocks[0](net.shrink[0](first), embedding)  # type: ignore[index]
        x = net.up[0].blocks[-1](torch.cat([deep, skip * net.config.skip_scale], dim=1), embedding)  # type: ignore[index]
        return self.ending(x, first, context, mask)

    def ending(self, x: Tensor, first: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        net = self.network
        x = net.grow[0](attended(net.up[0], x, context, mask))
        x = torch.cat([x, first * net.config.skip_scale], dim=1)
        return net.conv_out(F.silu(net.norm_out(x)))


def attended(level: Any, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
    return x if level.transformer is None else level.transformer(x, context, mask)


def cut(network: nn.Module) -> CutUNet:
    """The halves of a network. A `UserError` for one that cannot be cut."""
    if isinstance(network, UNet):
        return PlainCut(network)
    if isinstance(network, AdmUNet):
        return AdmCut(network)
    if isinstance(network, EfficientUNet) and network.config.skips == "block":
        return EfficientCut(network)
    what = f"{type(network).__name__} with one skip connection a level" if isinstance(network, EfficientUNet) else ""
    raise UserError(f"cache_interval has no effect on a {what or type(network).__name__}: leave it out")


class FeatureCache(nn.Module):
    """A network of which every `interval`-th call is full and the others are shallow, in one sampling.

    A call with another number of rows than the one before, where guidance begins or ends within a sampling, is full.
    Gradients do not reach into what is cached.
    """

    def __init__(self, network: nn.Module, interval: int) -> None:
        super().__init__()
        self.network, self.halves, self.interval = network, cut(network), interval
        self.deep: Tensor | None = None
        self.since = 0
        """Calls since the last full one, itself among them."""

    def forward(self, x: Tensor, time: Tensor, **cond: Tensor) -> Tensor:
        if self.deep is None or self.since >= self.interval or len(self.deep) != len(x):
            output, deep = self.halves.full(x, time, **cond)
            self.deep, self.since = deep.detach(), 1
            return output
        self.since += 1
        return self.halves.shallow(self.deep, x, time, **cond)


def with_cache(denoiser: D, interval: int) -> D:
    """The same denoiser, and count of calls, with a cache that begins empty."""
    cached = copy.copy(denoiser)
    cached.network = FeatureCache(denoiser.network, interval)
    return cached
