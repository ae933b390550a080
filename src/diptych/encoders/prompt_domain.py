"""How near a prompt is to those that a model was trained on.

Its likeness is the largest cosine of its embedding with any of theirs, less half the share of its words that stand in
none of them. A model may carry a small file beside its weights from which this is told: the words, the directions in
which the embeddings of its training prompts lie, and in these a choice of them in 8 bits. `diptych data familiar` makes
it.
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
from diptych.weights.files import load_metadata, load_safetensors, save_safetensors
from diptych.weights.identity import FAMILIAR

DIRECTIONS = 128
"""Of the embeddings of emoji captions, which are 384 wide, they hold nine tenths."""
APART = 0.6
"""A prompt that is more like one that was chosen already is not chosen."""
STRANGE = 0.5
"""What a prompt of nothing but unseen words loses."""
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class PromptDomain:
    """What is known of training prompts."""

    basis: Tensor
    """(K, width), float32, orthonormal rows."""
    prompts: Tensor
    """(N, K), int8: each embedding in that basis, times 127."""
    words: frozenset[str]
    """Of the prompts, in small letters."""
    least: float
    """Prompts below this likeness are told to be far from all of them."""
    encoder: str
    """Fingerprint of the text encoder that read them."""

    @classmethod
    def of(cls, prompts: Sequence[str], pooled: Tensor, encoder: str, least: float = 0.0) -> PromptDomain:
        """From training prompts and their embeddings (N, width)."""
        unit = F.normalize(pooled.float(), dim=-1)
        _, _, rows = torch.linalg.svd(unit.T @ unit)  # of the second moments: K directions that hold the most
        basis = rows[: min(DIRECTIONS, unit.shape[1])]
        chosen = unit[apart(unit, sorted(range(len(prompts)), key=lambda place: len(prompts[place])))]
        words = frozenset(word for prompt in prompts for word in WORD.findall(prompt.lower()))
        return cls(basis, (chosen @ basis.T * 127).round().to(torch.int8), words, least, encoder)

    def likeness(self, prompts: Sequence[str], pooled: Tensor) -> Tensor:
        """Of prompts and their embeddings (B, width), (B,): 1 for one of the training set, 0 and less for one that has
        nothing to do with any."""
        inside = F.normalize(pooled.float().cpu(), dim=-1) @ self.basis.T
        nearest = (inside @ (self.prompts.float() / 127).T).amax(1)
        found = [WORD.findall(prompt.lower()) for prompt in prompts]
        strange = [sum(word not in self.words for word in words) / max(len(words), 1) for words in found]
        return nearest - STRANGE * torch.tensor(strange)

    def save(self, folder: Path) -> None:
        """Write the file beside a model's weights."""
        known = {"least": repr(self.least), "encoder": self.encoder, "words": " ".join(sorted(self.words))}
        save_safetensors({"basis": self.basis.half(), "prompts": self.prompts}, folder / FAMILIAR, known)

    @classmethod
    def load(cls, folder: Path) -> PromptDomain | None:
        """What `save` wrote, none where there is no such file. A `UserError` where it is damaged."""
        path = folder / FAMILIAR
        if not path.is_file():
            return None
        tensors, known = load_safetensors(path), load_metadata(path)
        try:
            basis, prompts = tensors["basis"].float(), tensors["prompts"]
            words = frozenset(known["words"].split())
            found = cls(basis, prompts, words, float(known["least"]), known["encoder"])
        except (KeyError, ValueError):
            found = None
        if found is None or prompts.dtype != torch.int8 or prompts.ndim != 2 or prompts.shape[1:] != basis.shape[:1]:
            raise UserError(f"{path} does not hold what is known of training prompts: make it again or remove it")
        return found


def apart(unit: Tensor, order: Sequence[int]) -> list[int]:
    """Places of rows (N, width) of length 1, taken in this order, none of which is near one that was taken before."""
    taken, places = torch.empty_like(unit), list[int]()
    for place in order:
        if not places or float((taken[: len(places)] @ unit[place]).max()) < APART:
            taken[len(places)] = unit[place]
            places.append(place)
    return places
