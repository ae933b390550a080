"""Frozen word features with a memory: each caption is read by MiniLM once, however often the judge meets it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from diptych.core.devices import sent
from diptych.core.progress import track
from diptych.encoders.cache import CachedTexts, text_cache
from diptych.encoders.configs import MiniLMConfig


class SentenceEncoder(Protocol):
    """A text encoder: `sequence` (B, L, D) and `mask` (B, L), True at real tokens."""

    def encode(self, prompts: list[str], /) -> Any: ...


class WordFeatures:
    """Captions to token features, remembered in float16 (about 10 kB a caption).

    `encoder` defaults to MiniLM with its memory on disk (`text_cache()`), built at the first caption that is not there;
    `limit` bounds the memory in bytes: captions met after it is full are read anew each time.
    """

    def __init__(self, encoder: SentenceEncoder | None = None, limit: int = 1 << 30) -> None:
        self._encoder = encoder
        self._limit = limit
        self._used = 0
        self._known: dict[str, Tensor] = {}

    @property
    def encoder(self) -> SentenceEncoder:
        if self._encoder is None:
            self._encoder = CachedTexts(MiniLMConfig(), text_cache())
        return self._encoder

    def __call__(self, captions: Sequence[str], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Features (B, L, D) float32 and mask (B, L) bool, padded to the longest caption given."""
        new = self._read([c for c in dict.fromkeys(captions) if c not in self._known])
        rows = [new[c] if c in new else self._known[c] for c in captions]  # each (L_i, D) float16
        features = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(features.shape[1]) < lengths[:, None]
        device = torch.device(device)
        return sent(features, device).float(), sent(mask, device)

    def prepare(self, captions: Sequence[str], batch: int = 256) -> None:
        """Read all captions now, similar lengths together, with a progress bar."""
        new = sorted({c for c in captions if c not in self._known}, key=len)
        if new and isinstance(encoder := self.encoder, CachedTexts):
            encoder.read(new)  # at once, so that they lie on disk together
        for start in track(range(0, len(new), batch), "reading captions"):
            if self._used >= self._limit:
                break
            self._read(new[start : start + batch])

    @torch.inference_mode()
    def _read(self, captions: list[str]) -> dict[str, Tensor]:
        """Encode captions, keep what fits, and return all of them."""
        if not captions:
            return {}
        text = self.encoder.encode(captions)
        sequence, mask = text.sequence.half().cpu(), text.mask.cpu()
        features = {c: sequence[i, mask[i]].clone() for i, c in enumerate(captions)}
        for caption, row in features.items():
            size = row.numel() * row.element_size()
            if self._used + size <= self._limit:
                self._known[caption] = row
                self._used += size
        return features
