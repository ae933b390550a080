"""The layers that the U-Nets, autoencoders and transformers share.

Shapes: batch B, C channels, H x W positions, N = H * W positions in a row, L context tokens, D widths.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def timestep_embedding(time: Tensor, width: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoids of the network time, cosines first as in ADM and LDM: (B,) -> (B, width).

    Vaswani et al. 2017, section 3.5, with the time in the place of the position.
    """
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=time.device) / half
    angles = time.float()[:, None] * torch.exp(-math.log(max_period) * exponents)  # (B, width / 2)
    embedding = torch.cat([angles.cos(), angles.sin()], dim=1)
    return F.pad(embedding, (0, width % 2))


def zero_init(module: nn.Module) -> nn.Module:
    """Zero the module's parameters: a residual branch that ends in it starts as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def norm(channels: int, groups: int = 32, eps: float = 1e-5) -> nn.GroupNorm:
    """Group norm with the largest number of groups up to `groups` that divides the channels."""
    return nn.GroupNorm(math.gcd(groups, channels), channels, eps=eps)


class Downsample(nn.Module):
    """Half the height and width by a strided convolution.

    The U-Net pads both sides; the autoencoder pads only right and below (`one_sided`), as the published ones do.
    """

    def __init__(self, channels: int, one_sided: bool = False) -> None:
        super().__init__()
        self.one_sided = one_sided
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=0 if one_sided else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.one_sided else x)  # (B, C, H / 2, W / 2)


class Upsample(nn.Module):
    """Twice the height and width: nearest neighbour, then a convolution, which may change the number of channels.

    forward(x (B, C, H, W), size (H', W') or none) -> (B, out_channels, 2H, 2W), or at that size: a level whose sides
    were odd is one smaller than that.
    """

    def __init__(self, channels: int, out_channels: int | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out_channels or channels, 3, padding=1)

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        if size is None or tuple(size) == (2 * x.shape[-2], 2 * x.shape[-1]):
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv(F.interpolate(x, tuple(size), mode="nearest"))


class Attention(nn.Module):
    """Multi-head attention, of the tokens to themselves or to a context (LDM, section 3.3).

    forward(x (B, N, D), context (B, L, context_width) or None, mask (B, L) bool, True = attend) -> (B, N, D)
    """

    def __init__(
        self, width: int, context_width: int | None = None, heads: int = 8, head_width: int = 64, bias: bool = False
    ) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads = heads
        self.query = nn.Linear(width, inner, bias=bias)
        self.key = nn.Linear(context_width or width, inner, bias=bias)
        self.value = nn.Linear(context_width or width, inner, bias=bias)
        self.out = nn.Linear(inner, width)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        context = x if context is None else context
        q, k, v = (  # each (B, heads, N or L, head_width)
            tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for tokens in (self.query(x), self.key(context), self.value(context))
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=None if mask is None else mask[:, None, None, :])
        return self.out(attended.transpose(1, 2).flatten(2))


class GEGLU(nn.Module):
    """The gated feed-forward layer of the spatial transformer (Shazeer 2020): (..., D) -> (..., D)."""

    def __init__(self, width: int, multiplier: int = 4, dropout: float = 0.0) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 2 * multiplier * width)
        self.dropout = nn.Dropout(dropout)
        self.contract = nn.Linear(multiplier * width, width)

    def forward(self, x: Tensor) -> Tensor:
        values, gates = self.expand(x).chunk(2, dim=-1)
        return self.contract(self.dropout(values * F.gelu(gates)))


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention (where there is a context), feed-forward; each normalised before, added after.

    The first can be left out, and the last by a width of 0 (else it is so many times as wide as the tokens).
    """

    def __init__(
        self,
        width: int,
        context_width: int | None,
        heads: int,
        head_width: int,
        dropout: float = 0.0,
        self_attention: bool = True,
        feed_forward: int = 4,
    ) -> None:
        super().__init__()
        if self_attention:
            self.norm1 = nn.LayerNorm(width)
            self.self_attention = Attention(width, None, heads, head_width)
        self.has_self_attention = self_attention
        if context_width is not None:
            self.norm2 = nn.LayerNorm(width)
            self.cross_attention = Attention(width, context_width, heads, head_width)
        self.has_context = context_width is not None
        if feed_forward:
            self.norm3 = nn.LayerNorm(width)
            self.feed_forward = GEGLU(width, feed_forward, dropout)
        self.has_feed_forward = feed_forward > 0

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        if self.has_self_attention:
            x = x + self.self_attention(self.norm1(x))  # (B, N, D)
        if self.has_context:
            x = x + self.cross_attention(self.norm2(x), context, mask)
        return x + self.feed_forward(self.norm3(x)) if self.has_feed_forward else x


class SpatialTransformer(nn.Module):
    """Transformer blocks over the positions of a feature map, which may attend to a context (LDM, appendix E.2.1).

    forward(x (B, C, H, W), context (B, L, context_width), mask (B, L)) -> (B, C, H, W)
    """

    def __init__(
        self,
        channels: int,
        context_width: int | None,
        heads: int,
        head_width: int,
        depth: int = 1,
        dropout: float = 0.0,
        groups: int = 32,
        linear_projection: bool = False,
        self_attention: bool = True,
        feed_forward: int = 4,
        width: int | None = None,
    ) -> None:
        super().__init__()
        inner = width or heads * head_width  # of the tokens; attention may be wider within (Imagen, figure A.28)
        self.linear_projection = linear_projection  # Stable Diffusion 2 projects after the flattening
        self.norm = norm(channels, groups, eps=1e-6)
        self.project_in = nn.Linear(channels, inner) if linear_projection else nn.Conv2d(channels, inner, 1)
        self.blocks = nn.ModuleList(
            TransformerBlock(inner, context_width, heads, head_width, dropout, self_attention, feed_forward)
            for _ in range(depth)
        )
        out = nn.Linear(inner, channels) if linear_projection else nn.Conv2d(inner, channels, 1)
        self.project_out = zero_init(out)

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        height, width = x.shape[-2:]
        h = self.norm(x)
        if self.linear_projection:
            h = self.project_in(h.flatten(2).transpose(1, 2))  # (B, N, inner)
        else:
            h = self.project_in(h).flatten(2).transpose(1, 2)
        for block in self.blocks:
            h = block(h, context, mask)
        if self.linear_projection:
            h = self.project_out(h).transpose(1, 2).unflatten(2, (height, width))
        else:
            h = self.project_out(h.transpose(1, 2).unflatten(2, (height, width)))
        return x + h


class TextPooling(nn.Module):
    """Tokens (B, L, D) pooled by the attention of their mean, with an offset, to all of them: (B, width).

    mask (B, L) bool: True for the tokens to pool; all of them if none.
    """

    def __init__(self, context_width: int, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(context_width)
        self.offset = nn.Parameter(torch.randn(1, context_width) / context_width**0.5)
        self.query, self.key, self.value = (nn.Linear(context_width, context_width) for _ in range(3))
        self.project = nn.Linear(context_width, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, context: Tensor, mask: Tensor | None = None) -> Tensor:
        context = self.norm1(context)
        if mask is None:
            mean = context.mean(1, keepdim=True)  # (B, 1, D)
        else:
            real = mask[..., None].to(context)
            mean = (context * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)
            mask = F.pad(mask, (1, 0), value=True)[:, None, None]  # (B, 1, 1, 1 + L)
        mean = mean + self.offset.to(context)
        tokens = torch.cat([mean, context], 1)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(mean), self.key(tokens), self.value(tokens))
        )
        pooled = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).flatten(1)  # (B, D)
        return self.norm2(self.project(pooled))
