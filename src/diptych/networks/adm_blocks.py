"""The blocks of an `AdmUNet`: residual blocks that resample, and attention to the image and to text."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.networks.adm_config import AdmUNetConfig
from diptych.networks.layers import norm, zero_init
from diptych.networks.residual import ResidualBlock

ACTIVATIONS = {"silu": nn.SiLU, "gelu": nn.GELU}


class AdmResidualBlock(ResidualBlock):
    """A residual block of ADM, which may halve or double the image (BigGAN's: Dhariwal & Nichol 2021, appendix A).

    resample: both ways around the block, before its first convolution.
    """

    def __init__(self, config: AdmUNetConfig, inputs: int, outputs: int, resample: Literal["up", "down"] | None = None):
        c = config
        super().__init__(inputs, outputs, c.width, c.dropout, c.norm_groups, scale_shift=c.scale_shift)
        self.resample, self.scale, self.preactivated = resample, c.residual_scale, c.preactivated
        self.activation = ACTIVATIONS[c.activation]()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # type: ignore[override]
        h = self.conv1(self.resampled(self.activation(self.norm1(x))))  # (B, outputs, H', W')
        h = self.norm_with(h, embedding if self.preactivated else self.activation(embedding))
        h = self.skip(self.resampled(x)) + self.conv2(self.dropout(self.activation(h)))
        return h if self.scale == 1 else h * self.scale

    def resampled(self, x: Tensor) -> Tensor:
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        return F.avg_pool2d(x, 2) if self.resample == "down" else x


class NormOverTokens(nn.GroupNorm):
    """Group norm of tokens (B, L, D), its statistics over all of a text's (DeepFloyd IF); over those that mask (B, L)
    marks as real, where some are padding: their number depends on the longest text of a batch."""

    def __init__(self, width: int) -> None:
        super().__init__(math.gcd(32, width), width)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        plain = super().forward(tokens.transpose(1, 2)).transpose(1, 2)
        if mask is None:
            return plain
        groups = tokens.unflatten(2, (self.num_groups, -1)).float()  # (B, L, G, D / G)
        real = mask[:, :, None, None].to(groups)
        count = (real.sum(1, keepdim=True) * groups.shape[3]).clamp(min=1)
        centred = groups - (groups * real).sum((1, 3), keepdim=True) / count
        variance = (centred.square() * real).sum((1, 3), keepdim=True) / count
        masked = (centred * (variance + self.eps).rsqrt()).flatten(2) * self.weight + self.bias
        return torch.where(mask.all(1)[:, None, None], plain, masked.to(plain))


class NormOfTokens(nn.LayerNorm):
    """Layer norm of each token by itself (Imagen, section 2.5): padding does not come into it."""

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        return super().forward(tokens)


CONTEXT_NORMS = {"group": NormOverTokens, "layer": NormOfTokens}


class AdmAttention(nn.Module):
    """Attention of the pixels to themselves, and to text tokens put before them (GLIDE, section 2.2).

    forward(x (B, C, H, W), context (B, L, D), mask (B, L) bool) -> (B, C, H, W)
    """

    def __init__(self, config: AdmUNetConfig, channels: int) -> None:
        super().__init__()
        self.heads = config.heads or channels // (config.head_width or 1)
        self.norm = norm(channels, config.norm_groups)
        self.query = nn.Linear(channels, channels)
        self.self_attention = config.self_attention
        if config.self_attention:
            self.key, self.value = nn.Linear(channels, channels), nn.Linear(channels, channels)
        width = config.context_projection or config.context_width
        self.cross_attention = width is not None
        if width is not None:
            self.context_norm = CONTEXT_NORMS[config.context_norm_kind](width) if config.context_norm else None
            self.context_key, self.context_value = nn.Linear(width, channels), nn.Linear(width, channels)
        self.out = zero_init(nn.Linear(channels, channels))

    def forward(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, H W, C)
        keys, values = [], []
        if self.cross_attention and context is not None:
            context = context if self.context_norm is None else self.context_norm(context, mask)
            keys, values = [self.context_key(context)], [self.context_value(context)]
        if self.self_attention:
            keys, values = [*keys, self.key(tokens)], [*values, self.value(tokens)]
        if mask is not None:
            pixels = tokens.shape[1] if self.self_attention else 0
            mask = F.pad(mask, (0, pixels), value=True)[:, None, None]  # (B, 1, 1, L + H W)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(tokens), torch.cat(keys, 1), torch.cat(values, 1))
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        return x + self.out(attended).transpose(1, 2).reshape(x.shape)
