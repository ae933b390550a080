"""The U-Net of latent diffusion and Stable Diffusion (Rombach et al. 2022, section 3.3 and appendix E)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.config import Config, Within
from diptych.networks.embedding import Embedded
from diptych.networks.layers import Downsample, SpatialTransformer, Upsample, norm, zero_init
from diptych.networks.residual import ResidualBlock


@dataclass(frozen=True, kw_only=True)
class UNetConfig(Config):
    """The shape of a `UNet`. The defaults are Stable Diffusion 1.x: 859,520,964 parameters."""

    most = 2**16

    unnamed: ClassVar[bool] = True
    kind: Literal["unet"] = "unet"
    """Which network this is."""
    in_channels: int = 4
    """Channels of the noisy input."""
    concat_channels: int = 0
    """Channels concatenated to the input: a low-resolution picture, or a mask and the masked latent."""
    out_channels: int = 4
    """Channels of the prediction; twice the input's where the variance is learned."""
    channels: int = 320
    """Channels of the first level; level i has channels * multipliers[i]."""
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    """One for each level. Between levels the height and width are halved."""
    blocks: Annotated[int, Within(0, 1000)] = 2
    """Residual blocks of a level on the way down; one more on the way up."""
    attention_levels: tuple[int, ...] = (0, 1, 2)
    """Levels whose residual blocks are each followed by a spatial transformer. The middle always has one."""
    depth: Annotated[int, Within(0, 1000)] = 1
    """Transformer blocks in each spatial transformer."""
    feed_forward: int = 4
    """Width of their feed-forward layers, in widths of the tokens; 0 leaves them out (Imagen, ADM)."""
    heads: int | None = 8
    """Attention heads of every level (SD 1.x), or none to derive it from `head_width`."""
    head_width: int | None = None
    """Channels of an attention head at every level (SD 2.x: 64), or none to derive it from `heads`."""
    context_width: int | None = 768
    """Width of the tokens that cross-attention reads, or none for self-attention alone."""
    classes: Annotated[int | None, Within(0, 2**24)] = None
    """Number of classes, the null class included, one of which is told as a single token (LDM on ImageNet), or none."""
    pooled_width: int | None = None
    """Width of a pooled condition that is added to the time embedding (Imagen, section 2.5), or none."""
    context_norm: bool = False
    """Normalise the tokens before any cross-attention reads them (Imagen, section 2.5)."""
    augmented: bool = False
    """Told how strongly the low-resolution picture among `concat_channels` was augmented (Imagen, section 2.4)."""
    linear_projection: bool = False
    """Project into the spatial transformers with linear layers (SD 2.x) instead of 1x1 convolutions."""
    norm_groups: int = 32
    """Groups of every group norm."""
    dropout: float = 0.0
    """Dropout inside residual blocks and feed-forward layers."""

    def check(self) -> None:
        for field in ("in_channels", "out_channels", "channels", "blocks", "depth", "norm_groups"):
            self.require(getattr(self, field) >= 1, field, "be at least 1")
        for field in ("heads", "head_width", "context_width", "classes", "pooled_width"):
            value = getattr(self, field)
            self.require(value is None or value >= 1, field, "be at least 1, or none")
        for field in ("concat_channels", "feed_forward"):
            self.require(getattr(self, field) >= 0, field, "be at least 0")
        self.require(0 <= self.dropout < 1, "dropout", "lie between 0 and 1, 1 left out")
        self.require(len(self.multipliers) > 0, "multipliers", "have a value for each level")
        self.require(min(self.multipliers) >= 1, "multipliers", "be at least 1")
        self.require((self.heads is None) != (self.head_width is None), "heads", "be set, or head_width, but not both")
        self.require(self.classes is None or self.context_width is not None, "classes", "be none without context_width")
        levels = range(len(self.multipliers))
        self.require(all(i in levels for i in self.attention_levels), "attention_levels", f"lie in {list(levels)}")
        for level in (*self.attention_levels, len(self.multipliers) - 1):
            self.require(
                self.level_channels(level) % (self.heads or self.head_width or 1) == 0,
                "heads" if self.heads else "head_width",
                f"divide the {self.level_channels(level)} channels of level {level}",
            )

    def level_channels(self, level: int) -> int:
        return self.channels * self.multipliers[level]


