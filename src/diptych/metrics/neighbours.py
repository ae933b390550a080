"""Fidelity and diversity apart, by nearest neighbours: precision and recall, density and coverage."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diptych.core.errors import UserError
from diptych.metrics.feature_rows import FeatureRows


class Manifolds(NamedTuple):
    """How two sets of features lie to each other; all but the density at most 1."""

    precision: float
    """Share of the generated that lie within a real one's ball."""
    recall: float
    """Share of the real that lie within a generated one's ball."""
    density: float
    """Real balls that a generated one lies in, on average, over k."""
    coverage: float
    """Share of the real balls with a generated one in them."""


def manifolds(generated: FeatureRows, real: FeatureRows, k: int = 3, rows: int = 512) -> Manifolds:
    """Precision and recall (Kynkäänniemi et al. 2019, equations 1 and 2), density and coverage (Naeem et al. 2020,
    equations 4 and 5), where the ball of a feature reaches to its k-th neighbour of its own set.

    The first paper takes k = 3 with 50,000 images and VGG16's fc2, the second k = 5: no two of them compare unless
    networks, k and numbers of images are the same.

    Args:
        generated, real: features (N, D) and (M, D), more than k of each. Memory is that of `rows` times the larger
            count in float32, and of some blocks of `rows` features.
    """
    least = min(len(generated), len(real))
    if not 1 <= k < least:
        raise UserError(f"precision and recall with k = {k} need more than {k} images on each side, not {least}")
    made_radii, true_radii = (radii(side, k, rows) for side in (generated, real))
    hits, precise, recalled = 0, 0, torch.zeros(len(real), dtype=torch.bool)
    nearest = torch.full((len(real),), torch.inf)
    for start, distances in distance_blocks(generated, real, rows):  # (n, M)
        within = distances <= true_radii
        hits += int(within.sum())
        precise += int(within.any(1).sum())
        recalled |= (distances <= made_radii[start : start + len(distances), None]).any(0)
        nearest = torch.minimum(nearest, distances.amin(0))
    return Manifolds(
        precision=precise / len(generated),
        recall=float(recalled.double().mean()),
        density=hits / (k * len(generated)),
        coverage=float((nearest <= true_radii).double().mean()),
    )


def radii(features: FeatureRows, k: int, rows: int) -> Tensor:
    """The distance (N,) from each feature (N, D) to its k-th neighbour, itself left out."""
    return torch.cat(
        [
            distances.topk(k + 1, dim=1, largest=False).values[:, -1]
            for _, distances in distance_blocks(features, features, rows)
        ]
    )


def distance_blocks(one: FeatureRows, other: FeatureRows, rows: int) -> Iterator[tuple[int, Tensor]]:
    """(number of the first, distances (n, M)) of `rows` features of one side at a time from all of the other; the
    tensor is written anew for the next."""
    block = torch.empty(min(rows, len(one)), len(other))
    for start in range(0, len(one), rows):
        part = _block(one, start, rows)
        distances = block[: len(part)]
        for other_start in range(0, len(other), rows):
            distances[:, other_start : other_start + rows] = torch.cdist(part, _block(other, other_start, rows))
        yield start, distances


def _block(features: FeatureRows, start: int, rows: int) -> Tensor:
    return torch.from_numpy(np.array(features[start : start + rows], np.float32))
