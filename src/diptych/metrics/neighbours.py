"""Fidelity and diversity apart, by nearest neighbours: precision and recall, density and coverage."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from diptych.core.errors import UserError


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


def manifolds(generated: np.ndarray, real: np.ndarray, k: int = 3, rows: int = 1024) -> Manifolds:
    """Precision and recall (Kynkäänniemi et al. 2019, equations 1 and 2), density and coverage (Naeem et al. 2020,
    equations 4 and 5), where the ball of a feature reaches to its k-th neighbour of its own set.

    The first paper takes k = 3 with 50,000 images and VGG16's fc2, the second k = 5: no two of them compare unless
    networks, k and numbers of images are the same.

    Args:
        generated, real: features (N, D) and (M, D), more than k of each; they may lie on disk. Memory is that of both
            sets of features in float32, and of `rows` times the larger count.
    """
    least = min(len(generated), len(real))
    if not 1 <= k < least:
        raise UserError(f"precision and recall with k = {k} need more than {k} images on each side, not {least}")
    sides = [torch.from_numpy(np.array(side, np.float32)) for side in (generated, real)]
    made, true = sides
    made_radii, true_radii = (radii(side, k, rows) for side in sides)
    hits, precise, recalled = 0, 0, torch.zeros(len(true), dtype=torch.bool)
    nearest = torch.full((len(true),), torch.inf)
    for part in torch.split(torch.arange(len(made)), rows):
        distances = torch.cdist(made[part], true)  # (n, M)
        within = distances <= true_radii
        hits += int(within.sum())
        precise += int(within.any(1).sum())
        recalled |= (distances <= made_radii[part, None]).any(0)
        nearest = torch.minimum(nearest, distances.amin(0))
    return Manifolds(
        precision=precise / len(made),
        recall=float(recalled.double().mean()),
        density=hits / (k * len(made)),
        coverage=float((nearest <= true_radii).double().mean()),
    )


def radii(features: Tensor, k: int, rows: int) -> Tensor:
    """The distance (N,) from each feature (N, D) to its k-th neighbour, itself left out."""
    return torch.cat([torch.cdist(part, features).kthvalue(k + 1, dim=1).values for part in features.split(rows)])
