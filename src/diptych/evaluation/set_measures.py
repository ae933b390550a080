"""All measures of one set of features against another, and whether a measure puts levels in their order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from itertools import combinations

import numpy as np

from diptych.metrics.frechet import Gaussian, frechet_distance
from diptych.metrics.kernels import SCALE, cubic, gaussian, mean_kernel
from diptych.metrics.neighbours import manifolds

DIRECTIONS = {
    "fid": 1,
    "kid": 1,
    "cmmd": 1,
    "precision": -1,
    "recall": -1,
    "density": -1,
    "coverage": -1,
    "alignment": -1,
}
"""Measure -> 1 where it should rise with damage, -1 where it should fall."""
ROWS = 2048
"""Features of a block of kernel values."""
SAME = 1e-6
"""Share of the larger one by which two numbers must differ to be different."""


class SetMeasures:
    """Measures against one reference (M, D)."""

    def __init__(self, reference: np.ndarray, k: int) -> None:
        self.reference, self.k = np.asarray(reference, np.float32), k

    def __call__(self, features: np.ndarray) -> dict[str, float]:
        """Of features (N, D): FID; KID of all, times 1000; CMMD of features at length 1; precision and the like."""
        near = manifolds(features, self.reference, self.k)._asdict()
        mmd = within(features) + self.within - 2 * mean_kernel(features, self.reference, cubic, ROWS)
        lengths = unit(features)
        similar = mean_kernel(lengths, lengths, gaussian, ROWS) + self.similar
        apart = mean_kernel(lengths, unit(self.reference), gaussian, ROWS)
        fid = frechet_distance(Gaussian.of(features), self.fitted)
        return {"fid": fid, "kid": SCALE * mmd, "cmmd": SCALE * (similar - 2 * apart), **near}

    # What depends on the reference alone is computed once.

    @cached_property
    def fitted(self) -> Gaussian:
        return Gaussian.of(self.reference)

    @cached_property
    def within(self) -> float:
        return within(self.reference)

    @cached_property
    def similar(self) -> float:
        lengths = unit(self.reference)
        return mean_kernel(lengths, lengths, gaussian, ROWS)


def within(features: np.ndarray) -> float:
    """The mean of KID's kernel over pairs of different features (N, D), as `kernels.unbiased_mmd` has it, in blocks."""
    count, squares = len(features), np.square(features.astype(np.float64)).sum(1)
    own = ((squares / features.shape[1] + 1) ** 3).sum()
    return (mean_kernel(features, features, cubic, ROWS) * count**2 - own) / (count * (count - 1))


def unit(features: np.ndarray) -> np.ndarray:
    """At length 1, as CMMD's kernel expects them."""
    return features / np.linalg.norm(features, axis=1, keepdims=True).clip(min=1e-12)


def half_samples(count: int, number: int, seed: int) -> Iterator[np.ndarray]:
    """Places of half of `count` images, drawn without replacement, `number` times.

    The variance of a mean over m of n is s² (1/m - 1/n), which for m = n/2 is that of a mean over n: half samples vary
    as whole ones do (Politis, Romano and Wolf 1999, section 2.2). A bootstrap with replacement would not do here: it
    repeats images, and repeated images are what these measures look for.
    """
    draw = np.random.Generator(np.random.PCG64(seed))
    for _ in range(number):
        yield np.sort(draw.permutation(count)[: count // 2])


def kendall_tau(values: Sequence[float]) -> float:
    """Kendall's rank correlation of values with their place: pairs in order minus pairs out of order, over all pairs.

    1 where the values rise all the way, -1 where they fall, 0 where all are the same: a pair of equal ones counts as
    neither (tau a; Kendall 1938).
    """
    pairs = list(combinations(values, 2))
    return sum(_order(one, other) for one, other in pairs) / len(pairs)


def rank_agreement(one: Sequence[float], other: Sequence[float]) -> float:
    """Kendall's tau a of two rankings of the same things."""
    pairs = list(combinations(range(len(one)), 2))
    return sum(_order(one[i], one[j]) * _order(other[i], other[j]) for i, j in pairs) / len(pairs)


def _order(one: float, other: float) -> int:
    if math.isclose(one, other, rel_tol=SAME, abs_tol=1e-12):
        return 0
    return 1 if one < other else -1


def interval(values: Sequence[float]) -> dict[str, float]:
    """The middle 95 %."""
    low, high = np.quantile(values, (0.025, 0.975))
    return {"low": float(low), "high": float(high)}


def overtakers(
    unseen: Mapping[str, Mapping[str, float]], seen: Mapping[str, Mapping[str, float]], measure: str
) -> list[tuple[str, str]]:
    """(invisible, visible) for each pair of which the invisible change moves a measure more in the direction of damage.

    Args:
        unseen, seen: name -> measure -> change.
    """
    way = DIRECTIONS[measure]
    return [
        (small, large)
        for small, change in unseen.items()
        for large, other in seen.items()
        if _order(way * other[measure], way * change[measure]) > 0
    ]
