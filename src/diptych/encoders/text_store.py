"""Text embeddings of any number of prompts on disk, of which only those that are asked for are read.

A prompt's hash says in which part it is, and sorted hashes in the part say where: there is no index to be loaded.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from diptych.weights.packed_texts import PackedTexts, buckets_of, text_hashes
from diptych.weights.part_files import MAPPED, PartFiles
from diptych.weights.save import save_safetensors

STEM = "text"


class StoredPart(NamedTuple):
    """Some prompts and their embeddings, as a file holds them."""

    prompts: PackedTexts
    tokens: Tensor  # (tokens of all prompts, width)
    ends: np.ndarray  # where each prompt's tokens end
    pooled: Tensor | None  # (prompts, width), or none where it is the tokens' mean
    hashes: np.ndarray  # of the prompts, sorted: uint64
    rows: np.ndarray  # the prompt of each hash

    def row(self, index: int) -> Tensor:
        """The tokens (L, width) of one prompt."""
        return self.tokens[self.ends[index - 1] if index else 0 : self.ends[index]]

    def find(self, prompt: str, hashed: np.uint64) -> int | None:
        """The row of a prompt; none where it is not there."""
        place = int(np.searchsorted(self.hashes, hashed))
        while place < len(self.hashes) and self.hashes[place] == hashed:
            if self.prompts[row := int(self.rows[place])] == prompt:  # and not another of the same hash
                return row
            place += 1
        return None

    @classmethod
    def read(cls, tensors: dict[str, Tensor], width: int) -> Self:
        """Raises a `ValueError` where tensors do not fit together."""
        prompts, n = PackedTexts.read(tensors, "prompts"), len(tensors["prompts_ends"])
        tokens, pooled = tensors["tokens"], tensors.get("pooled")
        ends, hashes, rows = (tensors[name].numpy() for name in ("ends", "hashes", "rows"))
        fits = tokens.ndim == 2 and tokens.shape[1] == width and len(tokens) == (ends[-1] if n else 0)
        if not (fits and len(ends) == len(hashes) == len(rows) == n):
            raise ValueError("tokens and prompts differ")
        if pooled is not None and pooled.shape != (n, width):
            raise ValueError("pooled embeddings and prompts differ")
        return cls(prompts, tokens, ends, pooled, hashes.view(np.uint64), rows)


def save_part(path: Path, prompts: Sequence[str], tokens: Tensor, ends: Sequence[int], pooled: Tensor | None) -> None:
    """Write a part: of each prompt its tokens, end to end in `tokens` (N, width), and `pooled` (n, width) or none."""
    hashes = text_hashes(prompts)
    order = np.argsort(hashes, kind="stable")
    tensors = {
        **PackedTexts.of(prompts).tensors("prompts"),
        "tokens": tokens,
        "ends": torch.tensor(ends, dtype=torch.int64),
        "hashes": torch.from_numpy(hashes[order].view(np.int64)),
        "rows": torch.from_numpy(order.astype(np.int32)),
        **({} if pooled is None else {"pooled": pooled}),
    }
    save_safetensors(tensors, path)


class TextStore:
    """The parts of a folder; each holds the prompts of an equal range of hashes."""

    def __init__(self, folder: Path, sizes: Sequence[int], width: int, again: str) -> None:
        """sizes: bytes of each part; again: how to make the folder again, for errors."""
        self.files, self.width = PartFiles(folder, STEM, sizes, again), width
        self.part = functools.lru_cache(MAPPED)(self._part)

    @property
    def bytes(self) -> int:
        return sum(self.files.sizes)

    def _part(self, number: int) -> StoredPart:
        try:
            return StoredPart.read(self.files[number], self.width)
        except (ValueError, KeyError, IndexError):
            raise self.files.damaged(number) from None

    def find(self, prompts: Sequence[str]) -> list[tuple[Any, int] | None]:
        """The part and the row of each prompt; none for those that are not there."""
        hashes = text_hashes(prompts)
        found: list[tuple[Any, int] | None] = []
        for prompt, hashed, number in zip(prompts, hashes, buckets_of(hashes, len(self.files)).tolist(), strict=True):
            part = self.part(number)
            row = part.find(prompt, hashed)
            found.append(None if row is None else (part, row))
        return found
