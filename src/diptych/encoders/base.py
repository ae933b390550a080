"""What every text encoder gives: the embeddings of prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from diptych.core.errors import UserError, pick
from diptych.core.values import short_repr


class AcceptsText(Protocol):
    """A U-Net's config: the widths of the embeddings that it takes, none for those that it does not take."""

    @property
    def context_width(self) -> int | None: ...
    @property
    def pooled_width(self) -> int | None: ...


class TextEmbedding(NamedTuple):
    """Embeddings of prompts. `mask` is True for real tokens; padding stands at the end."""

    sequence: Tensor  # (B, L, width) float32
    mask: Tensor  # (B, L) bool
    pooled: Tensor  # (B, width), the mean over real tokens (CLIP: its own)

    @classmethod
    def from_sequence(cls, sequence: Tensor, mask: Tensor) -> TextEmbedding:
        weights = mask.unsqueeze(-1).to(sequence.dtype)
        return cls(sequence, mask, (sequence * weights).sum(1) / weights.sum(1).clamp(min=1.0))

    def zeroed(self, dropped: Tensor, tokens: Literal["all", "one"] = "all") -> TextEmbedding:
        """The rows that dropped (B,) bool marks become the null text: zeros in sequence and pooled.

        Imagen's null text (Saharia et al. 2022, section 2.2); attention to zeros is defined, to nothing it is not.
        tokens: `all` masks none of them, `one` all but the first. Cross-attention gives the same for any number of
        equal tokens; where they share a softmax with something else, their number is their weight, and `all` would be
        as many as the longest text of the batch has.
        """
        from diptych.core.devices import sent

        dropped = sent(dropped, self.mask.device)
        read = torch.ones_like(self.mask)
        if tokens == "one":
            read[:, 1:] = False
        return TextEmbedding(
            self.sequence.masked_fill(dropped[:, None, None], 0.0),
            torch.where(dropped[:, None], read, self.mask),
            self.pooled.masked_fill(dropped[:, None], 0.0),
        )

    def null(self, tokens: Literal["all", "one"] = "all") -> TextEmbedding:
        """Null texts in the same shape."""
        return self.zeroed(torch.ones(len(self.mask), dtype=torch.bool), tokens)

    def cond(self, shape: AcceptsText, device: torch.device) -> dict[str, Tensor]:
        """The keyword arguments of a U-Net of this config."""
        cond = {}
        if shape.context_width is not None:
            cond |= {"context": self.sequence, "context_mask": self.mask}
        if shape.pooled_width is not None:
            cond["pooled"] = self.pooled
        from diptych.core.devices import sent

        return {key: sent(value, device) for key, value in cond.items()}


class TextEncoder(Protocol):
    """A text encoder."""

    width: int
    """Width of its tokens."""
    max_tokens: int
    """Longest prompt, in tokens."""

    def encode(self, prompts: list[str]) -> TextEmbedding: ...


def network_of(encoder: Any) -> nn.Module | None:
    """The network of a frozen text encoder, or none where it has none."""
    network = getattr(encoder, "model", None)
    return network if isinstance(network, nn.Module) else None


LONG_PROMPTS = ("refuse", "cut", "chunks")


@dataclass(frozen=True)
class PromptOptions:
    """How prompts are encoded, by `encoders.prompt_weights`."""

    weights: bool = False
    """`(word:1.3)` weighs a word."""
    long: str = "refuse"
    """For prompts beyond the text encoder's limit: "refuse" raises a `UserError`, "cut" drops the rest with a warning,
    "chunks" encodes parts and concatenates their tokens."""

    @classmethod
    def read(cls, weights: Any, long: Any) -> PromptOptions:
        if not isinstance(weights, bool):
            raise UserError(f"weights must be true or false, not {short_repr(weights)}")
        return cls(weights, pick("long_prompts", str(long), LONG_PROMPTS))

    def metadata(self) -> dict[str, Any]:
        values = {"weights": self.weights, "long_prompts": self.long}
        return {key: value for key, value in values.items() if value not in (False, "refuse")}
