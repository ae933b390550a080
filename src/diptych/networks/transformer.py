"""The unmasked transformer that encodes text or layouts, trained with the U-Net (Rombach et al. 2022, appendix E.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn

from diptych.core.config import Config, Within
from diptych.networks.layers import Attention


@dataclass(frozen=True, kw_only=True)
class TextTransformerConfig(Config):
    """The shape of a `TextTransformer`. LDM's 1.45 B text model uses 32 layers of width 1280 and BERT's vocabulary."""

    most = 2**16

    vocabulary: Annotated[int, Within(0, 2**24)] = 8192
    """Number of token ids."""
    max_tokens: int = 77
    """Longest sequence, special tokens included."""
    width: int = 256
    """Width of a token."""
    layers: Annotated[int, Within(0, 1000)] = 4
    """Transformer blocks."""
    heads: int = 4
    """Attention heads of each block."""
    head_width: int = 64
    """Width of an attention head."""
    bias: bool = False
    """Queries, keys and values have one (GLIDE)."""
    padding: bool = False
    """Padding is replaced by a learned embedding of each position and not masked (GLIDE)."""
    dropout: float = 0.0
    """Dropout after the token embedding and inside the MLPs."""

    def check(self) -> None:
        self.require_at_least(1, "width", "layers", "heads", "head_width")
        self.require(self.vocabulary >= 8, "vocabulary", "be at least 8")
        self.require(self.max_tokens >= 3, "max_tokens", "be at least 3")
        self.require(0 <= self.dropout < 1, "dropout", "lie between 0 and 1, 1 left out")

    def build(self) -> TextTransformer:
        return TextTransformer(self)


class TextTransformerBlock(nn.Module):
    """Global self-attention and an MLP, each normalised before and added after (equations 19-22)."""

    def __init__(self, config: TextTransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, None, config.heads, config.head_width, config.bias)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attention(self.norm1(x), mask=mask)  # (B, L, D)
        return x + self.mlp(self.norm2(x))


class TextTransformer(nn.Module):
    """forward(ids (B, L) int64, mask (B, L) bool, True = real token) -> (B, L, width).

    Of ids (B, L, K) each token is the sum of its K parts.
    """

    def __init__(self, config: TextTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.token = nn.Embedding(config.vocabulary, config.width)
        self.position = nn.Parameter(torch.empty(config.max_tokens, config.width))
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(TextTransformerBlock(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.padding = nn.Parameter(0.02 * torch.randn(config.max_tokens, config.width)) if config.padding else None
        nn.init.normal_(self.token.weight, std=0.02)
        nn.init.normal_(self.position, std=0.02)

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        tokens = self.token(ids) if ids.ndim == 2 else self.token(ids).sum(2)  # (B, L, D)
        tokens = tokens + self.position[: ids.shape[1]]  # equation 18
        if self.padding is not None and mask is not None:
            tokens, mask = torch.where(mask[..., None], tokens, self.padding[: ids.shape[1]]), None
        x = self.dropout(tokens)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)  # equation 23
