"""The autoregressive transformer over the codes of a VQ first stage (Esser et al. 2021, section 3.2).

A decoder as GPT-2's: pre-norm residual blocks, learned positions, causal attention. The condition comes first: a start
token, the token of a class, or the tokens of a text as a prefix.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.config import Config, Within


@dataclass(frozen=True, kw_only=True)
class CodeTransformerConfig(Config):
    """The shape of a `CodeTransformer`. The defaults are the published one for ImageNet: 1,410,640,896 parameters."""

    most = 2**16

    vocabulary: Annotated[int, Within(0, 2**24)] = 16_384
    """Number of codes: entries of the first stage's codebook."""
    length: int = 256
    """Codes of an image, row by row."""
    width: int = 1536
    """Width of a token."""
    layers: Annotated[int, Within(0, 1000)] = 48
    """Transformer blocks."""
    heads: int = 16
    """Attention heads of each block."""
    dropout: float = 0.0
    """Dropout of the embedded codes, the attention weights, and the output of each half of a block."""
    context_width: int | None = None
    """Width of a text's tokens, the prefix of the codes; none for a model without text."""
    classes: Annotated[int | None, Within(0, 2**24)] = 1000
    """Number of classes, the null class included, one of which is the first token; none for a model without classes."""
    shared_start: bool = True
    """Class c shares the embedding of code c, and the start token of a model without classes that of code 0, as in the
    published models; otherwise they have embeddings of their own."""

    @property
    def pooled_width(self) -> None:
        """There is no pooled text."""
        return None

    def check(self) -> None:
        self.require_at_least(1, "vocabulary", "length", "width", "layers", "heads")
        self.require_at_least(1, "context_width", "classes")
        self.require(self.width % self.heads == 0, "heads", f"divide the width ({self.width})")
        self.require(0 <= self.dropout < 1, "dropout", "lie between 0 and 1, 1 left out")
        self.require(self.classes is None or self.context_width is None, "classes", "be none where there is text")
        fits = not self.shared_start or (self.classes or 1) <= self.vocabulary
        self.require(fits, "classes", f"be at most vocabulary ({self.vocabulary}) where they share its embeddings")

    def build(self) -> CodeTransformer:
        return CodeTransformer(self)


class KVCache:
    """The keys and values of the tokens so far, so that each code is processed once in sampling."""

    def __init__(self, layers: int) -> None:
        self.length = 0
        """Tokens so far without the prefix: the start, and codes."""
        self.prefix: Tensor | None = None
        """(B, P) bool, True for the real tokens of a text in front; none without text."""
        self._layers: list[Tensor | None] = [None] * layers

    def append(self, layer: int, pairs: Tensor) -> Tensor:
        """All keys and values of a layer, with new ones behind: (2, B, heads, N, head_width)."""
        before = self._layers[layer]
        self._layers[layer] = whole = pairs if before is None else torch.cat([before, pairs], dim=3)
        return whole


class CausalAttention(nn.Module):
    """Self-attention; without a mask it is causal.

    forward(x (B, N, D), mask (B, 1, N, keys) bool, True = attend) -> (B, N, D); with a cache, keys are the cached ones
    and those of x.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        q, k, v = self.query_key_value(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = cache.append(layer, torch.stack([k, v]))  # each (B, heads, keys, head_width)
        causal = mask is None and q.shape[2] > 1  # a single token attends to all keys
        dropout = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal)
        return self.out(attended.transpose(1, 2).flatten(2))


class CodeTransformerBlock(nn.Module):
    """Causal self-attention and an MLP four times as wide, each normalised before and added after."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = CausalAttention(width, heads, dropout)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None, cache: KVCache | None = None, layer: int = 0) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), mask, cache, layer))  # (B, N, D)
        return x + self.dropout(self.mlp(self.norm2(x)))


