"""Distances by the maximum mean discrepancy of a kernel: KID and CMMD."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from diptych.core.errors import UserError
from diptych.metrics.feature_rows import FeatureRows

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Features (N, D) and (M, D) -> values (N, M)."""
SEED = 2020
"""Of the draws of subsets, and of the order of the Inception Score: torch-fidelity's."""
SIGMA, SCALE = 10.0, 1000.0
"""Of CMMD's kernel, and what its distance is multiplied by."""


class SubsetMean(NamedTuple):
    """A mean over subsets, and the deviation between them (divided by their number)."""

    mean: float
    deviation: float


def kernel_inception_distance(
    generated: FeatureRows, real: FeatureRows, subsets: int = 100, size: int = 1000, seed: int = SEED
) -> SubsetMean:
    """KID (Bińkowski et al. 2018, section 4): the unbiased squared MMD of k(x, y) = (x·y/D + 1)³, over random subsets.

    Args:
        generated, real: features (N, D) and (M, D), `size` or more of each.
        subsets: how many, drawn without replacement from each side anew.
    """
    least = min(len(generated), len(real))
    if not 2 <= size <= least:
        raise UserError(f"KID draws subsets of {size} images, and one side has {least}: set a smaller subset size")
    # NumPy's former generator, as torch-fidelity has it, so that both draw the same subsets.
    draw = np.random.RandomState(seed)
    values = []
    for _ in range(subsets):
        one = np.asarray(generated[np.sort(draw.choice(len(generated), size, replace=False))], np.float64)
        other = np.asarray(real[np.sort(draw.choice(len(real), size, replace=False))], np.float64)
        values.append(unbiased_mmd(one, other, cubic))
    return SubsetMean(float(np.mean(values)), float(np.std(values)))


def cubic(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one @ other.T / one.shape[1] + 1) ** 3


def unbiased_mmd(one: np.ndarray, other: np.ndarray, kernel: Kernel) -> float:
    """Squared MMD without the diagonals (Gretton et al. 2012, equation 3): it may be below zero.

    Args:
        one, other: features (N, D) and (M, D), two or more of each.
    """
    within = []
    for side in (one, other):
        values = kernel(side, side)
        within.append((values.sum() - np.trace(values)) / (len(side) * (len(side) - 1)))
    return float(sum(within) - 2 * kernel(one, other).mean())


def cmmd(generated: FeatureRows, real: FeatureRows, rows: int = 2048) -> float:
    """CMMD (Jayasumana et al. 2024, section 4): 1000 times the squared MMD of k(x, y) = exp(-|x - y|² / 2σ²), σ = 10.

    The estimate is the biased one, with the diagonals (Gretton et al. 2012, equation 5), as in the published code. The
    paper's features are CLIP's image embeddings (ViT-L/14 at 336 px) at length 1.

    Args:
        generated, real: features (N, D) and (M, D); they may lie on disk, so many rows are read at a time.
    """
    pairs = ((generated, generated, 1.0), (real, real, 1.0), (generated, real, -2.0))
    return SCALE * sum(weight * mean_kernel(one, other, gaussian, rows) for one, other, weight in pairs)


def gaussian(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """exp(-|x - y|² / 2σ²)."""
    squares = np.square(one).sum(1)[:, None] + np.square(other).sum(1)[None] - 2 * one @ other.T
    return np.exp(-squares / (2 * SIGMA**2))


def mean_kernel(one: FeatureRows, other: FeatureRows, kernel: Kernel, rows: int) -> float:
    """The mean over all pairs, blocks of `rows` x `rows` at a time."""
    total = 0.0
    for start in range(0, len(one), rows):
        part = np.asarray(one[start : start + rows], np.float64)
        for other_start in range(0, len(other), rows):
            total += kernel(part, np.asarray(other[other_start : other_start + rows], np.float64)).sum()
    return total / (len(one) * len(other))
