"""The unmasked transformer that encodes text or layouts, trained with the U-Net (Rombach et al. 2022, appendix E.2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diptych.networks.layers import Attention
from diptych.networks.transformer_config import TextTransformerConfig

__all__ = ["TextTransformer", "TextTransformerBlock", "TextTransformerConfig"]


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
