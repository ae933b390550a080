"""Scores of pictures by wording: shares and paired differences, with errors over wordings."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diptych.evaluation.retrieval import Mean, ranks

WORDINGS = ("seen", "unseen")
SHUFFLED = " shuffled"
RESAMPLES = 2000


def right_answers(wanted: Sequence[Sequence[str]], concepts: Sequence[str]) -> Tensor:
    """Indices (W, A) of each wording's right concepts; -1 fills the rows."""
    place = {concept: i for i, concept in enumerate(concepts)}
    most = max(map(len, wanted))
    return torch.tensor([[place[name] for name in names] + [-1] * (most - len(names)) for names in wanted])


def word_ranks(pictures: Tensor, concepts: Tensor, answers: Tensor) -> dict[str, Tensor]:
    """The ranks (W, P) of what pictures (W * P, D) should show, and of what some other wording should.

    concepts: unit vectors (C, D). answers: as `right_answers` gives them.
    """
    many = len(pictures) // len(answers)
    own = answers.repeat_interleave(many, 0)  # (W * P, A)
    other = own.roll(len(answers) // 2 * many, 0)  # half the list away: another sort of thing
    found = {"": best_ranks(pictures, concepts, own), SHUFFLED: best_ranks(pictures, concepts, other)}
    return {control: rank.unflatten(0, (-1, many)) for control, rank in found.items()}


def best_ranks(pictures: Tensor, concepts: Tensor, answers: Tensor) -> Tensor:
    """The place (N,), from 0, of the best of each picture's right concepts (N, A); ties count against it."""
    filled = answers.where(answers >= 0, answers[:, :1])
    return torch.stack([ranks(pictures, concepts, column) for column in filled.T]).amin(0)


def chance(answers: Tensor, concepts: int, k: int) -> float:
    """The share that guessing gets: one of a wording's right concepts (W, A) is among k drawn at random."""
    rights = (answers >= 0).sum(1).tolist()
    return 1 - float(np.mean([comb(concepts - right, k) / comb(concepts, k) for right in rights]))


def summary(ranked: dict[str, dict[str, Tensor]]) -> dict[str, Any]:
    """Shares and paired differences with standard errors over wordings, from ranks (W, P) by model and wording."""
    found: dict[str, Any] = {name: {} for name in ranked}
    first, *others = ranked
    differences: dict[str, Any] = {f"{first} - {other}": {} for other in others}
    for k in (1, 5):
        hits = {n: {w: (r < k).double().mean(1) for w, r in own.items()} for n, own in ranked.items()}  # (W,)
        again = {name: resampled(own["seen"], own["unseen"]) for name, own in hits.items()}
        for name, own in hits.items():
            for wording, shares in own.items():
                found[name].setdefault(wording, {})[f"top{k}"] = Mean.of(shares)._asdict()
            found[name].setdefault("kept", {})[f"top{k}"] = again[name][0]
        for other in others:
            row = differences[f"{first} - {other}"]
            for wording in WORDINGS:
                paired = hits[first][wording] - hits[other][wording]
                row.setdefault(wording, {})[f"top{k}"] = Mean.of(paired)._asdict()
            (one, ones), (two, twos) = again[first], again[other]
            if one is not None and two is not None:
                error = float(np.nanstd(ones - twos))
                row.setdefault("kept", {})[f"top{k}"] = {"value": one["value"] - two["value"], "error": error}
    return {"found": found, "differences": differences}


def resampled(seen: Tensor, unseen: Tensor) -> tuple[dict[str, float] | None, np.ndarray]:
    """What is kept of (W,) seen, with its bootstrap error, and every resample's: the same wordings for every model.

    None where nothing was hit.
    """
    draws = np.random.Generator(np.random.PCG64(0)).integers(0, len(seen), (RESAMPLES, len(seen)))
    below, above = seen.numpy()[draws].mean(1), unseen.numpy()[draws].mean(1)
    shares = np.divide(above, below, out=np.full(RESAMPLES, np.nan), where=below > 0)
    if not seen.any():
        return None, shares
    return {"value": float(unseen.mean() / seen.mean()), "error": float(np.nanstd(shares))}, shares
