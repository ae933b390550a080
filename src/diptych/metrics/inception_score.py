"""The Inception Score."""

from __future__ import annotations

import numpy as np

from diptych.core.errors import UserError
from diptych.metrics.feature_rows import FeatureRows
from diptych.metrics.kernels import SEED, SubsetMean


def inception_score(logits: FeatureRows, splits: int = 10, seed: int | None = SEED, rows: int = 2048) -> SubsetMean:
    """exp(E KL(p(y|x) || p(y))), over parts of the images (Salimans et al. 2016, section 4).

    Args:
        logits: (N, C) of the classifier, `splits` or more; so many `rows` are in memory at a time.
        splits: parts, each with its own p(y). ADM's code takes parts of 5,000 images.
        seed: of the order in which images are dealt to parts; none for their own.
    """
    count = len(logits)
    if not 1 <= splits <= count:
        raise UserError(f"an Inception Score over {splits} parts needs as many images, not {count}")
    order = np.arange(count) if seed is None else np.random.RandomState(seed).permutation(count)
    bounds = np.arange(splits + 1) * count // splits
    part_of = np.empty(count, np.int64)  # number of an image -> its part
    part_of[order] = np.repeat(np.arange(splits), np.diff(bounds))
    negative, chances = np.zeros(splits), np.zeros((splits, logits.shape[1]))  # E sum p(y|x) log p(y|x), and p(y)
    for start in range(0, count, rows):
        values = np.asarray(logits[start : start + rows], np.float64)
        values = values - values.max(1, keepdims=True)
        logs = values - np.log(np.exp(values).sum(1, keepdims=True))  # log p(y|x): (n, C)
        given, parts = np.exp(logs), part_of[start : start + rows]
        entropies = (given * logs).sum(1)
        for part in np.unique(parts):
            negative[part] += entropies[parts == part].sum()
            chances[part] += given[parts == part].sum(0)
    sizes = np.diff(bounds)
    marginals = chances / sizes[:, None]
    # KL averaged over x is E sum p(y|x) log p(y|x) - sum p(y) log p(y): p(y) is the mean of p(y|x).
    logs = np.log(marginals.clip(min=np.finfo(np.float64).tiny))
    scores = np.exp(negative / sizes - (marginals * logs).sum(1))
    return SubsetMean(float(np.mean(scores)), float(np.std(scores)))
