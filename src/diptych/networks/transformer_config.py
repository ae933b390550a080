"""The config of the transformer that is trained along as a text encoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

from diptych.core.config import Config, Within

if TYPE_CHECKING:
    from diptych.networks.transformer import TextTransformer


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
        from diptych.networks.transformer import TextTransformer

        return TextTransformer(self)
