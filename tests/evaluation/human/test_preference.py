"""Intervals and strengths against closed forms, optimality conditions and simulations whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from benchmarks.study_intervals import coverage
from diptych.evaluation.human.preference import bradley_terry, connected, mean_interval, resampled, strengths
from diptych.evaluation.human.rating_table import Rating


def rating(prompt: str, sides: tuple[str, ...], choice: str, rater: int = 1) -> Rating:
    return Rating(
        rater=rater, part="", task=prompt, category="", prompt=prompt, kind="set-quality", control="", sides=sides,
        flipped=False, choice=choice, correct=None, milliseconds=1, at="", came="",
    )  # fmt: skip


def test_the_interval_is_that_of_prompts_not_of_ratings() -> None:
    """All ratings of a prompt agree: 30 times as many say no more. The interval is the binomial one of prompts."""
    values = [1.0] * 30 + [0.0] * 70
    once = mean_interval([f"{n}" for n in range(100)], values, resamples=20_000)
    often = mean_interval(
        [f"{n}" for n in range(100) for _ in range(30)], [v for v in values for _ in range(30)], 20_000
    )
    assert once["value"] == often["value"] == pytest.approx(0.3)
    assert (once["low"], once["high"]) == (often["low"], often["high"])
    binomial = stats.binom(100, 0.3)  # what resampled prompts have, exactly
    assert once["low"] == pytest.approx(binomial.ppf(0.025) / 100, abs=0.011)
    assert once["high"] == pytest.approx(binomial.ppf(0.975) / 100, abs=0.011)
    assert (once["ratings"], often["ratings"], often["prompts"]) == (100, 3000, 100)


def test_prompts_with_more_ratings_weigh_more() -> None:
    found = mean_interval(["a", "a", "a", "b"], [1, 1, 1, 0])
    assert found["value"] == 0.75 and (found["low"], found["high"]) == (0, 1)


def test_one_prompt_has_no_interval() -> None:
    assert mean_interval(["a", "a"], [1, 0])["low"] is None


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Prompts have shares of their own; the intervals of the mean over prompts cover 0.5 in 95 % of studies, and one
    that took all ratings as independent would not."""
    draw = np.random.Generator(np.random.PCG64(0))
    covered, naive, studies, prompts, raters = 0, 0, 300, 60, 5
    names = [str(n) for n in range(prompts) for _ in range(raters)]
    for study in range(studies):
        shares = np.repeat(draw.beta(1, 1, prompts), raters)
        values = (draw.random(len(names)) < shares).astype(float)
        found = mean_interval(names, values.tolist(), 400, seed=study)
        covered += found["low"] <= 0.5 <= found["high"]
        naive += abs(values.mean() - 0.5) < 1.96 * values.std() / np.sqrt(len(values))
    assert 0.91 < covered / studies < 0.98 and naive / studies < 0.9


def test_intervals_of_few_prompts_are_too_narrow() -> None:
    """What docs/human-studies.md says of it. Of two prompts the interval lies between their means, wherever they are,
    so that it covers in half of all studies where the two lie on different sides."""
    two, many = coverage(2, 5, 200, 100), coverage(40, 5, 200, 100)
    assert two == pytest.approx(0.5, abs=0.12) and many > 0.88


def test_resamples_have_as_many_prompts() -> None:
    weights = resampled(7, 100, 0)
    assert weights.shape == (100, 7) and (weights.sum(1) == 7).all()
    assert not np.array_equal(weights, resampled(7, 100, 1))


def test_two_models_have_the_closed_form() -> None:
    """gamma_1 / gamma_2 = w_12 / w_21."""
    logs = bradley_terry(np.array([[0.0, 7.5], [2.5, 0.0]]))
    assert logs[0] - logs[1] == pytest.approx(np.log(3)) and logs.sum() == pytest.approx(0)


def test_strengths_maximise_the_likelihood() -> None:
    """Where its gradient is zero each model is expected to win as often as it did; a batch is as one by one."""
    draw = np.random.Generator(np.random.PCG64(1))
    wins = draw.integers(1, 20, (6, 5, 5)).astype(float)
    wins[:, range(5), range(5)] = 0
    wins[0, 0, 3] = wins[0, 3, 0] = 0  # never compared
    logs = bradley_terry(wins)
    chance = 1 / (1 + np.exp(logs[:, None, :] - logs[:, :, None]))
    expected = ((wins + wins.swapaxes(1, 2)) * chance).sum(2)
    assert np.allclose(expected, wins.sum(2), atol=1e-6)
    for one, alone in zip(logs, map(bradley_terry, wins), strict=True):
        assert np.allclose(one, alone, atol=1e-7)


@pytest.mark.parametrize(
    ("pairs", "fits"),
    [
        ([(0, 1), (1, 2), (2, 0)], True),
        ([(0, 1), (1, 0), (1, 2), (2, 1)], True),
        ([(0, 1), (1, 0)], False),  # 2 never compared
        ([(0, 1), (1, 0), (0, 2), (1, 2)], False),  # 2 never won
        ([(2, 0), (2, 1), (0, 1), (1, 0)], False),  # 2 never lost
    ],
)
def test_there_is_a_maximum_where_no_group_always_wins(pairs: list[tuple[int, int]], fits: bool) -> None:
    wins = np.zeros((3, 3))
    for one, other in pairs:
        wins[one, other] = 1
    assert bool(connected(wins)) is fits


def test_a_long_chain_is_connected_only_when_it_is_closed() -> None:
    wins = np.diag(np.ones(8), 1)
    assert not connected(wins)
    wins[8, 0] = 1
    assert connected(wins)


def test_known_strengths_are_found() -> None:
    truth = np.array([0.9, 0.1, -1.0])
    draw = np.random.Generator(np.random.PCG64(2))
    names, ratings = ("a", "b", "c"), []
    for prompt in range(150):
        for i, j in ((0, 1), (0, 2), (1, 2)):
            for _ in range(4):
                won = draw.random() < 1 / (1 + np.exp(truth[j] - truth[i]))
                ratings.append(rating(str(prompt), (names[i], names[j]), "A" if won else "B"))
    found = strengths(ratings, names, resamples=500)
    for name, value in zip(names, truth, strict=True):
        one = found["players"][name]
        assert one["low"] < value < one["high"] and one["high"] - one["low"] < 0.4
    assert found["wins"][0][2] == pytest.approx(1 / (1 + np.exp(-1.9)), abs=0.05) and found["without"] == 0
    # Ties are half a win for each: with ties alone, all are equal.
    tied = strengths(
        [rating(str(n), pair, "indifferent") for n in range(9) for pair in (("a", "b"), ("b", "c"))], names
    )
    assert [one["value"] for one in tied["players"].values()] == pytest.approx([0, 0, 0])


def test_where_there_are_no_strengths_the_reason_is_given() -> None:
    always = [rating(str(n), pair, "A") for n in range(5) for pair in (("a", "b"), ("b", "c"))]
    assert "always won" in strengths(always, ("a", "b", "c"))["reason"]
    # One single loss: many resamples are without it.
    rare = [*always, rating("0", ("a", "c"), "B")]
    found = strengths(rare, ("a", "b", "c"))
    assert found["without"] == pytest.approx((4 / 5) ** 5, abs=0.03)
    assert all(one["low"] is None for one in found["players"].values())
