"""The learning rate: how it moves by steps, by the clock, and when a run goes on with other limits."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.core.errors import UserError
from diptych.training import trainer as loop
from diptych.training.learning_rate import learning_rate_at
from diptych.training.trainer import train
from diptych.training.training_config import TrainingConfig
from tests.training.toy import Toy, batch_at, settings

PLAIN: dict[str, Any] = {"steps": 110, "warmup": 10, "learning_rate": 2.0, "schedule": "constant"}


def rates(folder: Path) -> dict[int, float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["learning_rate"] for line in lines if line["kind"] == "train"}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {0: 0.2, 9: 2.0, 110: 2.0}),
        ({"initial_learning_rate": 1.0}, {0: 1.1, 9: 2.0}),
        ({"schedule": "cosine"}, {10: 2.0, 60: 1.0, 110: 0.0}),
        ({"schedule": "cosine", "final_learning_rate": 0.5}, {10: 2.0, 60: 1.25, 110: 0.5}),
        ({"cooldown": 0.5}, {55: 2.0, 82.5: 1.0, 110: 0.0}),
        ({"cooldown": 0.5, "final_learning_rate": 0.5}, {55: 2.0, 82.5: 1.25, 110: 0.5}),
        ({"minutes": 1.0, "cooldown": 0.5}, {55: 2.0, 110: 0.0}),
    ],
)
def test_by_steps(changes: dict[str, Any], expected: dict[int, float]) -> None:
    config = settings(**PLAIN | changes)
    assert {step: learning_rate_at(step, config) for step in expected} == pytest.approx(expected, abs=1e-12)


def test_one_cycle_is_that_of_torch() -> None:
    """As `OneCycleLR`, but the first step has left the initial rate, as every warm-up here, and two have the top."""
    config = settings(**PLAIN | {"schedule": "one-cycle", "initial_learning_rate": 0.08, "final_learning_rate": 2e-4})
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 2.0, total_steps=111, pct_start=11 / 111, div_factor=2.0 / 0.08, final_div_factor=0.08 / 2e-4
    )
    expected = []
    for _ in range(110):
        expected += theirs.get_last_lr()
        optimizer.step()
        theirs.step()
    expected += theirs.get_last_lr()
    ours = [learning_rate_at(step, config) for step in range(111)]
    assert [expected[0], *ours] == pytest.approx([*expected[:11], *expected[10:]], rel=1e-6)


@pytest.mark.parametrize("schedule", ["cosine", "one-cycle", "constant"])
def test_the_clock_takes_the_place_of_steps_where_it_is_further_on(schedule: str) -> None:
    config = settings(**PLAIN | {"steps": 100, "warmup": 0, "schedule": schedule, "minutes": 10.0, "cooldown": 0.4})
    by_steps = {step: learning_rate_at(step, config) for step in (0, 50, 80, 100)}
    for step, rate in by_steps.items():
        assert learning_rate_at(0, config, seconds=6.0 * step) == pytest.approx(rate, abs=1e-12)
        assert learning_rate_at(step, config, seconds=5.0 * step) == rate
    assert learning_rate_at(3, config, seconds=700.0) == 0.0


@pytest.mark.parametrize("change", [{"initial_learning_rate": 3.0}, {"final_learning_rate": -1.0}])
def test_ends_beyond_the_top_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(UserError, match=rf"{next(iter(change))} must lie between 0 and learning_rate \(2\)"):
        settings(**PLAIN | change)


class Clock:
    """Each look at it, of which the loop takes one before a run and one before each step, is so many seconds later."""

    def __init__(self, seconds: float) -> None:
        self.ticks = itertools.count(0.0, seconds)

    def monotonic(self) -> float:
        return next(self.ticks)


def test_a_run_cools_down_by_the_clock_and_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """100 steps of 1 s fit in the limit, not the million asked for; interrupted or not, the rates are the same."""
    changes: dict[str, Any] = {"steps": 1_000_000, "minutes": 100 / 60, "schedule": "constant", "cooldown": 0.5}
    limited = settings(**changes, log_every=1, warmup=0, checkpoint_every=30, validate_every=0, sample_every=0)
    monkeypatch.setattr(loop, "time", Clock(1.0))
    train(Toy(), batch_at, limited, tmp_path / "whole")
    told = rates(tmp_path / "whole")
    assert len(told) == 100
    assert told[51] == 1e-2
    assert told[76] == pytest.approx(0.5e-2)
    assert told[100] == pytest.approx(0.02e-2)

    class Killed(Toy):
        def loss(self, batch: dict[str, Any]):
            if batch["step"] == 71:
                raise KeyboardInterrupt
            return super().loss(batch)

    monkeypatch.setattr(loop, "time", Clock(1.0))
    with pytest.raises(KeyboardInterrupt):
        train(Killed(), batch_at, limited, tmp_path / "cut")
    monkeypatch.setattr(loop, "time", Clock(1.0))
    train(Toy(), batch_at, limited, tmp_path / "cut")
    assert "jumps" not in capsys.readouterr().err
    assert rates(tmp_path / "cut") == pytest.approx(told)


@pytest.mark.parametrize(
    ("first", "then", "line"),
    [
        ({"schedule": "cosine"}, {"steps": 16}, "jumps from 0 to 0.005: its schedule is laid out anew, over 16 steps"),
        ({"schedule": "constant", "cooldown": 0.5}, {"steps": 32}, "jumps from 0 to 0.01: "),
        ({"schedule": "constant"}, {"steps": 16}, None),
        ({"schedule": "cosine"}, {}, None),
    ],
)
def test_a_jump_is_said_when_a_run_goes_on_with_other_limits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], first: dict[str, Any], then: dict[str, Any], line: str | None
) -> None:
    base: dict[str, Any] = {"steps": 8, "warmup": 0, "validate_every": 0, "sample_every": 0, **first}
    train(Toy(), batch_at, settings(**base), tmp_path)
    assert "jumps" not in capsys.readouterr().err
    train(Toy(), batch_at, settings(**base | then), tmp_path)
    told = [one for one in capsys.readouterr().err.splitlines() if "learning rate" in one and "jumps" in one]
    assert len(told) == (line is not None)
    assert all(line in one for one in told if line is not None)


def test_the_defaults_rise_from_zero_and_fall_to_zero() -> None:
    assert TrainingConfig().initial_learning_rate == TrainingConfig().final_learning_rate == 0.0
