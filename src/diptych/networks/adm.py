"""The U-Net of guided-diffusion (ADM: Dhariwal & Nichol 2021, section 3, appendix A), and DeepFloyd IF's after it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.networks.adm_blocks import Attention, Block
from diptych.networks.adm_config import AdmUNetConfig
from diptych.networks.embedding import LEVELS, TextPooling, check_size
from diptych.networks.layers import Downsample, Upsample, norm, timestep_embedding, zero_init
from diptych.networks.residual import ACTIVATIONS

__all__ = ["AdmUNet", "AdmUNetConfig"]


class Step(nn.Module):
    """A residual block with the attention that may follow it; or what ends a level."""

    def __init__(self, block: nn.Module, attention: Attention | None = None) -> None:
        super().__init__()
        self.block, self.attention = block, attention
        self.doubles = isinstance(block, Upsample) or (isinstance(block, Block) and block.resample == "up")

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        x = self.block(x, embedding) if isinstance(self.block, Block) else self.block(x)
        return x if self.attention is None else self.attention(x, context, mask)


class AdmEncoder(nn.Module):
    """The way down and the middle, which the U-Net and the noisy classifier share, and what both are told."""

    def __init__(self, config: AdmUNetConfig) -> None:
        super().__init__()
        self.config = c = config
        self.time = self._tower()
        if c.augmented:
            self.level = self._tower()
        if c.classes is not None:
            self.label = nn.Embedding(c.classes, c.width)
        if c.context_width is not None and c.context_projection is not None:
            self.context_projection = nn.Linear(c.context_width, c.context_projection)
        if c.context_width is not None and c.text_pooling_heads is not None:
            self.text_pooling = TextPooling(c.context_width, c.width, c.text_pooling_heads)
        if c.pooled_width is not None:
            self.pooled = nn.Linear(c.pooled_width, c.width)
        self.conv_in = nn.Conv2d(c.in_channels + c.concat_channels, c.level_channels(0), 3, padding=1)

        now, last = c.level_channels(0), len(c.multipliers) - 1
        self.skips = [now]
        """Channels of all that the way down leaves to the way up."""
        self.down = nn.ModuleList()
        for level in range(last + 1):
            here = c.level_channels(level)
            for _ in range(c.level_blocks(level)):
                self.down.append(Step(Block(c, now, here), self._attention(level)))
                now = here
                self.skips.append(here)
            if level != last:
                self.down.append(Step(Block(c, here, here, "down") if c.residual_resampling else Downsample(here)))
                self.skips.append(here)
        self.middle = nn.ModuleList([Block(c, now, now), Attention(c, now), Block(c, now, now)])

    def _tower(self) -> nn.Sequential:
        c = self.config
        return nn.Sequential(nn.Linear(c.channels, c.width), ACTIVATIONS[c.activation](), nn.Linear(c.width, c.width))

    def _attention(self, level: int) -> Attention | None:
        c = self.config
        return Attention(c, c.level_channels(level)) if level in c.attention_levels else None

    def check(self, x: Tensor, **given: Tensor | None) -> None:
        """Raise a `ValueError` for a condition that the network was not built for, one that it cannot do without, or
        sides that cannot be halved as often as there are levels."""
        c = self.config
        known = {"context": c.context_width, "context_mask": c.context_width, "concat": c.concat_channels or None}
        known |= {"level": c.augmented or None, "label": c.classes, "pooled": c.pooled_width}
        for name, value in given.items():
            if value is not None and known[name] is None:
                raise ValueError(f"{name} was given to a network that was built without")
        for name, needed in (("label", c.classes is not None), ("context", not c.self_attention)):
            if needed and given.get(name) is None:
                raise ValueError(f"this network was built to be told a {name}: give it one")
        check_size(x, halvings=len(c.multipliers) - 1)

    def embed(
        self,
        x: Tensor,
        time: Tensor,
        context: Tensor | None = None,
        level: Tensor | None = None,
        label: Tensor | None = None,
        pooled: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """All that is told of the picture as a whole, (B, width)."""
        c = self.config
        embedding = self.time(timestep_embedding(time, c.channels).to(x.dtype))
        if level is not None:
            embedding = embedding + self.level(timestep_embedding(level * LEVELS, c.channels).to(x.dtype))
        if label is not None:
            embedding = embedding + self.label(label)
        if context is not None and c.text_pooling_heads is not None:
            embedding = embedding + self.text_pooling(context, mask)
        if pooled is not None:
            embedding = embedding + self.pooled(pooled.to(x.dtype))
        return self.activated(embedding) if c.preactivated else embedding

    def activated(self, x: Tensor) -> Tensor:
        return F.gelu(x) if self.config.activation == "gelu" else F.silu(x)

    def encode(
        self, x: Tensor, embedding: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """What the middle makes of x, and all that the way down leaves to the way up."""
        x = self.conv_in(x)
        skips = [x]
        for step in self.down:
            x = step(x, embedding, context, mask)
            skips.append(x)
        before, attention, after = self.middle
        return after(attention(before(x, embedding), context, mask), embedding), skips


class AdmUNet(AdmEncoder):
    """Predicts what its denoiser asks for from a noisy picture, its time, a class, text, a smaller picture.

    forward(x (B, in_channels, H, W), time (B,) in network units, *, context (B, L, context_width),
    context_mask (B, L) bool with True for real tokens, pooled (B, pooled_width), concat (B, concat_channels, H, W),
    level (B,) in [0, 1], label (B,) of classes) -> (B, out_channels, H, W). H and W must be divisible by
    2 ** (levels - 1).
    """

    def __init__(self, config: AdmUNetConfig) -> None:
        super().__init__(config)
        c, skips = config, list(self.skips)
        now = skips[-1]
        self.up = nn.ModuleList()
        for level in reversed(range(len(c.multipliers))):
            here = c.level_channels(level)
            for _ in range(c.level_blocks(level) + 1):
                self.up.append(Step(Block(c, now + skips.pop(), here), self._attention(level)))
                now = here
            if level != 0:
                self.up.append(Step(Block(c, here, here, "up") if c.residual_resampling else Upsample(here)))
        self.norm_out = norm(now, c.norm_groups)
        self.conv_out = zero_init(nn.Conv2d(now, c.out_channels, 3, padding=1))

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
        self.check(
            x, context=context, context_mask=context_mask, pooled=pooled, concat=concat, level=level, label=label
        )
        embedding = self.embed(x, time, context, level, label, pooled, context_mask)
        if context is not None and self.config.context_projection is not None:
            context = self.context_projection(context)
        x = x if concat is None else torch.cat([x, concat], dim=1)
        x, skips = self.encode(x, embedding, context, context_mask)
        for step in self.up:
            if not step.doubles:  # reads what the way down left
                x = torch.cat([x, skips.pop()], dim=1)
            x = step(x, embedding, context, context_mask)
        return self.conv_out(self.activated(self.norm_out(x)))
