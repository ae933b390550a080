"""The U-Net of guided-diffusion (ADM: Dhariwal & Nichol 2021, section 3, appendix A), and DeepFloyd IF's after it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.networks.adm_blocks import ACTIVATIONS, AdmAttention, AdmResidualBlock
from diptych.networks.adm_config import AdmUNetConfig
from diptych.networks.conditioned_unet import LEVEL_UNITS, ConditionedUNet, check_size, time_mlp
from diptych.networks.layers import Downsample, TextPooling, Upsample, norm, timestep_embedding, zero_init

__all__ = ["AdmUNet", "AdmUNetConfig"]


class AdmBlock(nn.Module):
    """A residual block with the attention that may follow it, or a resampling layer."""

    def __init__(self, block: nn.Module, attention: AdmAttention | None = None) -> None:
        super().__init__()
        self.block, self.attention = block, attention
        self.doubles = isinstance(block, Upsample) or (isinstance(block, AdmResidualBlock) and block.resample == "up")

    def forward(self, x: Tensor, embedding: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        x = self.block(x, embedding) if isinstance(self.block, AdmResidualBlock) else self.block(x)
        return x if self.attention is None else self.attention(x, context, mask)


class AdmEncoder(ConditionedUNet):
    """The way down and the middle, which the U-Net and the noisy classifier share, and the embedding of conditions."""

    def __init__(self, config: AdmUNetConfig) -> None:
        super().__init__(config)
        c, activation = config, ACTIVATIONS[config.activation]
        self.time = time_mlp(c.channels, c.width, activation)
        if c.augmented:
            self.level = time_mlp(c.channels, c.width, activation)
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
        """Channels of the skip connections."""
        self.down = nn.ModuleList()
        for level in range(last + 1):
            here = c.level_channels(level)
            for _ in range(c.level_blocks(level)):
                self.down.append(AdmBlock(AdmResidualBlock(c, now, here), self._attention(level)))
                now = here
                self.skips.append(here)
            if level != last:
                self.down.append(
                    AdmBlock(AdmResidualBlock(c, here, here, "down") if c.residual_resampling else Downsample(here))
                )
                self.skips.append(here)
        self.middle = nn.ModuleList(
            [AdmResidualBlock(c, now, now), AdmAttention(c, now), AdmResidualBlock(c, now, now)]
        )

    def _attention(self, level: int) -> AdmAttention | None:
        c = self.config
        return AdmAttention(c, c.level_channels(level)) if level in c.attention_levels else None

    def check(self, x: Tensor, **conditions: Tensor | None) -> None:
        """Raise a `ValueError` for a condition that the network was not built for, one that it cannot do without, or
        sides that cannot be halved as often as there are levels."""
        super().check(x, **conditions)
        c = self.config
        for name, needed in (("label", c.classes is not None), ("context", not c.self_attention)):
            if needed and conditions.get(name) is None:
                raise ValueError(f"this network was built for a {name}: give it one")
        check_size(x, halvings=len(c.multipliers) - 1)

    def embed(self, x: Tensor, time: Tensor, **conditions: Tensor | None) -> Tensor:
        c, context = self.config, conditions.get("context")
        embedding = self.time(timestep_embedding(time, c.channels).to(x.dtype))
        if (level := conditions.get("level")) is not None:
            embedding = embedding + self.level(timestep_embedding(level * LEVEL_UNITS, c.channels).to(x.dtype))
        if (label := conditions.get("label")) is not None:
            embedding = embedding + self.label(label)
        if context is not None and c.text_pooling_heads is not None:
            embedding = embedding + self.text_pooling(context, conditions.get("context_mask"))
        if (pooled := conditions.get("pooled")) is not None:
            embedding = embedding + self.pooled(pooled.to(x.dtype))
        return self.activated(embedding) if c.preactivated else embedding

    def project_context(self, context: Tensor | None, label: Tensor | None) -> Tensor | None:
        projected = context is not None and self.config.context_projection is not None
        return self.context_projection(context) if projected else context

    def activated(self, x: Tensor) -> Tensor:
        return F.gelu(x) if self.config.activation == "gelu" else F.silu(x)

    def encode(
        self, x: Tensor, embedding: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The output of the middle for x, and the skip connections."""
        x = self.conv_in(x)
        skips = [x]
        for block in self.down:
            x = block(x, embedding, context, mask)
            skips.append(x)
        before, attention, after = self.middle
        return after(attention(before(x, embedding), context, mask), embedding), skips


class AdmUNet(AdmEncoder):
    """Predicts eps, v, x_0 or flow from a noisy image, its time, a class, text, a smaller image.

    `forward` is that of `ConditionedUNet`. H and W must be divisible by 2 ** (levels - 1).
    """

    def __init__(self, config: AdmUNetConfig) -> None:
        super().__init__(config)
        c, skips = config, list(self.skips)
        now = skips[-1]
        self.up = nn.ModuleList()
        for level in reversed(range(len(c.multipliers))):
            here = c.level_channels(level)
            for _ in range(c.level_blocks(level) + 1):
                self.up.append(AdmBlock(AdmResidualBlock(c, now + skips.pop(), here), self._attention(level)))
                now = here
            if level != 0:
                self.up.append(
                    AdmBlock(AdmResidualBlock(c, here, here, "up") if c.residual_resampling else Upsample(here))
                )
        self.norm_out = norm(now, c.norm_groups)
        self.conv_out = zero_init(nn.Conv2d(now, c.out_channels, 3, padding=1))

    def predict(self, x: Tensor, embedding: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        x, skips = self.encode(x, embedding, context, mask)
        for block in self.up:
            if not block.doubles:  # takes a skip connection
                x = torch.cat([x, skips.pop()], dim=1)
            x = block(x, embedding, context, mask)
        return self.conv_out(self.activated(self.norm_out(x)))
