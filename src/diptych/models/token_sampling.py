"""Sampling codes from logits, each image with its own random numbers: temperature, top-k, top-p, guidance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.core.checks import remedy, require_finite
from diptych.core.random import NoiseSource

LEAST = 1e-30
"""In the place of a uniform number 0, whose logarithm is none."""


@dataclass(frozen=True)
class TokenSampling:
    """How the next code is drawn from its logits."""

    temperature: float = 1.0
    """Logits are divided by it: below 1 the likely codes become likelier, above 1 the unlikely ones."""
    top_k: int | None = None
    """Draw among the so many likeliest codes; none for all."""
    top_p: float = 1.0
    """Draw among the likeliest codes that have this probability together; 1 for all."""

    def __call__(self, logits: Tensor, noise: Tensor) -> Tensor:
        """Codes (B,) from logits (B, V) and Gumbel noise (B, V): the largest of their sum (the Gumbel-max trick) is
        drawn from the softmax.

        One sum decides, and not where a number falls among running totals: what a device or a batch rounds otherwise
        almost never makes another code of it.
        """
        logits = require_finite(logits.float(), "what the transformer gives", remedy(logits.dtype))
        logits = (logits - logits.amax(1, keepdim=True)) / self.temperature  # at most 0: nothing overflows
        return (allowed(logits, self.top_k, self.top_p) + noise).argmax(1)


def allowed(logits: Tensor, top_k: int | None = None, top_p: float = 1.0) -> Tensor:
    """Logits (B, V) with those that may not be drawn at minus infinity.

    First goes what is below the `top_k` largest (equals of the last one stay); then, of the softmax of the rest, all
    but the fewest likeliest codes whose probabilities add up to at least `top_p` (Holtzman et al. 2020, section 3.1).
    """
    if top_k is not None and top_k < logits.shape[1]:
        logits = logits.masked_fill(logits < logits.topk(top_k, dim=1).values[:, -1:], -math.inf)
    if top_p < 1:
        likely, order = logits.softmax(1).sort(dim=1, descending=True, stable=True)
        enough = likely.cumsum(1) - likely >= top_p  # (B, V): those before it suffice
        logits = logits.masked_fill(torch.zeros_like(enough).scatter(1, order, enough), -math.inf)
    return logits


def guided_logits(logits: Tensor, guidance: float) -> Tensor:
    """Logits (B, V) from those with the condition and, behind them, those without it, (2 B, V): classifier-free
    guidance (Ho & Salimans 2022, equation 6) of log-probabilities, up to a constant that the softmax cancels."""
    with_cond, without = logits.float().chunk(2)
    return without + guidance * (with_cond - without)


class GumbelSource:
    """Gumbel noise from one generator per image, see `NoiseSource`."""

    def __init__(self, seeds: Sequence[int], vocabulary: int, device: torch.device | str = "cpu") -> None:
        self.source, self.vocabulary, self.device = NoiseSource(seeds, (vocabulary,)), vocabulary, device

    def draw(self) -> Tensor:
        """(B, vocabulary) float32, -log(-log(u)) of uniform numbers u."""
        uniform = self.source.uniform(self.vocabulary).clamp(min=LEAST)
        return -uniform.log().neg().log().to(self.device, torch.float32)
