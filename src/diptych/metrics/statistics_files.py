"""Statistics of a reference set in .npz files: those of other tools are read, and ours are read by them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diptych.core.disk import replacing
from diptych.core.errors import UserError
from diptych.metrics.frechet import Gaussian

ABOUT = "diptych"
"""Name of the entry of our file that says in JSON how it was made; other tools pass over it."""


@dataclass(frozen=True)
class Statistics:
    """A reference set, as far as a Fréchet distance needs it."""

    gaussian: Gaussian
    about: dict[str, Any]
    """Features and images as results carry them; nothing where a file of another tool does not say."""


def is_statistics(path: str | Path) -> bool:
    """Whether a file is an .npz with mean and covariance, not one with images."""
    path = Path(path)
    if path.suffix.casefold() != ".npz" or not path.is_file():
        return False
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return "mu" in arrays and "sigma" in arrays
    except (OSError, ValueError, EOFError):
        return False  # whoever reads it says what is wrong


def read_statistics(path: str | Path) -> Statistics:
    """`mu` (D,) and `sigma` (D, D) of pytorch-fid, clean-fid, torch-fidelity, ADM and diptych.

    Raises a `UserError` where they are missing, damaged, not finite or no covariance.
    """
    try:
        with np.load(Path(path), allow_pickle=False) as arrays:
            mean, covariance = (np.asarray(arrays[name], np.float64) for name in ("mu", "sigma"))
            about = json.loads(str(arrays[ABOUT])) if ABOUT in arrays else {}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise UserError(f"{path} cannot be read as statistics: {' '.join(str(error).split())[:120]}") from None
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(f"{path}: mu {mean.shape} and sigma {covariance.shape} are no mean and covariance")
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        raise UserError(f"{path}: mu or sigma holds NaN or Inf")
    if not np.allclose(covariance, covariance.T, rtol=1e-4, atol=1e-6) or (np.diag(covariance) < 0).any():
        raise UserError(f"{path}: sigma is no covariance: it is not symmetric, or has variances below zero")
    count = about.get("images", {}).get("images")
    return Statistics(Gaussian(mean, (covariance + covariance.T) / 2, count), about)


def write_statistics(path: str | Path, gaussian: Gaussian, about: dict[str, Any]) -> None:
    """Write `mu` and `sigma` in float64, and `about` as JSON, in one step."""
    with replacing(Path(path)) as partial, open(partial, "wb") as file:
        np.savez(file, mu=gaussian.mean, sigma=gaussian.covariance, diptych=np.array(json.dumps(about)))
