"""BERT (Devlin et al. 2019, section 3), as frozen text encoders use it: without dropout, pooler and heads.

Operations and their order are those of transformers' `BertModel`, so that its outputs are equal to the last bit; names
of weights are those of its files. transformers itself takes longer to import than such a network to load and run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.config import Config, Within


@dataclass(frozen=True, kw_only=True)
class BertShape(Config):
    """The shape of a `BertNetwork`, in the names of a BERT's config.json; the defaults are BERT base."""

    model_type: ClassVar[str] = "bert"
    """What a config.json calls it."""

    vocab_size: Annotated[int, Within(1)] = 30522
    """Number of token ids."""
    hidden_size: Annotated[int, Within(1)] = 768
    """Width of a token."""
    num_hidden_layers: Annotated[int, Within(1)] = 12
    """Transformer blocks."""
    num_attention_heads: Annotated[int, Within(1)] = 12
    """Attention heads of each block."""
    intermediate_size: Annotated[int, Within(1)] = 3072
    """Width within the MLPs."""
    hidden_act: str = "gelu"
    """Activation of the MLPs, by its name in transformers."""
    max_position_embeddings: Annotated[int, Within(1)] = 512
    """Longest sequence, special tokens included."""
    type_vocab_size: Annotated[int, Within(1)] = 2
    """Number of segments that have an embedding; a prompt is the first."""
    layer_norm_eps: Annotated[float, Within(0)] = 1e-12
    """Added to the variance in layer norms."""

    def check(self) -> None:
        whole = self.hidden_size % self.num_attention_heads == 0
        self.require(whole, "hidden_size", f"be a multiple of num_attention_heads ({self.num_attention_heads})")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> BertShape:
        """From the values of a config.json; those that do not shape the encoder are left out."""
        names = {field.name for field in dataclasses.fields(cls)}
        return super().from_dict({name: value for name, value in values.items() if name in names})

    def build(self) -> BertNetwork:
        return BertNetwork(self)


class BertOutput(NamedTuple):
    """What a `BertNetwork` gives."""

    last_hidden_state: Tensor
    """(B, L, hidden_size)."""


def activation(name: str) -> Callable[[Tensor], Tensor]:
    """The function of this name; those that published BERTs do not use come from transformers. Raises a `KeyError`."""
    if name in ("gelu", "relu"):
        return getattr(F, name)
    from transformers.activations import ACT2FN

    return ACT2FN[name]


class BertEmbeddings(nn.Module):
    """Embeddings of tokens, positions and the first segment, added and normalised."""

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.position_embeddings = nn.Embedding(shape.max_position_embeddings, shape.hidden_size)
        self.token_type_embeddings = nn.Embedding(shape.type_vocab_size, shape.hidden_size)
        self.LayerNorm = nn.LayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)

    def forward(self, ids: Tensor) -> Tensor:
        embeddings = self.word_embeddings(ids) + self.token_type_embeddings.weight[0]  # (B, L, C)
        return self.LayerNorm(embeddings + self.position_embeddings.weight[: ids.shape[1]])  # (B, L, C)


class BertSelfAttention(nn.Module):
    """Attention of all tokens to all."""

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.heads = shape.num_attention_heads
        self.query = nn.Linear(shape.hidden_size, shape.hidden_size)
        self.key = nn.Linear(shape.hidden_size, shape.hidden_size)
        self.value = nn.Linear(shape.hidden_size, shape.hidden_size)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = (
            layer(x).view(*x.shape[:-1], self.heads, -1).transpose(1, 2)  # (B, H, L, C / H)
            for layer in (self.query, self.key, self.value)
        )
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, scale=q.shape[-1] ** -0.5
        )  # (B, H, L, C / H)
        return attended.transpose(1, 2).contiguous().reshape(*x.shape[:-1], -1).contiguous()  # (B, L, C)


class AddAndNorm(nn.Module):
    """A linear layer whose output is added to the block's input, and normalised after that."""

    def __init__(self, width: int, shape: BertShape) -> None:
        super().__init__()
        self.dense = nn.Linear(width, shape.hidden_size)
        self.LayerNorm = nn.LayerNorm(shape.hidden_size, eps=shape.layer_norm_eps)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return self.LayerNorm(self.dense(x) + residual)  # (B, L, C)


class BertLayer(nn.Module):
    """A transformer block of self-attention and an MLP."""

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        attention = {"self": BertSelfAttention(shape), "output": AddAndNorm(shape.hidden_size, shape)}
        self.attention = nn.ModuleDict(attention)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(shape.hidden_size, shape.intermediate_size)})
        self.output = AddAndNorm(shape.intermediate_size, shape)
        self.activation = activation(shape.hidden_act)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = self.attention["output"](self.attention["self"](x, mask), x)  # (B, L, C)
        return self.output(self.activation(self.intermediate["dense"](x)), x)  # (B, L, C)


class BertNetwork(nn.Module):
    """The encoder of a BERT: token ids in, the last layer's tokens out."""

    def __init__(self, shape: BertShape) -> None:
        super().__init__()
        self.embeddings = BertEmbeddings(shape)
        layers = nn.ModuleList([BertLayer(shape) for _ in range(shape.num_hidden_layers)])
        self.encoder = nn.ModuleDict({"layer": layers})

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> BertOutput:
        """`input_ids` (B, L). `attention_mask`: (B, L), zero at padding; or (B, 1, 1, L), added to attention."""
        mask = attention_mask
        if mask is not None and mask.ndim == 2:
            # Without padding there is no mask, as in transformers: the kernels for either differ in the last bits.
            mask = None if bool((mask != 0).all()) else (mask != 0)[:, None, None, :]
        x = self.embeddings(input_ids)  # (B, L, C)
        for layer in self.encoder["layer"]:  # pyright: ignore[reportGeneralTypeIssues]
            x = layer(x, mask)
        return BertOutput(x)
