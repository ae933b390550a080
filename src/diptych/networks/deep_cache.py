"""U-Nets cut in two, between their outermost blocks and all that is beneath (DeepCache: Ma et al. 2023, section 3.2).

A half takes tensors and gives one, as an engine runs methods, and remembers nothing.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.errors import UserError
from diptych.networks.adm import AdmBlock, AdmUNet
from diptych.networks.efficient_unet import EfficientUNet
from diptych.networks.layers import Downsample, Upsample
from diptych.networks.unet import UNet


class CutUNet(nn.Module):
    """The two halves of a network. Both take the arguments of its `forward`."""

    shrunk: ClassVar[int] = 1
    """How many times smaller the sides of what is cached are than those of x."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network, self.config = network, network.config

    def full(
        self,
        x: Tensor,
        time: Tensor,
        *,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        pooled: Tensor | None = None,
        concat: Tensor | None = None,
        level: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """The network's output and what comes up from beneath the cut in one tensor (B, K), for `unpacked`."""
        cond = {"context": context, "context_mask": context_mask, "pooled": pooled, "level": level, "label": label}
        output, deep = self.all_blocks(*self.network.prepare(x, time, concat, cond))
        return torch.cat([output.flatten(1), deep.flatten(1)], dim=1)

    def unpacked(self, packed: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of `full`, the output (B, out_channels, H, W), and what comes up from beneath the cut (B, C, h, w)."""
        height, width = x.shape[-2:]
        output, deep = packed.split([size := self.config.out_channels * height * width, packed.shape[1] - size], dim=1)
        sides = height // self.shrunk, width // self.shrunk
        return output.unflatten(1, (-1, height, width)), deep.unflatten(1, (-1, *sides))

    def shallow(
        self,
        x: Tensor,
        time: Tensor,
        deep: Tensor,
        *,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        pooled: Tensor | None = None,
        concat: Tensor | None = None,
        level: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        """The output by the outermost blocks, with what came up from beneath the cut in an earlier call."""
        cond = {"context": context, "context_mask": context_mask, "pooled": pooled, "level": level, "label": label}
        return self.outer_blocks(deep, *self.network.prepare(x, time, concat, cond))

    def all_blocks(
        self, x: Tensor, embedding: Tensor, context: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def outer_blocks(
        self, deep: Tensor, x: Tensor, embedding: Tensor, context: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        raise NotImplementedError


class OuterBlocksCut(CutUNet):
    """Of a network in which one block on the way down and two on the way up are the outermost."""

    def outer_blocks(
        self, deep: Tensor, x: Tensor, embedding: Tensor, context: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        first = self.network.conv_in(x)
        skips = [first, self.network.down[0](first, embedding, context, mask)]
        return self.ending(deep, skips, embedding, context, mask)

    def ending(
        self, x: Tensor, skips: list[Tensor], embedding: Tensor, context: Tensor | None, mask: Tensor | None
    ) -> Tensor:
        for block in self.network.up[-2:]:
            x = block(torch.cat([x, skips.pop()], dim=1), embedding, context, mask)
        return self.output(x)

    def output(self, x: Tensor) -> Tensor:
        """The network's output (B, out_channels, H, W) from what its last block gives."""
        raise NotImplementedError


class PlainCut(OuterBlocksCut):
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

    def output(self, x: Tensor) -> Tensor:
        net = self.network
        return net.conv_out(F.silu(net.norm_out(x)))


class AdmCut(OuterBlocksCut):
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

    def output(self, x: Tensor) -> Tensor:
        net = self.network
        return net.conv_out(net.activated(net.norm_out(x)))


class EfficientCut(CutUNet):
    """Of an `EfficientUNet` with a skip connection for each block: the first level's first block on the way down, its
    last on the way up, and the resampling around them."""

    network: EfficientUNet
    shrunk = 2

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
    """The halves of a network as PyTorch runs them. A `UserError` for one that cannot be cut."""
    if isinstance(network, UNet):
        return PlainCut(network)
    if isinstance(network, AdmUNet):
        return AdmCut(network)
    if isinstance(network, EfficientUNet) and network.config.skips == "block":
        return EfficientCut(network)
    what = f"{type(network).__name__} with one skip connection a level" if isinstance(network, EfficientUNet) else ""
    raise UserError(f"cache_interval has no effect on a {what or type(network).__name__}: leave it out")
