"""What both U-Nets make of the time and of what is said about the picture as a whole: one vector for every block."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.networks.layers import timestep_embedding

LEVELS = 1000.0
"""An augmentation level in [0, 1] is told in these units, as the time is: the sinusoids are made for them."""


class EmbeddingShape(Protocol):
    """The fields of a U-Net's config that decide what is embedded."""

    @property
    def channels(self) -> int: ...
    @property
    def context_width(self) -> int | None: ...
    @property
    def pooled_width(self) -> int | None: ...
    @property
    def context_norm(self) -> bool: ...
    @property
    def augmented(self) -> bool: ...


def check_size(x: Tensor, halvings: int) -> None:
    """Raise a `ValueError` unless the sides of x (B, C, H, W) can be halved so often without a remainder."""
    height, width = x.shape[-2:]
    if height % 2**halvings or width % 2**halvings:
        raise ValueError(f"{height} x {width} cannot be halved {halvings} times: no multiples of {2**halvings}")


class TextPooling(nn.Module):
    """Tokens (B, L, D) pooled by the attention of their mean, with an offset, to all of them: (B, width).

    mask (B, L) bool: True for those that count; all of them if none.
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


class Embedded(nn.Module):
    """Base of the U-Nets: time, pooled text and augmentation level summed into one embedding (Imagen, section 2.5).

    The embedding is 4 * channels wide. A condition that the network was not built for is an error, not ignored.
    """

    def __init__(self, shape: EmbeddingShape) -> None:
        super().__init__()
        self.shape, self.width = shape, 4 * shape.channels
        self.time = self._tower()
        if shape.pooled_width is not None:
            self.pooled = nn.Sequential(nn.LayerNorm(shape.pooled_width), nn.Linear(shape.pooled_width, self.width))
        if shape.augmented:
            self.level = self._tower()
        if shape.context_norm and shape.context_width is not None:
            self.context_norm = nn.LayerNorm(shape.context_width)

    def _tower(self) -> nn.Sequential:
        return nn.Sequential(nn.Linear(self.shape.channels, self.width), nn.SiLU(), nn.Linear(self.width, self.width))

    def embed(self, x: Tensor, time: Tensor, pooled: Tensor | None, level: Tensor | None) -> Tensor:
        """time (B,) in network units, pooled (B, pooled_width), level (B,) in [0, 1] -> (B, 4 * channels), as x is."""
        if pooled is not None and self.shape.pooled_width is None:
            raise ValueError("pooled was given to a network that was built without: its pooled_width is none")
        if level is not None and not self.shape.augmented:
            raise ValueError("level was given to a network that was built without: its augmented is false")
        embedding = self.time(timestep_embedding(time, self.shape.channels).to(x.dtype))
        if pooled is not None:
            embedding = embedding + self.pooled(pooled)
        if level is not None:
            embedding = embedding + self.level(timestep_embedding(level * LEVELS, self.shape.channels).to(x.dtype))
        return embedding

    def read(self, context: Tensor | None) -> Tensor | None:
        """The tokens (B, L, context_width) as the transformers read them: normalised where the config says so."""
        if context is not None and self.shape.context_width is None:
            raise ValueError("context was given to a network that was built without: its context_width is none")
        return self.context_norm(context) if context is not None and self.shape.context_norm else context
