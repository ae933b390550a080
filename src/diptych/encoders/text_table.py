"""Embeddings of the captions of a run on its device: a step looks captions up, and the device gathers their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diptych.core.devices import sent
from diptych.encoders.base import TextEmbedding

LARGEST = 2**31
"""Bytes of tokens beyond which no table is made, so that they do not crowd a GPU."""


class TextTable:
    """The tokens of prompts end to end on a device, in half precision; where each begins is known on the host."""

    def __init__(self, places: dict[str, tuple[Any, int]], device: torch.device) -> None:
        """places: of each prompt the part (`CachePart`) that holds it, and its row there; one token at least."""
        self.device, self.numbers = device, {prompt: number for number, prompt in enumerate(places)}
        rows = [part.row(index) for part, index in places.values()]
        self.lengths = np.array([len(row) for row in rows], dtype=np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.tokens = sent(torch.cat(rows), device)  # (tokens of all prompts, width)
        own = [part.pooled is not None for part, _ in places.values()]
        self.own: Tensor | None = None  # (prompts,) bool: those whose pooled embedding is not their tokens' mean
        if any(own):
            empty = torch.zeros(rows[0].shape[1])
            pooled = [empty if part.pooled is None else part.pooled[i].float() for part, i in places.values()]
            self.own, self.pooled = sent(torch.tensor(own), device), sent(torch.stack(pooled), device)

    @classmethod
    def of(cls, places: dict[str, tuple[Any, int]], device: torch.device) -> TextTable | None:
        """None where there is nothing, or too much."""
        rows = (part.row(index) for part, index in places.values())
        size = sum(row.numel() * row.element_size() for row in rows)
        return cls(places, device) if 0 < size <= LARGEST else None

    def finite(self) -> bool:
        """Whether all values are; a GPU is waited for."""
        return bool(self.tokens.isfinite().all() and (self.own is None or self.pooled.isfinite().all()))

    def encode(self, prompts: Sequence[str]) -> TextEmbedding | None:
        """The embeddings of prompts, on the device; none where it has not all of them. The host waits for nothing."""
        try:
            rows = np.array([self.numbers[prompt] for prompt in prompts], dtype=np.int64)
        except KeyError:
            return None
        lengths = self.lengths[rows]
        rows, starts, counts = sent(torch.from_numpy(np.stack([rows, self.starts[rows], lengths])), self.device)  # (B,)
        steps = torch.arange(int(lengths.max(initial=0)), device=self.device)  # (L,)
        mask = steps < counts[:, None]  # (B, L)
        tokens = self.tokens[(starts[:, None] + steps).clamp(max=len(self.tokens) - 1)]  # (B, L, width)
        sequence = tokens.float().masked_fill(~mask[..., None], 0.0)
        pooled = sequence.sum(1) / counts.clamp(min=1)[:, None]
        if self.own is not None:
            pooled = torch.where(self.own[rows][:, None], self.pooled[rows], pooled)
        return TextEmbedding(sequence, mask, pooled)
