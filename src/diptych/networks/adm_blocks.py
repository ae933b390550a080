"""What an `AdmUNet` is built of: residual blocks that resample, attention that reads text along, pooled text."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.networks.adm_config import AdmUNetConfig
from diptych.networks.layers import norm, zero_init

ACTIVATIONS = {"silu": nn.SiLU, "gelu": nn.GELU}


class Block(nn.Module):
    """A residual block of ADM, which may halve or double the picture on the way (appendix A).

    forward(x (B, C, H, W), embedding (B, width)) -> (B, out_channels, H, W), or at half or twice the size
    """

    def __init__(self, config: AdmUNetConfig, inputs: int, outputs: int, resample: Literal["up", "down"] | None = None):
        super().__init__()
        self.config, self.resample, self.activation = config, resample, ACTIVATIONS[config.activation]()
        self.norm1 = norm(inputs, config.norm_groups)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(config.width, 2 * outputs if config.scale_shift else outputs)
        self.norm2 = norm(outputs, config.norm_groups)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = zero_init(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def resampled(self, x: Tensor) -> Tensor:
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        return F.avg_pool2d(x, 2) if self.resample == "down" else x

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(self.resampled(self.activation(self.norm1(x))))
        told = self.time(embedding if self.config.preactivated else self.activation(embedding))[:, :, None, None]
        if self.config.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + told)
        h = self.conv2(self.dropout(self.activation(h)))
        return (self.skip(self.resampled(x)) + h) * self.config.residual_scale


class Attention(nn.Module):
    """Attention of the pixels to themselves, and to text tokens put before them (GLIDE, section 2.2).

    forward(x (B, C, H, W), context (B, L, D), mask (B, L) bool) -> (B, C, H, W)
    """

    def __init__(self, config: AdmUNetConfig, channels: int) -> None:
        super().__init__()
        self.heads = config.heads or channels // (config.head_width or 1)
        self.norm = norm(channels, config.norm_groups)
        self.query = nn.Linear(channels, channels)
        self.reads_itself = config.self_attention
        if config.self_attention:
            self.key, self.value = nn.Linear(channels, channels), nn.Linear(channels, channels)
        width = config.context_projection or config.context_width
        self.reads_text = width is not None
        if width is not None:
            self.context_norm = norm(width) if config.context_norm else nn.Identity()
            self.context_key, self.context_value = nn.Linear(width, channels), nn.Linear(width, channels)
        self.out = zero_init(nn.Linear(channels, channels))

    def forward(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, H W, C)
        keys, values = [], []
        if self.reads_text and context is not None:
            context = self.context_norm(context.transpose(1, 2)).transpose(1, 2)  # over all tokens, as published
            keys, values = [self.context_key(context)], [self.context_value(context)]
        if self.reads_itself:
            keys, values = [*keys, self.key(tokens)], [*values, self.value(tokens)]
        if mask is not None:
            own = mask.new_ones(len(mask), tokens.shape[1] if self.reads_itself else 0)
            mask = torch.cat([mask, own], 1)[:, None, None]  # (B, 1, 1, L + H W)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(tokens), torch.cat(keys, 1), torch.cat(values, 1))
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        return x + self.out(attended).transpose(1, 2).reshape(x.shape)


class TextPooling(nn.Module):
    """Tokens (B, L, D) pooled by the attention of their mean, with an offset, to all of them: (B, width)."""

    def __init__(self, context_width: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(context_width)
        self.offset = nn.Parameter(torch.randn(1, context_width) / context_width**0.5)
        self.query, self.key, self.value = (nn.Linear(context_width, context_width) for _ in range(3))
        self.project = nn.Linear(context_width, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, context: Tensor) -> Tensor:
        context = self.norm1(context)
        mean = context.mean(1, keepdim=True) + self.offset.to(context)  # (B, 1, D)
        tokens = torch.cat([mean, context], 1)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(mean), self.key(tokens), self.value(tokens))
        )
        pooled = F.scaled_dot_product_attention(q, k, v).flatten(1)  # (B, D)
        return self.norm2(self.project(pooled))
