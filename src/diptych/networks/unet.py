"""The U-Net of latent diffusion and Stable Diffusion (Rombach et al. 2022, section 3.3 and appendix E)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.config import Within
from diptych.networks.conditioned_unet import ConditionedUNet, ConditionedUNetConfig
from diptych.networks.layers import Downsample, SpatialTransformer, Upsample, norm, zero_init
from diptych.networks.residual import ResidualBlock


@dataclass(frozen=True, kw_only=True)
class UNetConfig(ConditionedUNetConfig):
    """The shape of a `UNet`. The defaults are Stable Diffusion 1.x: 859,520,964 parameters."""

    unnamed: ClassVar[bool] = True
    kind: Literal["unet"] = "unet"
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: Annotated[int, Within(0, 1000)] = 2
    """Residual blocks of a level on the way down; one more on the way up."""
    attention_levels: tuple[int, ...] = (0, 1, 2)
    """Levels whose residual blocks are each followed by a spatial transformer. The middle always has one."""
    depth: Annotated[int, Within(0, 1000)] = 1
    """Transformer blocks in each spatial transformer."""
    feed_forward: int = 4
    """Width of their feed-forward layers, in widths of the tokens; 0: none (Imagen, ADM)."""
    heads: int | None = 8
    """Attention heads of every level (SD 1.x), or none to derive it from `head_width`."""
    head_width: int | None = None
    """Channels of an attention head at every level (SD 2.x: 64), or none to derive it from `heads`."""
    context_width: int | None = 768
    """Width of the tokens of cross-attention, or none for self-attention alone."""
    classes: Annotated[int | None, Within(0, 2**24)] = None
    """Number of classes, the null class included; a label is one context token (LDM on ImageNet). None without."""
    pooled_width: int | None = None
    """Width of a pooled condition that is added to the time embedding (Imagen, section 2.5), or none."""
    context_norm: bool = False
    """Normalise the tokens before any cross-attention (Imagen, section 2.5)."""
    augmented: bool = False
    """Takes the noise augmentation level of the low-resolution image among `concat_channels` (Imagen, section 2.4)."""
    linear_projection: bool = False
    """Project into the spatial transformers with linear layers (SD 2.x) instead of 1x1 convolutions."""
    norm_groups: int = 32
    """Groups of every group norm."""
    dropout: float = 0.0
    """Dropout inside residual blocks and feed-forward layers."""

    def check(self) -> None:
        super().check()
        self.require_at_least(1, "blocks", "depth", "norm_groups", "heads", "head_width")
        self.require_at_least(1, "context_width", "classes", "pooled_width")
        self.require_at_least(0, "feed_forward")
        self.require(0 <= self.dropout < 1, "dropout", "lie between 0 and 1, 1 left out")
        self.require(min(self.multipliers) >= 1, "multipliers", "be at least 1")
        self.require((self.heads is None) != (self.head_width is None), "heads", "be set, or head_width, but not both")
        self.require(self.classes is None or self.context_width is not None, "classes", "be none without context_width")
        levels = range(len(self.multipliers))
        self.require(all(i in levels for i in self.attention_levels), "attention_levels", f"lie in {list(levels)}")
        for level in (*self.attention_levels, levels[-1]):
            name, wide = "heads" if self.heads else "head_width", self.level_channels(level)
            self.require(wide % getattr(self, name) == 0, name, f"divide the {wide} channels of level {level}")

    def level_channels(self, level: int) -> int:
        return self.channels * self.multipliers[level]

    def build(self) -> UNet:
        return UNet(self)


class UNetBlock(nn.Module):
    """A residual block, the spatial transformer that may follow it, and the resampling that may end the level."""

    def __init__(self, block: ResidualBlock, transformer: SpatialTransformer | None, resample: nn.Module | None):
        super().__init__()
        self.block, self.transformer, self.resample = block, transformer, resample

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        x = self.block(x, embedding)
        return x if self.transformer is None else self.transformer(x, context, mask)


class UNet(ConditionedUNet):
    """Predicts eps, v, x_0 or flow from a noisy image or latent, its time and its condition.

    `forward` is that of `ConditionedUNet`, with a label in the place of the context. H and W may be any: halves are
    rounded up.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        c, width = config, 4 * config.channels
        self.add_embedding(width)
        if c.classes is not None and c.context_width is not None:
            self.label = nn.Embedding(c.classes, c.context_width)
        self.conv_in = nn.Conv2d(c.in_channels + c.concat_channels, c.channels, 3, padding=1)

        def block(inputs: int, outputs: int) -> ResidualBlock:
            return ResidualBlock(inputs, outputs, width, c.dropout, c.norm_groups)

        def transformer(channels: int) -> SpatialTransformer:
            heads = c.heads or channels // (c.head_width or 1)
            shape = c.context_width, heads, channels // heads, c.depth, c.dropout, c.norm_groups, c.linear_projection
            return SpatialTransformer(channels, *shape, feed_forward=c.feed_forward)

        now, skips, last = c.channels, [c.channels], len(c.multipliers) - 1
        self.down = nn.ModuleList()
        for level in range(len(c.multipliers)):
            here = c.level_channels(level)
            for index in range(c.blocks):
                resample = Downsample(here) if index == c.blocks - 1 and level != last else None
                attend = transformer(here) if level in c.attention_levels else None
                self.down.append(UNetBlock(block(now, here), attend, resample))
                skips += [here] if resample is None else [here, here]
                now = here
        self.middle = nn.ModuleList([block(now, now), transformer(now), block(now, now)])
        self.up = nn.ModuleList()
        for level in reversed(range(len(c.multipliers))):
            here = c.level_channels(level)
            for index in range(c.blocks + 1):
                resample = Upsample(here) if index == c.blocks and level != 0 else None
                attend = transformer(here) if level in c.attention_levels else None
                self.up.append(UNetBlock(block(now + skips.pop(), here), attend, resample))
                now = here
        self.norm_out = norm(now, c.norm_groups)
        self.conv_out = zero_init(nn.Conv2d(now, c.out_channels, 3, padding=1))

    def project_context(self, context: Tensor | None, label: Tensor | None) -> Tensor | None:
        return super().project_context(context if label is None else self.label(label)[:, None], None)

    def predict(self, x: Tensor, embedding: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        x = self.conv_in(x)  # (B, channels, H, W)

        skips = [x]
        for block in self.down:  # channels grow, height and width halve
            x = block(x, embedding, context, mask)
            skips.append(x)
            if isinstance(block.resample, Downsample):
                x = block.resample(x)
                skips.append(x)

        before, attention, after = self.middle
        x = after(attention(before(x, embedding), context, mask), embedding)

        for block in self.up:  # each takes the skip connection of its size
            x = block(torch.cat([x, skips.pop()], dim=1), embedding, context, mask)
            if isinstance(block.resample, Upsample):
                x = block.resample(x, skips[-1].shape[-2:])
        return self.conv_out(F.silu(self.norm_out(x)))  # (B, out_channels, H, W)