class CodeTransformer(nn.Module):
    """Logits of each code from those before it.

    forward(codes (B, n) int64, *, context (B, L, context_width), context_mask (B, L) bool with True for real tokens,
    label (B,) int64) -> (B, n + 1, vocabulary): of every code and of the one that follows. n + 1 is at most `length`.

    With a cache, `codes` follow the cached ones: the logits are of the code after each, (B, n, vocabulary). The
    condition is given with an empty cache only.
    """

    def __init__(self, config: CodeTransformerConfig) -> None:
        super().__init__()
        self.config = c = config
        self.code = nn.Embedding(c.vocabulary, c.width)
        self.start = None if c.shared_start else nn.Embedding(c.classes or 1, c.width)
        self.position = nn.Parameter(torch.empty(c.length, c.width))
        if c.context_width is not None:  # text encoders differ in scale; their tokens have positions already
            self.context = nn.Sequential(nn.LayerNorm(c.context_width), nn.Linear(c.context_width, c.width))
        self.dropout = nn.Dropout(c.dropout)
        self.blocks = nn.ModuleList(CodeTransformerBlock(c.width, c.heads, c.dropout) for _ in range(c.layers))
        self.norm = nn.LayerNorm(c.width)
        self.head = nn.Linear(c.width, c.vocabulary, bias=False)
        self.initialise()

    def initialise(self) -> None:
        """As GPT-2: deviation 0.02, less where a layer adds to the residual (Radford et al. 2019, section 2.3)."""
        nn.init.normal_(self.position, std=0.02)
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                adds = name.endswith(("attention.out", "mlp.2"))
                nn.init.normal_(module.weight, std=0.02 / (2 * self.config.layers) ** 0.5 if adds else 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def new_cache(self) -> KVCache:
        return KVCache(self.config.layers)

    def forward(
        self,
        codes: Tensor,
        *,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        label: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        x, past = self.code(codes), 0 if cache is None else cache.length  # (B, n, D)
        if not past:
            x = torch.cat([self.embed_start(len(codes), label)[:, None], x], dim=1)  # (B, 1 + n, D)
        tokens = x.shape[1]
        x = x + self.position[past : past + tokens]
        prefix = None if cache is None else cache.prefix
        if not past and (words := self.embed_context(context)) is not None:
            prefix = torch.ones(words.shape[:2], dtype=torch.bool, device=x.device)
            prefix = prefix if context_mask is None else context_mask
            x = torch.cat([words, x], dim=1)  # (B, L + 1 + n, D)
        x = self.dropout(x)
        mask = attention_mask(prefix, x.shape[1], past + tokens)
        for layer, block in enumerate(self.blocks):
            x = block(x, mask, cache, layer)
        if cache is not None:
            cache.length, cache.prefix = past + tokens, prefix
        return self.head(self.norm(x[:, x.shape[1] - tokens :]))

    def embed_start(self, count: int, label: Tensor | None) -> Tensor:
        """The first tokens (B, D): of the classes (B,), or `count` times the start."""
        if (label is None) != (self.config.classes is None):
            wrong = "was not given to a network of classes" if label is None else "was given: classes is none"
            raise ValueError(f"label {wrong}")
        if label is None:
            label = torch.zeros(count, dtype=torch.int64, device=self.position.device)
        return (self.start or self.code)(label)

    def embed_context(self, context: Tensor | None) -> Tensor | None:
        """The tokens of the texts (B, L, context_width), projected to (B, L, D)."""
        if (context is None) != (self.config.context_width is None):
            wrong = "was not given to a network with text" if context is None else "was given: context_width is none"
            raise ValueError(f"context {wrong}")
        return None if context is None else self.context(context)


def attention_mask(prefix: Tensor | None, queries: int, length: int) -> Tensor | None:
    """Which keys each of the last `queries` tokens attends to: (B, 1, queries, keys) bool, none for a causal mask.

    prefix: (B, P) bool, its real tokens; they attend to one another, and all later tokens to them. length: tokens
    after the prefix, up to the last query.
    """
    if prefix is None:
        if queries in (1, length):
            return None
        return torch.ones(queries, length, dtype=torch.bool).tril(length - queries)[None, None]
    keys = prefix.shape[1] + length
    allowed = torch.ones(queries, keys, dtype=torch.bool, device=prefix.device).tril(keys - queries)
    allowed[:, : prefix.shape[1]] = True
    real = F.pad(prefix, (0, length), value=True)  # (B, keys)
    return (allowed & real[:, None, :])[:, None]
