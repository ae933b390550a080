"""A run that is killed and started again ends with the bits of one that was not."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.training.processes import finish, start, wait_for
from tests.training.toy import run

CHANGES = {"dropout": 0.2, "checkpoint_every": 1, "log_every": 1, "validate_every": 7, "sample_every": 9}


def outcome(folder: Path) -> dict[str, Any]:
    """Everything that must not depend on interruptions: tensors as bytes, metrics, images."""
    result: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.safetensors")) + sorted(folder.rglob("*.png")):
        result[str(path.relative_to(folder))] = path.read_bytes()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    result["metrics"] = [{k: v for k, v in line.items() if k != "images_per_second"} for line in lines]
    return result


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("whole")
    assert finish(start(run, str(folder), CHANGES)) == 0
    return outcome(folder)


def progress(folder: Path) -> int:
    return max([int(p.name[5:]) for p in (folder / "checkpoints").glob("step-*")], default=0)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_killed_at_random_moments_a_run_ends_with_the_same_bits(
    tmp_path: Path, uninterrupted: dict[str, Any], seed: int
) -> None:
    chance = random.Random(seed)
    kills = 0
    for _ in range(6):
        process = start(run, str(tmp_path), CHANGES, 0.02)
        begun = progress(tmp_path)
        wait_for(lambda begun=begun, process=process: progress(tmp_path) > begun or process.exitcode is not None)
        process.join(chance.uniform(0, 0.2))
        process.kill()
        process.join()
        kills += process.exitcode == -signal.SIGKILL
    assert kills >= 3
    assert 0 < progress(tmp_path) <= 40
    assert finish(start(run, str(tmp_path), CHANGES)) == 0
    assert outcome(tmp_path) == uninterrupted


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_and_saves(
    tmp_path: Path, uninterrupted: dict[str, Any], number: signal.Signals
) -> None:
    changes = CHANGES | {"checkpoint_every": 1000}
    process = start(run, str(tmp_path), changes, 0.02)
    wait_for(lambda: (tmp_path / "metrics.jsonl").exists())
    assert process.pid is not None
    os.kill(process.pid, number)
    assert finish(process) == 128 + number
    assert 0 < progress(tmp_path) < 40
    assert not (tmp_path / "model").exists()
    assert finish(start(run, str(tmp_path), changes)) == 0
    kept = {key: value for key, value in uninterrupted.items() if not key.startswith("checkpoints/step-00000039")}
    found = outcome(tmp_path)
    assert {key: found[key] for key in kept} == kept
