"""The Inception Score."""

from __future__ import annotations

import numpy as np

from diptych.core.errors import UserError
from diptych.metrics.kernels import SEED, SubsetMean


def inception_score(logits: np.ndarray, splits: int = 10, seed: int | None = SEED) -> SubsetMean:
    """exp(E KL(p(y|x) || p(y))), over parts of the images (Salimans et al. 2016, section 4).

    Args:
        logits: (N, C) of the classifier, `splits` or more; they may lie on disk.
        splits: parts, each with its own p(y). ADM's code takes parts of 5,000 images.
        seed: of the order in which images are dealt to parts; none for their own.
    """
    count = len(logits)
    if not 1 <= splits <= count:
        raise UserError(f"an Inception Score over {splits} parts needs as many images, not {count}")
    order = np.arange(count) if seed is None else np.random.RandomState(seed).permutation(count)
    scores = []
    for part in range(splits):
        values = np.asarray(logits[order[part * count // splits : (part + 1) * count // splits]], np.float64)
        values = values - values.max(1, keepdims=True)
        logs = values - np.log(np.exp(values).sum(1, keepdims=True))  # log p(y|x): (n, C)
        chances = np.exp(logs)
        marginal = np.log(chances.mean(0).clip(min=np.finfo(np.float64).tiny))  # log p(y): (C,)
        scores.append(np.exp((chances * (logs - marginal)).sum(1).mean()))
    return SubsetMean(float(np.mean(scores)), float(np.std(scores)))
