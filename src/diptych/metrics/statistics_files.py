"""Statistics of a reference set in .npz files: those of other tools are read, and ours are read by them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from diptych.core.disk import replacing
from diptych.core.errors import UserError
from diptych.metrics.frechet import Gaussian
from diptych.metrics.npz_files import is_npz, npz_names, read_npz

MEAN, COVARIANCE = "mu", "sigma"
LARGEST = 1e100
"""Of a mean or covariance: features in float32 give at most 1e77, and products of two are still within float64."""
ABOUT = "diptych"
"""Name of the entry of our file that says in JSON how it was made; other tools pass over it."""


@dataclass(frozen=True)
class Statistics:
    """A reference set, as far as a Fréchet distance needs it."""

    gaussian: Gaussian
    features: dict[str, Any] | None
    """What they were computed from, as results carry it; none where a file of another tool does not say."""
    images: dict[str, Any]
    """Of which images, as results carry it; where a file does not say, a hash of the statistics."""


def has_statistics(path: str | Path) -> bool:
    """Whether a path is an .npz with mean and covariance. Raises a `UserError` where it is damaged."""
    return is_npz(path) and {MEAN, COVARIANCE} <= set(npz_names(Path(path)))


def read_statistics(path: str | Path) -> Statistics:
    """`mu` (D,) and `sigma` (D, D) of pytorch-fid, clean-fid, torch-fidelity, ADM and diptych.

    Raises a `UserError` where they are missing, damaged, not finite or no covariance.
    """
    path = Path(path)
    about: Any = {}
    if ABOUT in npz_names(path):
        try:
            about = json.loads(str(read_npz(path, [ABOUT])[0]))
        except (ValueError, RecursionError):
            raise UserError(f"{path}: what it says of itself is no JSON") from None
    features, images = (about.get(name) for name in ("features", "images")) if isinstance(about, dict) else (0, 0)
    if not (isinstance(features, dict | None) and isinstance(images, dict | None)):
        raise UserError(f"{path}: what it says of itself was not written by diptych")
    if (count := (images or {}).get("images")) is not None and (type(count) is not int or count < 2):
        raise UserError(f"{path}: what it says of itself was not written by diptych: images {count!r}")
    stored = read_npz(path, [MEAN, COVARIANCE])
    if any(array.dtype.kind not in "fiu" for array in stored):
        raise UserError(f"{path}: {MEAN} and {COVARIANCE} must be numbers")
    mean, covariance = (np.asarray(array, np.float64) for array in stored)
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(f"{path}: mu {mean.shape} and sigma {covariance.shape} are no mean and covariance")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{path}: mu or sigma holds NaN or Inf")
    if max(np.abs(mean).max(initial=0), np.abs(covariance).max(initial=0)) > LARGEST:
        raise UserError(f"{path}: mu or sigma holds numbers beyond {LARGEST:g}, which no features give")
    if not np.allclose(covariance, covariance.T, rtol=1e-4, atol=1e-6) or (np.diag(covariance) < 0).any():
        raise UserError(f"{path}: sigma is no covariance: it is not symmetric, or has variances below zero")
    digest = sha256(mean.tobytes() + covariance.tobytes()).hexdigest()[:16]
    covariance = (covariance + covariance.T) / 2
    if not nearly_positive(covariance):
        raise UserError(f"{path}: sigma is no covariance: it has directions of negative variance")
    return Statistics(Gaussian(mean, covariance, count), features, images or {"statistics": digest})


def nearly_positive(covariance: np.ndarray) -> bool:
    """Whether no eigenvalue of a symmetric matrix is below minus a hundredth of its largest diagonal entry: more than
    rounding to float16 leaves. A distance would take such a one for zero, and come out too small."""
    slack = 0.01 * np.diag(covariance).max(initial=0) or 1.0
    try:
        np.linalg.cholesky(covariance + slack * np.eye(len(covariance)))
    except np.linalg.LinAlgError:
        return False
    return True


def write_statistics(path: str | Path, gaussian: Gaussian, about: dict[str, Any]) -> None:
    """Write `mu` and `sigma` in float64, and `about` (features, images) as JSON, in one step."""
    arrays = {MEAN: gaussian.mean, COVARIANCE: gaussian.covariance, ABOUT: np.array(json.dumps(about))}
    with replacing(Path(path)) as partial, open(partial, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
