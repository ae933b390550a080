"""Choosing codes: filters by their definition, frequencies that are the softmax, numbers that belong to an image."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diptych.core.errors import UserError
from diptych.models.autoregressive import AutoregressiveRequest
from diptych.models.token_sampling import GumbelSource, TokenSampling, allowed, guided_logits
from tests.models.codes import system
from tests.networks.reference import noise

LOGITS = torch.tensor([1.2, -0.3, 0.5, 2.0, -1.5, 0.45])


def softmax(logits: list[float]) -> list[float]:
    powers = [math.exp(logit - max(logits)) for logit in logits]
    return [power / sum(powers) for power in powers]


def by_hand(logits: list[float], top_k: int | None, top_p: float) -> set[int]:
    """The codes that may be drawn, by the words of the definition."""
    codes = set(range(len(logits)))
    if top_k is not None:
        codes = {i for i in codes if sum(logits[j] > logits[i] for j in codes) < top_k}
    kept, held = set(), sorted(codes, key=lambda i: (-logits[i], i))
    chances = dict(zip(held, softmax([logits[i] for i in held]), strict=True))
    for code in held:
        if kept and sum(chances[i] for i in kept) >= top_p:
            break
        kept.add(code)
    return kept


@pytest.mark.parametrize("top_k", [None, 1, 3, 7, 20, 99])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 0.05])
def test_filters_keep_what_their_definition_keeps(top_k: int | None, top_p: float) -> None:
    logits = noise(8, 20, seed=4) * 2
    kept = allowed(logits, top_k, top_p)
    for row, found in zip(logits, kept, strict=True):
        codes = by_hand(row.tolist(), top_k, top_p)
        assert set(found.isfinite().nonzero().flatten().tolist()) == codes
        assert all(found[i] == row[i] for i in codes), "what is kept is not changed"


def test_equals_of_the_last_of_the_top_stay() -> None:
    logits = torch.tensor([[1.0, 3.0, 1.0, 0.0]])
    assert allowed(logits, 2).isfinite().tolist() == [[True, True, True, False]]


def frequencies(choice: TokenSampling, logits: Tensor, draws: int = 30_000) -> np.ndarray:
    numbers = GumbelSource(range(draws), len(logits)).draw()
    return np.bincount(choice(logits.expand(draws, -1), numbers).numpy(), minlength=len(logits))


@pytest.mark.parametrize(
    "choice",
    [
        TokenSampling(),
        TokenSampling(0.5),
        TokenSampling(3.0),
        TokenSampling(0.7, top_k=3),
        TokenSampling(1.3, None, 0.8),
    ],
)
def test_codes_come_as_often_as_the_softmax_says(choice: TokenSampling) -> None:
    """The chi-squared statistic of 30,000 images, against its 99.99% quantile for so many codes."""
    counts = frequencies(choice, LOGITS)
    divided = (LOGITS / choice.temperature).tolist()
    kept = sorted(by_hand(divided, choice.top_k, choice.top_p))
    expected = np.array(softmax([divided[i] for i in kept])) * counts.sum()
    assert counts.sum() == counts[kept].sum(), "nothing else is drawn"
    statistic = ((counts[kept] - expected) ** 2 / expected).sum()
    assert statistic < {2: 18.4, 3: 21.1, 5: 25.7}[len(kept) - 1]
    other = np.array(softmax([logit / (2 * choice.temperature) for logit in LOGITS[kept].tolist()])) * counts.sum()
    assert ((counts[kept] - other) ** 2 / other).sum() > 100, "the test sees another temperature"


def test_cold_and_hot_are_what_they_become() -> None:
    assert (
        frequencies(TokenSampling(1e-30), LOGITS, 100).argmax() == 3
        and frequencies(TokenSampling(1e-30), LOGITS, 100).max() == 100
    )
    assert frequencies(TokenSampling(top_k=1), LOGITS, 100).max() == 100
    hot = frequencies(TokenSampling(1e9), LOGITS)
    assert ((hot - 5000) ** 2 / 5000).sum() < 25.7


def test_draws_belong_to_the_image() -> None:
    together, alone = GumbelSource([5, 7, 2**63 - 1], 50), GumbelSource([7], 50)
    for _ in range(3):
        numbers = together.draw()
        assert torch.equal(numbers[1], alone.draw()[0]) and not torch.equal(numbers[0], numbers[1])
        assert numbers.isfinite().all()


def test_guidance_is_linear_in_the_log_probabilities() -> None:
    both = noise(6, 10, seed=2)
    cond, without = both.chunk(2)
    assert torch.equal(guided_logits(both, 0.0), without)
    assert torch.allclose(guided_logits(both, 1.0), cond, atol=1e-6)
    guided = without.log_softmax(1) + 2.5 * (cond.log_softmax(1) - without.log_softmax(1))
    assert torch.allclose(guided_logits(both, 2.5).softmax(1), guided.softmax(1), atol=1e-6)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"temperature": 0}, "temperature must be more than 0, not 0"),
        ({"temperature": -1.0}, "temperature must be more than 0"),
        ({"temperature": math.nan}, "temperature must be a finite number"),
        ({"temperature": math.inf}, "temperature must be a finite number"),
        ({"temperature": "hot"}, "temperature must be a finite number, not 'hot'"),
        ({"top_k": 0}, "top_k must be at least 1, not 0"),
        ({"top_k": 2.5}, "top_k must be a whole number"),
        ({"top_k": True}, "top_k must be a whole number, not True"),
        ({"top_p": 0.0}, "top_p must be more than 0 and at most 1, not 0"),
        ({"top_p": 1.01}, "top_p must be more than 0 and at most 1"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        AutoregressiveRequest.read(system("free"), "x", given)


def test_numbers_of_any_type_are_read() -> None:
    given: Any = {"temperature": np.float32(0.5), "top_k": np.int64(3), "top_p": 1}
    assert AutoregressiveRequest.read(system("free"), "x", given).sampling == TokenSampling(0.5, 3, 1.0)
