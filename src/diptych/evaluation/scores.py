"""Scores of painted and of real pictures under one judge, with the controls that show the measure can fail."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diptych.evaluation.judge import Judge
from diptych.evaluation.metrics import frechet_distance, saturated
from diptych.evaluation.prompt_sets import Group, concept_of
from diptych.evaluation.retrieval import Mean, Share, ranks, share_of_right_captions

ROWS = ("generated", "real", "shuffled", "chance")


def score_pairs(
    judge: Judge, group: Group, concepts: list[str], vectors: Tensor, records: list[dict[str, Any]]
) -> dict[str, Any]:
    """Retrieval of drawings among all concepts (C, D): generated, real, shuffled and by chance."""
    place = {concept: i for i, concept in enumerate(concepts)}
    truth = torch.tensor([place[concept_of(m)] for m in group.metas])
    made, real = judge.pictures(group.generated), judge.pictures(group.real)  # (N, D)
    rank, real_rank = ranks(made, vectors, truth), ranks(real, vectors, truth)
    guesses, real_guesses = _guesses(made, vectors, concepts), _guesses(real, vectors, concepts)
    for i, meta in enumerate(group.metas):
        records.append(
            {"group": group.name, "prompt": group.prompts[i], "seed": group.seeds[i], "concept": concept_of(meta)}
            | {"style": meta.get("style"), "rank": int(rank[i]), "guesses": guesses[i]}
            | {"real_rank": int(real_rank[i]), "real_guesses": real_guesses[i]}
        )
    return {
        "pictures": len(truth),
        "generated": _placed(rank, len(concepts)),
        "real": _placed(real_rank, len(concepts)),
        "shuffled": _placed(ranks(made, vectors, truth.roll(1)), len(concepts)),
        "chance": {f"top{k}": {"value": min(k / len(concepts), 1.0)} for k in (1, 5)} | {"place": {"value": 0.5}},
        "frechet": _frechet(judge, group),
    }


def score_scenes(judge: Judge, group: Group, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Share of scenes whose true caption the judge puts before its foils: generated, real, shuffled and by chance."""
    trials = [(m["captions"][0], list(m["foils"])) for m in group.metas]
    made = judge.pictures(group.generated)
    right = share_of_right_captions(judge, made, trials)
    real_right = share_of_right_captions(judge, judge.pictures(group.real), trials)
    for i, (caption, foils) in enumerate(trials):
        records.append(
            {"group": "scenes", "category": group.name, "prompt": caption, "foils": foils, "seed": group.seeds[i]}
            | {"right": bool(right[i]), "real_right": bool(real_right[i])}
        )
    return {
        "pictures": len(trials),
        "generated": Share.of(right)._asdict(),
        "real": Share.of(real_right)._asdict(),
        "shuffled": Share.of(share_of_right_captions(judge, made, [*trials[1:], trials[0]]))._asdict(),
        "chance": {"value": float(np.mean([1 / (1 + len(foils)) for _, foils in trials]))},
    }


def measure(
    judge: Judge, pictures: list[Image.Image], truth: Tensor, vectors: Tensor, real: Tensor | None = None
) -> dict[str, Any]:
    """What one set of pictures shows, each seen by the judge once.

    truth: index (N,) of each picture's concept among vectors (C, D).
    real: features (M, F) of the real pictures, for the Fréchet distance; none without them.
    """
    features = judge.features(pictures)  # (N, F)
    found = judge.place(features)  # (N, D)
    distance = None if real is None else frechet_distance(features.numpy(), real.numpy())
    return {
        "pictures": len(pictures),
        "alignment": Mean.of((found * vectors[truth]).sum(1))._asdict(),
        **_top(ranks(found, vectors, truth)),
        "frechet": distance,
        "saturated": saturated(pictures),
    }


def pooled(scenes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """All categories together, each picture with the same weight."""
    counts = [s["pictures"] for s in scenes.values()]
    total: dict[str, Any] = {"pictures": sum(counts)}
    for row in ROWS:
        value = float(np.average([s[row]["value"] for s in scenes.values()], weights=counts))
        total[row] = {"value": value} if row == "chance" else Share.at(value, sum(counts))._asdict()
    return total


def _top(rank: Tensor) -> dict[str, Any]:
    return {f"top{k}": Share.of(rank < k)._asdict() for k in (1, 5)}


def _placed(rank: Tensor, concepts: int) -> dict[str, Any]:
    """Also the mean place of the true concept among all, 0 the first and 1 the last: it tells weak models from chance
    long before a concept is named."""
    if len(rank) < 2:  # no standard error
        return _top(rank)
    return {**_top(rank), "place": Mean.of(rank / max(concepts - 1, 1))._asdict()}


def _guesses(pictures: Tensor, vectors: Tensor, concepts: list[str], count: int = 5) -> list[list[str]]:
    best = (pictures @ vectors.T).topk(min(count, len(concepts)), dim=1).indices
    return [[concepts[i] for i in row] for row in best.tolist()]


def _frechet(judge: Judge, group: Group) -> float | None:
    if len(group.seeds) < 2:
        return None
    return frechet_distance(judge.features(group.generated).numpy(), judge.features(group.real).numpy())


def share_of(generated: dict[str, Any], real: dict[str, Any]) -> dict[str, float | None]:
    """Scores as shares of what real pictures score; none where that is zero."""
    return {k: generated[k]["value"] / real[k]["value"] if real[k]["value"] else None for k in ("top1", "top5")}
