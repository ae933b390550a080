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

    With A = L Lᵀ the product A B has the eigenvalues of Lᵀ B L, which is symmetric. Cholesky gives L, and where A has
    not full rank (fewer images than dimensions) its eigenvectors do.
    """
    try:
        factor = np.linalg.cholesky(first)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(first)
        factor = vectors * np.sqrt(values.clip(min=0))
    return float(np.sqrt(np.linalg.eigvalsh(factor.T @ second @ factor).clip(min=0)).sum())