class Stage(nn.Module):
    """A residual block, the spatial transformer that may follow it, and the resampling that may end the level."""

    def __init__(
        self, block: ResidualBlock, transformer: SpatialTransformer | None, resample: nn.Module | None
    ) -> None:
        super().__init__()
        self.block, self.transformer, self.resample = block, transformer, resample

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        x = self.block(x, embedding)
        return x if self.transformer is None else self.transformer(x, context, mask)


class UNet(Embedded):
    """Predicts what its denoiser asks for from a noisy picture or latent, its time and its condition.

    forward(x (B, in_channels, H, W), time (B,) in network units, *, context (B, L, context_width),
    context_mask (B, L) bool with True for real tokens, pooled (B, pooled_width), concat (B, concat_channels, H, W),
    level (B,) in [0, 1], label (B,) int64 in the place of the context) -> (B, out_channels, H, W). H and W may be any:
    halves are rounded up.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        self.config = c = config
        if c.classes is not None and c.context_width is not None:
            self.label = nn.Embedding(c.classes, c.context_width)
        self.conv_in = nn.Conv2d(c.in_channels + c.concat_channels, c.channels, 3, padding=1)

        def block(inputs: int, outputs: int) -> ResidualBlock:
            return ResidualBlock(inputs, outputs, self.width, c.dropout, c.norm_groups)

        def transformer(channels: int) -> SpatialTransformer:
            heads = c.heads or channels // (c.head_width or 1)
            return SpatialTransformer(
                channels,
                c.context_width,
                heads,
                channels // heads,
                c.depth,
                c.dropout,
                c.norm_groups,
                c.linear_projection,
                feed_forward=c.feed_forward,
            )

        now, skips, last = c.channels, [c.channels], len(c.multipliers) - 1
        self.down = nn.ModuleList()
        for level in range(len(c.multipliers)):
            here = c.level_channels(level)
            for index in range(c.blocks):
                resample = Downsample(here) if index == c.blocks - 1 and level != last else None
                attend = transformer(here) if level in c.attention_levels else None
                self.down.append(Stage(block(now, here), attend, resample))
                skips += [here] if resample is None else [here, here]
                now = here
        self.middle = nn.ModuleList([block(now, now), transformer(now), block(now, now)])
        self.up = nn.ModuleList()
        for level in reversed(range(len(c.multipliers))):
            here = c.level_channels(level)
            for index in range(c.blocks + 1):
                resample = Upsample(here) if index == c.blocks and level != 0 else None
                attend = transformer(here) if level in c.attention_levels else None
                self.up.append(Stage(block(now + skips.pop(), here), attend, resample))
                now = here
        self.norm_out = norm(now, c.norm_groups)
        self.conv_out = zero_init(nn.Conv2d(now, c.out_channels, 3, padding=1))

    def read_label(self, label: Tensor) -> Tensor:
        """Classes (B,) as one context token each, (B, 1, context_width)."""
        if self.config.classes is None:
            raise ValueError("label was given to a network that was built without: its classes is none")
        return self.label(label)[:, None]

    def forward(
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
        embedding = self.embed(x, time, pooled, level)  # (B, 4 * channels)
        context = self.read(context if label is None else self.read_label(label))
        x = self.conv_in(x if concat is None else torch.cat([x, concat], dim=1))  # (B, channels, H, W)

        skips = [x]
        for stage in self.down:  # channels grow, height and width halve
            x = stage(x, embedding, context, context_mask)
            skips.append(x)
            if isinstance(stage.resample, Downsample):
                x = stage.resample(x)
                skips.append(x)

        before, attention, after = self.middle
        x = after(attention(before(x, embedding), context, context_mask), embedding)

        for stage in self.up:  # each stage reads what the way down left at its size
            x = stage(torch.cat([x, skips.pop()], dim=1), embedding, context, context_mask)
            if isinstance(stage.resample, Upsample):
                x = stage.resample(x, skips[-1].shape[-2:])
        return self.conv_out(F.silu(self.norm_out(x)))  # (B, out_channels, H, W)
