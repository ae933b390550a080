"""The Fréchet distance between Gaussians, from features or from statistics that a file holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from diptych.core.errors import UserError
from diptych.metrics.feature_rows import FeatureRows


@dataclass(frozen=True)
class Gaussian:
    """Mean (D,) and covariance (D, D) of features, float64."""

    mean: np.ndarray
    covariance: np.ndarray
    count: int | None = None
    """Features that they were estimated from; none where a file does not say."""

    @classmethod
    def of(cls, features: FeatureRows, rows: int = 4096) -> Gaussian:
        """The mean, and the unbiased covariance (divided by N - 1), of features (N, D), which may lie on disk: so many
        rows are read at a time. N is 2 or more."""
        moments = Moments(features.shape[1])
        for start in range(0, len(features), rows):
            moments.add(features[start : start + rows])
        return moments.gaussian()


class Moments:
    """Mean and scatter of features that arrive in parts, in float64 (Chan, Golub and LeVeque 1979, equations 1.5a, b).

        m <- m + δ n'/(n + n'),   S <- S + S' + δ δᵀ n n'/(n + n'),   δ = m' - m

    for parts of n' features with mean m' and scatter S' about it: nothing large is subtracted from anything large.
    """

    def __init__(self, width: int) -> None:
        self.count, self.mean, self.scatter = 0, np.zeros(width), np.zeros((width, width))

    def add(self, features: np.ndarray) -> None:
        """Take in features (n, D)."""
        if len(features) == 0:
            return
        features = np.asarray(features, np.float64)
        mean = features.mean(0)
        centred = features - mean
        self._join(len(features), mean, centred.T @ centred)

    def merge(self, other: Moments) -> None:
        """Take in what another process has taken in."""
        if other.count:
            self._join(other.count, other.mean, other.scatter)

    def _join(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        total, shift = self.count + count, mean - self.mean
        self.scatter += scatter
        self.scatter += np.outer(shift, shift * (self.count * count / total))
        self.mean = self.mean + shift * (count / total)
        self.count = total

    def gaussian(self) -> Gaussian:
        if self.count < 2:
            raise UserError(f"a Fréchet distance needs two images or more on each side, not {self.count}")
        return Gaussian(self.mean, self.scatter / (self.count - 1), self.count)


def frechet_distance(one: FeatureRows | Gaussian, other: FeatureRows | Gaussian) -> float:
    """Squared Fréchet distance between Gaussians, or those fitted to features (Heusel et al. 2017, equation 6).

        |m1 - m2|² + tr(C1) + tr(C2) - 2 tr((C1 C2)^½)

    Args:
        one, other: features (N, D) and (M, D), two or more of each, or their means and covariances.
    """
    first, second = (side if isinstance(side, Gaussian) else Gaussian.of(side) for side in (one, other))
    if first.mean.shape != second.mean.shape:
        raise UserError(f"features of {len(first.mean)} and of {len(second.mean)} dimensions: another network")
    shift = first.mean - second.mean
    traces = np.trace(first.covariance) + np.trace(second.covariance)
    distance = shift @ shift + traces - 2 * trace_sqrt_product(first.covariance, second.covariance)
    return max(float(distance), 0.0)


def trace_sqrt_product(first: np.ndarray, second: np.ndarray) -> float:
    """tr((A B)^½) of covariances (D, D), without a matrix square root.

    With A = L Lᵀ the product A B has the eigenvalues of Lᵀ B L, which is symmetric.
    """
    factor = _factor(first)
    return float(np.sqrt(np.linalg.eigvalsh(factor.T @ second @ factor).clip(min=0)).sum())


def frechet_error(
    features: FeatureRows, other: FeatureRows | Gaussian, resamples: int = 100, seed: int = 0, rows: int = 4096
) -> float:
    """The standard error of `frechet_distance(features, other)` by the bootstrap (Efron 1979): the standard deviation
    of the distance over `resamples` draws of as many features, with replacement. `other` is the same for all that is
    compared, and stays as it is.

    Draws repeat features, which moves all distances up alike; their spread is what is used.

    Args:
        features: (N, D), N two or more; so many `rows` are in memory at a time, or all where N < D.
    """
    count, width = features.shape
    fixed = other if isinstance(other, Gaussian) else Gaussian.of(other)
    factor = _factor(fixed.covariance)
    draws, distances = np.random.Generator(np.random.PCG64(seed)), []
    for _ in range(resamples):
        picked = np.sort(draws.integers(0, count, count))
        if count < width:  # the singular values of (X - m) L / (N - 1)^½ are the roots of the eigenvalues of Lᵀ C L
            drawn = np.asarray(features[picked], np.float64)
            mean = drawn.mean(0)
            centred = (drawn - mean) / np.sqrt(count - 1)
            trace, roots = (centred**2).sum(), np.linalg.svd(centred @ factor, compute_uv=False).sum()
        else:
            moments = Moments(width)
            for start in range(0, count, rows):
                moments.add(features[picked[start : start + rows]])
            mean, covariance = moments.mean, moments.gaussian().covariance
            trace = np.trace(covariance)
            roots = np.sqrt(np.linalg.eigvalsh(factor.T @ covariance @ factor).clip(min=0)).sum()
        shift = mean - fixed.mean
        distances.append(shift @ shift + trace + np.trace(fixed.covariance) - 2 * roots)
    return float(np.std(distances, ddof=1))


def _factor(covariance: np.ndarray) -> np.ndarray:
    """L (D, D) with L Lᵀ the covariance: Cholesky's, or by eigenvectors where it has not full rank (fewer images than
    dimensions)."""
    try:
        return np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(covariance)
        return vectors * np.sqrt(values.clip(min=0))
