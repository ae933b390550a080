"""Shares and mean scores of ratings, with intervals by a bootstrap over prompts; Bradley-Terry strengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diptych.evaluation.human.rating_table import Rating

LEVEL = 0.95
RESAMPLES = 2000
TOLERANCE, MOST_STEPS = 1e-10, 20_000
"""Of the MM iteration: the change of a log strength at which it ends, and its longest run."""
FEW = 0.05
"""Share of resamples without a maximum likelihood from which on no interval is given."""


def resampled(prompts: int, resamples: int, seed: int) -> np.ndarray:
    """How often each prompt is drawn, (B, P): as many prompts as there are, with replacement."""
    draw = np.random.Generator(np.random.PCG64([seed, 3]))
    return draw.multinomial(prompts, np.full(prompts, 1 / prompts), size=resamples).astype(np.float64)


def mean_interval(
    prompts: Sequence[str], values: Sequence[float], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """The mean of ratings and its 95 % interval by a cluster bootstrap: prompts are drawn, each with all its ratings.

        mean* = sum_p w_p s_p / sum_p w_p n_p,  w ~ Multinomial(P, 1/P)

    s_p and n_p are sum and number of the ratings of prompt p (Davison & Hinkley 1997, section 3.8: resampling of whole
    clusters); the ends are the 2.5th and 97.5th percentiles of mean* (Efron & Tibshirani 1993, section 13.3). Ratings
    of one prompt depend on each other, and so are never drawn apart. It is none where there is one prompt.

    Args:
        prompts, values: of each rating.
    """
    names = sorted(set(prompts))
    place = {name: n for n, name in enumerate(names)}
    sums, counts = np.zeros(len(names)), np.zeros(len(names))
    for prompt, value in zip(prompts, values, strict=True):
        sums[place[prompt]] += value
        counts[place[prompt]] += 1
    found: dict[str, Any] = {"value": float(sums.sum() / counts.sum()), "low": None, "high": None}
    if len(names) > 1:
        weights = resampled(len(names), resamples, seed)
        found["low"], found["high"] = ends((weights @ sums) / (weights @ counts))
    return {**found, "ratings": len(values), "prompts": len(names)}


def ends(values: np.ndarray) -> tuple[float, float]:
    """The 95 % percentile interval of a statistic's resamples."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def win_counts(ratings: Sequence[Rating], players: Sequence[str]) -> np.ndarray:
    """Wins of i over j by prompt, (P, M, M); a tie is half a win for both."""
    prompts = sorted({rating.prompt for rating in ratings})
    wins = np.zeros((len(prompts), len(players), len(players)))
    place, index = {name: n for n, name in enumerate(prompts)}, {name: n for n, name in enumerate(players)}
    for rating in ratings:
        one, other = (index[side] for side in rating.sides)
        wins[place[rating.prompt], one, other] += rating.score
        wins[place[rating.prompt], other, one] += 1 - rating.score
    return wins


def connected(wins: np.ndarray) -> np.ndarray:
    """Whether wins (..., M, M) have a finite maximum likelihood: however the players are divided in two, someone of
    either group has won against someone of the other (Ford 1957; Hunter 2004, assumption 1)."""
    reach = (wins > 0) | np.eye(wins.shape[-1], dtype=bool)
    for _ in range(wins.shape[-1].bit_length()):
        reach = np.matmul(reach.astype(np.int64), reach.astype(np.int64)) > 0
    return np.asarray(reach.all((-2, -1)))


def bradley_terry(wins: np.ndarray) -> np.ndarray:
    """Log strengths (..., M), of mean 0, that maximise the likelihood of wins (..., M, M), by the MM algorithm:

        P(i beats j) = gamma_i / (gamma_i + gamma_j)
        gamma_i <- W_i / sum_{j != i} N_ij / (gamma_i + gamma_j)

    W_i are the wins of i, N_ij the comparisons of i and j (Hunter 2004, equations 1 and 3). They must be `connected`.
    """
    totals, games = wins.sum(-1), wins + np.swapaxes(wins, -1, -2)
    logs = np.zeros(totals.shape)
    for _ in range(MOST_STEPS):
        strength = np.exp(logs)
        rate = (games / (strength[..., :, None] + strength[..., None, :])).sum(-1)  # N_ii is 0
        after = np.log(totals / rate)
        after -= after.mean(-1, keepdims=True)
        change = np.abs(after - logs).max(initial=0)
        logs = after
        if change < TOLERANCE:
            break
    return logs


def strengths(
    ratings: Sequence[Rating], players: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Bradley-Terry log strengths with 95 % intervals by the bootstrap of `mean_interval`.

    "players": name -> value, low, high. "wins": the probability that the row beats the column. "without": share of
    resamples that have no maximum likelihood; where it is 5 % or more, there are no intervals. "reason" instead of all
    where the ratings themselves have none.
    """
    wins = win_counts(ratings, players)
    total = wins.sum(0)
    if not connected(total):
        return {"reason": "some model always won or always lost, or was never compared: no finite strengths"}
    logs = bradley_terry(total)
    lows, highs, without = [None] * len(players), [None] * len(players), 0.0
    if len(wins) > 1:
        drawn = np.einsum("bp,pij->bij", resampled(len(wins), resamples, seed), wins)
        fit = connected(drawn)
        without = 1 - float(fit.mean())
        if without < FEW:
            found = bradley_terry(drawn[fit])
            lows, highs = (list(each) for each in zip(*(ends(column) for column in found.T), strict=True))
    values = {
        name: {"value": float(log), "low": low, "high": high}
        for name, log, low, high in zip(players, logs, lows, highs, strict=True)
    }
    chance = 1 / (1 + np.exp(logs[None, :] - logs[:, None]))
    return {"players": values, "wins": chance.tolist(), "without": without, "ratings": len(ratings)}
