"""The Efficient U-Net of Imagen's super-resolution stages (Saharia et al. 2022, appendix B.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.config import Within
from diptych.networks.conditioned_unet import ConditionedUNet, ConditionedUNetConfig, check_size
from diptych.networks.layers import SpatialTransformer, TextPooling, norm, zero_init
from diptych.networks.residual import ResidualBlock


@dataclass(frozen=True, kw_only=True)
class EfficientUNetConfig(ConditionedUNetConfig):
    """The shape of an `EfficientUNet`. The defaults are the 64 -> 256 stage as Imagen's authors describe it.

    `channels` are those at full size; level i, at 1 / 2 ** (i + 1) of the size, has channels * multipliers[i].
    """

    kind: Literal["efficient-unet"] = "efficient-unet"
    in_channels: int = 3
    concat_channels: int = 3
    out_channels: int = 3
    channels: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 8)
    blocks: Annotated[tuple[int, ...], Within(0, 1000)] = (2, 4, 8, 8)
    """Residual blocks of each level, on the way down and again on the way up: few where images are large."""
    skips: Literal["block", "level"] = "block"
    """Skip connections: from each block to its counterpart on the way up, or one a level, to the first block there.

    `level` takes fewer parameters and less memory; the deepest level then has no skip.
    """
    self_attention_levels: tuple[int, ...] = (3,)
    """Levels that attend to themselves after their residual blocks; none in the 1024-px stage."""
    cross_attention_levels: tuple[int, ...] = (3,)
    """Levels that attend to the context."""
    head_width: int = 64
    """Channels of an attention head, where `heads` is none."""
    heads: int | None = None
    """Attention heads of every level, or none for as many of `head_width` as its channels have room for."""
    attention_width: int = 1
    """Width of all heads of a level together where `heads` is set, in channels of the level (figure A.28: 2)."""
    feed_forward: int = 4
    """Width of the feed-forward layers after attention, in widths of the tokens; 0: none."""
    context_width: int | None = None
    """Width of the tokens of cross-attention, or none."""
    pooled_width: int | None = None
    """Width of a pooled condition that is added to the time embedding, or none."""
    text_pooling_heads: int | None = None
    """Heads of the attention by which the tokens of the context are pooled and added to the time (appendix F), or
    none."""
    context_norm: bool = True
    """Normalise the tokens before any cross-attention (section 2.5)."""
    augmented: bool = True
    """Takes the noise augmentation level of the low-resolution image (section 2.4)."""
    scale_shift: bool = False
    """The embedding scales and shifts the output of a block's norm (appendix F); else it is added to its input."""
    skip_conv: bool = False
    """A 1x1 convolution around every residual block (figure A.27), else around those alone whose channels change."""
    skip_scale: float = 2**-0.5
    """Factor on the skip connections: with many blocks, 1 / sqrt 2 converges faster than 1."""
    norm_groups: int = 32
    """Groups of every group norm."""
    dropout: float = 0.0
    """Dropout inside residual blocks and feed-forward layers."""

    def check(self) -> None:
        super().check()
        self.require_at_least(1, "head_width", "attention_width", "norm_groups", "heads")
        self.require_at_least(1, "context_width", "pooled_width", "text_pooling_heads")
        self.require_at_least(0, "feed_forward")
        self.require(0 <= self.dropout < 1, "dropout", "lie between 0 and 1, 1 left out")
        self.require(self.skip_scale > 0, "skip_scale", "be more than 0")
        self.require(min(self.multipliers) >= 1, "multipliers", "be at least 1")
        self.require(len(self.blocks) == len(self.multipliers), "blocks", "have a value for each of the multipliers")
        self.require(min(self.blocks) >= 1, "blocks", "be at least 1")
        pooling = self.text_pooling_heads
        unused = self.context_width is not None and not self.cross_attention_levels and pooling is None
        self.require(not unused, "cross_attention_levels", "name a level, or context_width be none")
        divides = pooling is None or (self.context_width is not None and self.context_width % pooling == 0)
        self.require(divides, "text_pooling_heads", "divide context_width, and be none without one")
        one = self.heads is not None or self.attention_width == 1
        self.require(one, "attention_width", "be 1 where heads is none")
        for field in ("self_attention_levels", "cross_attention_levels"):
            levels = getattr(self, field)
            self.require(all(0 <= i < len(self.multipliers) for i in levels), field, "be levels that there are")
            for level in levels:
                wide, heads = self.level_channels(level), self.heads
                name, divisor = ("head_width", self.head_width) if heads is None else ("heads", heads)
                self.require(wide % divisor == 0, name, f"divide the {wide} channels of level {level}")

    def build(self) -> EfficientUNet:
        return EfficientUNet(self)

    def level_channels(self, level: int) -> int:
        return self.channels * self.multipliers[level]

    def level_heads(self, level: int) -> tuple[int, int]:
        """Attention heads of a level, and how wide each is."""
        wide = self.level_channels(level)
        if self.heads is None:
            return wide // self.head_width, self.head_width
        return self.heads, self.attention_width * wide // self.heads

    def has_skip(self, level: int, block: int) -> bool:
        """Whether that block of the way up has a skip connection as input."""
        return self.skips == "block" or (block == 0 and level < len(self.multipliers) - 1)


