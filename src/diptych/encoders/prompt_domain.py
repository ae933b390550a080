"""The likeness of a prompt to those that a model was trained on.

It is the largest cosine of its embedding with a training prompt's, less half the share of words that no training prompt
has. A model's folder may hold a small file for it: the words, the principal directions of the training prompts'
embeddings, and a selection of these embeddings in 8 bits. `diptych data familiar` writes it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.core.errors import UserError
from diptych.weights.files import load_metadata, load_safetensors
from diptych.weights.identity import FAMILIAR
from diptych.weights.save import save_safetensors

DIRECTIONS = 128
"""Principal directions; they hold nine tenths of the second moment of emoji captions, which are 384 wide."""
APART = 0.6
"""Prompts with a larger cosine to a selected one are not selected."""
STRANGE = 0.5
"""What the likeness of a prompt of unseen words alone loses."""
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class PromptDomain:
    """A summary of a model's training prompts."""

    basis: Tensor
    """(K, width), float32, orthonormal rows."""
    prompts: Tensor
    """(N, K), int8: each embedding in that basis, times 127."""
    words: frozenset[str]
    """Words of the prompts, in lower case."""
    least: float
    """Prompts below this likeness are warned of."""
    encoder: str
    """Fingerprint of the text encoder of the embeddings."""

    @classmethod
    def of(cls, prompts: Sequence[str], pooled: Tensor, encoder: str, least: float = 0.0) -> PromptDomain:
        """From training prompts and their embeddings (N, width)."""
        unit = F.normalize(pooled.float(), dim=-1)
        _, _, rows = torch.linalg.svd(unit.T @ unit)  # of the second moments: K directions that hold the most
        basis = rows[: min(DIRECTIONS, unit.shape[1])]
        chosen = unit[select_apart(unit, sorted(range(len(prompts)), key=lambda place: len(prompts[place])))]
        words = frozenset(word for prompt in prompts for word in WORD.findall(prompt.lower()))
        return cls(basis, (chosen @ basis.T * 127).round().to(torch.int8), words, least, encoder)

    def likeness(self, prompts: Sequence[str], pooled: Tensor) -> Tensor:
        """The likeness (B,) of prompts with embeddings (B, width): 1 for a training prompt, 0 and less for one that
        has nothing in common with any."""
        inside = F.normalize(pooled.float().cpu(), dim=-1) @ self.basis.T
        nearest = (inside @ (self.prompts.float() / 127).T).amax(1)
        split = [WORD.findall(prompt.lower()) for prompt in prompts]
        strange = [sum(word not in self.words for word in words) / max(len(words), 1) for words in split]
        return nearest - STRANGE * torch.tensor(strange)

    def save(self, folder: Path) -> None:
        """Write the file into a model's folder."""
        metadata = {"least": repr(self.least), "encoder": self.encoder, "words": " ".join(sorted(self.words))}
        save_safetensors({"basis": self.basis.half(), "prompts": self.prompts}, folder / FAMILIAR, metadata)

    @classmethod
    def load(cls, folder: Path) -> PromptDomain | None:
        """What `save` wrote, none where there is no such file. A `UserError` where it is damaged."""
        path = folder / FAMILIAR
        if not path.is_file():
            return None
        tensors, metadata = load_safetensors(path), load_metadata(path)
        try:
            basis, prompts = tensors["basis"].float(), tensors["prompts"]
            words = frozenset(metadata["words"].split())
            domain = cls(basis, prompts, words, float(metadata["least"]), metadata["encoder"])
        except (KeyError, ValueError):
            domain = None
        if domain is None or prompts.dtype != torch.int8 or prompts.ndim != 2 or prompts.shape[1:] != basis.shape[:1]:
            raise UserError(f"{path} is no summary of training prompts, or damaged: make it again or remove it")
        return domain


def select_apart(unit: Tensor, order: Sequence[int]) -> list[int]:
    """Indices of rows of unit length (N, width), taken in this order, none of which is near one taken before."""
    taken, places = torch.empty_like(unit), list[int]()
    for place in order:
        if not places or float((taken[: len(places)] @ unit[place]).max()) < APART:
            taken[len(places)] = unit[place]
            places.append(place)
    return places
