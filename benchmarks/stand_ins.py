"""Stand-ins for models whose work is not what a measurement is about."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diptych.encoders.base import TextEmbedding


class RandomText:
    """Stands for a frozen text encoder: random embeddings of a fixed number of tokens."""

    fingerprint = "random"

    def __init__(self, width: int, tokens: int) -> None:
        self.width, self.max_tokens = width, tokens

    def encode(self, prompts: list[str]) -> TextEmbedding:
        sequence = torch.randn(len(prompts), self.max_tokens, self.width)
        return TextEmbedding.from_sequence(sequence, torch.ones(sequence.shape[:2], dtype=torch.bool))


class Nothing(nn.Module):
    """A network without work, to time the host: x times one weight, so that there is a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor, time: Tensor, **cond: Any) -> Tensor:
        return x * self.weight