class PixelShuffle(nn.Module):
    """Twice the height and width: a 1x1 convolution at the small size, then 4 channels become 2 x 2 positions.

    The four start equal (ICNR: Aitken et al. 2017), without a checkerboard pattern.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4 * out_channels, 1)
        with torch.no_grad():
            self.conv.weight.copy_(self.conv.weight[::4].repeat_interleave(4, dim=0))
            self.conv.bias.copy_(self.conv.bias[::4].repeat_interleave(4, dim=0))  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(x), 2)  # (B, out, 2H, 2W)


class EfficientUNetLevel(nn.Module):
    """The residual blocks of one level and the transformer that may follow them."""

    def __init__(self, blocks: list[ResidualBlock], transformer: SpatialTransformer | None) -> None:
        super().__init__()
        self.blocks, self.transformer = nn.ModuleList(blocks), transformer


class EfficientUNet(ConditionedUNet):
    """Predicts eps, v, x_0 or flow from a noisy image, a low-resolution one, its time and its condition.

    Against the plain U-Net: most blocks and parameters are at low resolutions; a level's resampling comes before its
    convolutions on the way down and after them on the way up, so at full size there are but the first and the last
    convolution; and skips are scaled.

    `forward` is that of `ConditionedUNet`, without a label. H and W must be divisible by 2 ** levels.
    """

    def __init__(self, config: EfficientUNetConfig) -> None:
        super().__init__(config)
        c, width = config, 4 * config.channels
        self.add_embedding(width)

        def block(inputs: int, outputs: int) -> ResidualBlock:
            return ResidualBlock(
                inputs,
                outputs,
                width,
                c.dropout,
                c.norm_groups,
                scale_shift=c.scale_shift,
                skip_conv=c.skip_conv,
            )

        def transformer(level: int) -> SpatialTransformer | None:
            to_itself = level in c.self_attention_levels
            context = c.context_width if level in c.cross_attention_levels else None
            if not to_itself and context is None:
                return None
            wide = c.level_channels(level)
            return SpatialTransformer(
                wide,
                context,
                *c.level_heads(level),
                width=wide,
                dropout=c.dropout,
                groups=c.norm_groups,
                self_attention=to_itself,
                feed_forward=c.feed_forward,
            )

        if c.context_width is not None and c.text_pooling_heads is not None:
            self.text_pooling = TextPooling(c.context_width, width, c.text_pooling_heads)
        levels = range(len(c.multipliers))
        above = [c.channels, *(c.level_channels(level) for level in levels[:-1])]
        self.conv_in = nn.Conv2d(c.in_channels + c.concat_channels, c.channels, 3, padding=1)
        self.shrink, self.down = nn.ModuleList(), nn.ModuleList()
        self.grow, self.up = nn.ModuleList(), nn.ModuleList()
        for level in levels:
            here, count = c.level_channels(level), c.blocks[level]
            self.shrink.append(nn.Conv2d(above[level], here, 3, stride=2, padding=1))
            self.down.append(EfficientUNetLevel([block(here, here) for _ in range(count)], transformer(level)))
            inputs = [here * (2 if c.has_skip(level, index) else 1) for index in range(count)]
            self.up.append(EfficientUNetLevel([block(wide, here) for wide in inputs], transformer(level)))
            self.grow.append(PixelShuffle(here, above[level]))
        self.norm_out = norm(2 * c.channels, c.norm_groups)
        self.conv_out = zero_init(nn.Conv2d(2 * c.channels, c.out_channels, 3, padding=1))

    def check(self, x: Tensor, **conditions: Tensor | None) -> None:
        super().check(x, **conditions)
        check_size(x, halvings=len(self.config.multipliers))

    def embed(self, x: Tensor, time: Tensor, **conditions: Tensor | None) -> Tensor:
        embedding, context = super().embed(x, time, **conditions), conditions.get("context")
        if context is not None and self.config.text_pooling_heads is not None:
            embedding = embedding + self.text_pooling(context, conditions.get("context_mask"))
        return embedding

    def predict(self, x: Tensor, embedding: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        c = self.config
        x = first = self.conv_in(x)  # (B, channels, H, W)

        skips: list[Tensor] = []
        down, up = cast(list[EfficientUNetLevel], list(self.down)), cast(list[EfficientUNetLevel], list(self.up))
        for shrink, stage in zip(self.shrink, down, strict=True):
            x = shrink(x)  # halved before the blocks
            for block in stage.blocks:
                x = block(x, embedding)
                if c.skips == "block":
                    skips.append(x)
            if stage.transformer is not None:
                x = stage.transformer(x, context, mask)
            if c.skips == "level" and stage is not down[-1]:
                skips.append(x)

        for depth, stage in reversed(list(enumerate(up))):
            for index, block in enumerate(stage.blocks):
                if c.has_skip(depth, index):
                    x = torch.cat([x, skips.pop() * c.skip_scale], dim=1)
                x = block(x, embedding)
            if stage.transformer is not None:
                x = stage.transformer(x, context, mask)
            x = self.grow[depth](x)  # doubled after them

        x = torch.cat([x, first * c.skip_scale], dim=1)  # (B, 2 * channels, H, W)
        return self.conv_out(F.silu(self.norm_out(x)))  # (B, out_channels, H, W)
