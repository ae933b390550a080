"""Checkpoints are written while training goes on; what goes wrong with one stops the run, or is said."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.core.devices import free_memory
from diptych.core.errors import UserError
from diptych.training import background_saves
from diptych.training import run_checkpoint as checkpoint
from diptych.training.background_saves import BackgroundSaves
from diptych.training.distributed import Team
from diptych.training.nan_guard import not_finite
from diptych.training.parallel import Replicated
from diptych.training.sharded_checkpoint import ShardedSaves
from diptych.training.trainer import train
from tests.training.toy import Toy, batch_at, settings

SECONDS = 60.0
"""After which a test that waits has failed."""


class Watching(Toy):
    """Calls `at` of a step before it is taken."""

    def __init__(self, at: dict[int, Callable[[], object]], bad_seed: int | None = None) -> None:
        super().__init__(bad_seed=bad_seed)
        self.at, self.last = at, 0

    def loss(self, batch: dict[str, Any]) -> Any:
        self.last = batch["step"]
        self.at.get(batch["step"], lambda: None)()
        return super().loss(batch)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def written() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("checkpoint"):
            thread.join(SECONDS)


def refuse(*_: Any) -> None:
    raise UserError("the disk is full")


def test_steps_are_taken_while_a_checkpoint_is_written_and_it_has_nothing_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(Toy(), batch_at, settings(steps=4, schedule="constant"), tmp_path / "four")
    save, later, waited = checkpoint.save, threading.Event(), list[bool]()

    def late(*arguments: Any) -> Path:
        waited.append(later.wait(SECONDS))
        return save(*arguments)

    monkeypatch.setattr(checkpoint, "save", late)
    train(Watching({6: later.set}), batch_at, settings(steps=8, schedule="constant"), tmp_path / "eight")
    assert waited == [True, True]
    four = files(tmp_path / "eight" / "checkpoints" / "step-00000004")
    assert len(four) == 3 and four == files(tmp_path / "four" / "checkpoints" / "step-00000004")
    assert files(tmp_path / "eight" / "checkpoints" / "step-00000008")["weights.safetensors"] not in four.values()


def test_a_checkpoint_that_cannot_be_written_stops_the_run_with_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "save", refuse)
    toy = Watching({4: written})
    with pytest.raises(UserError, match="the disk is full"):
        train(toy, batch_at, settings(), tmp_path)
    assert toy.last <= 4  # the next checkpoint is due after step 7
    assert not (tmp_path / "model").exists()


def test_processes_of_a_sharded_run_say_at_the_next_report_that_a_checkpoint_is_not_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All in the same step, also those whose thread ends a moment later."""
    others, gathered = [False], list[bool]()

    def gather(team: Team, known: bool) -> list[bool]:
        gathered.append(known)
        return [known, *others]

    monkeypatch.setattr(Team, "gather", gather)
    saves = object.__new__(ShardedSaves)
    BackgroundSaves.__init__(saves, Team(0, 2, torch.device("cpu")))
    go_on, error = threading.Event(), UserError("the disk is full")

    def write() -> None:
        go_on.wait(60)
        raise error

    saves.begin(1, write)
    saves.check(together=True)
    others[0] = True
    saves.check(together=False)  # where processes do not wait for each other, none asks
    assert gathered == [False]
    threading.Timer(0.05, go_on.set).start()
    with pytest.raises(UserError, match="disk is full"):
        saves.check(together=True)


def test_the_last_checkpoint_counts_before_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "save", refuse)
    with pytest.raises(UserError, match="the disk is full"):
        train(Toy(), batch_at, settings(steps=4, schedule="constant"), tmp_path)
    assert not (tmp_path / "model").exists()


def test_a_run_that_stops_for_another_reason_says_what_became_of_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopping = threading.Event()

    def late(*_: Any) -> None:
        assert stopping.wait(SECONDS)
        raise UserError("the disk is full")

    monkeypatch.setattr(checkpoint, "save", late)
    with pytest.raises(UserError, match="step 6: loss nan"):
        train(Watching({5: stopping.set}, bad_seed=5 * 6 + 1), batch_at, settings(), tmp_path)
    assert "could not be written: the disk is full" in capsys.readouterr().err
    assert not any(thread.name.startswith("checkpoint") for thread in threading.enumerate())


def test_without_memory_for_a_copy_training_waits_and_says_so_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save, threads = checkpoint.save, list[str]()

    def seen(*arguments: Any) -> Path:
        threads.append(threading.current_thread().name)
        return save(*arguments)

    monkeypatch.setattr(checkpoint, "save", seen)
    monkeypatch.setattr(background_saves, "free_memory", lambda: 2**10)
    train(Toy(), batch_at, settings(steps=8, schedule="constant"), tmp_path)
    assert threads == ["MainThread"] * 2
    assert capsys.readouterr().err.count("training waits while a checkpoint is written") == 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable: 5 kB\n"}, 5 * 1024),
     ({"proc/meminfo": "MemAvailable: 5 kB\n", "sys/fs/cgroup/memory.max": "max\n"}, 5 * 1024),
     ({"proc/meminfo": "MemAvailable: 5 kB\n", "sys/fs/cgroup/memory.max": "3000\n",
       "sys/fs/cgroup/memory.current": "2000\n", "sys/fs/cgroup/memory.stat": "anon 1\ninactive_file 500\n"}, 1500),
     ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "3000\n", "sys/fs/cgroup/memory/memory.usage_in_bytes": "4000\n",
       "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 500\n"}, 0),
     ({"proc/meminfo": "none\n"}, None)],
)  # fmt: skip
def test_the_memory_that_can_be_had(tmp_path: Path, given: dict[str, str], expected: int | None) -> None:
    for name, text in given.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert free_memory(tmp_path) == expected


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_named_and_large_sums_are_not_taken_for_it(value: float) -> None:
    module = torch.nn.Linear(2, 2)
    with torch.no_grad():
        module.weight.fill_(3e38)
    moments = {"weight/exp_avg": torch.tensor([3e38, 3e38]), "weight/step": torch.tensor(1)}
    assert not_finite(Replicated(module), {}, moments) is None
    moments["weight/exp_avg"][1] = value
    assert not_finite(Replicated(module), {}, moments) == "the moments weight/exp_avg hold"
