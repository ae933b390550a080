"""Two processes do what one does."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from diptych.core.devices import find_device
from diptych.core.errors import UserError
from diptych.training.distributed import Team, own_store, require_same_data, team
from diptych.weights.lazy import load_weights
from tests.training.processes import two_processes
from tests.training.test_trainer import metrics
from tests.training.toy import run

CHANGES = {"batch_size": 5, "log_every": 1}  # 2 + 3 images
SHORT = {"steps": 8, "schedule": "constant"}
RUNS = {
    "whole": ({}, 0),
    "begun": (SHORT, 0),
    "bad": ({"bad_seed": 14, "log_every": 2, "lag": 2}, 2),  # the last image of step 3, in the second process
}
"""What is run in two processes, and the code that it ends with."""


def test_processes_with_other_data_do_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [({"count": 9, "keys": "a"}, "one"), ({"count": 9, "keys": "a"}, "one"), ({"count": 7, "keys": "b"}, "two")]
    monkeypatch.setattr(Team, "gather", lambda self, value: rows)
    with pytest.raises(UserError, match=r"process 2 on two finds other data than process 0 on one \(7 examples, and 9"):
        require_same_data(Team(0, 3, torch.device("cpu")), {"examples": rows[0][0]})
    monkeypatch.setattr(Team, "gather", lambda self, value: rows[:2])
    require_same_data(Team(0, 2, torch.device("cpu")), {"examples": rows[0][0]})


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def several(folder: str, environment: dict[str, str]) -> None:
    """What tests look at, in one of two processes; each run ends with the code that is expected."""
    os.environ |= environment
    dist.init_process_group("gloo")
    for name, (changes, code) in RUNS.items():
        try:
            run(f"{folder}/{name}", CHANGES | changes)
        except SystemExit as stop:
            assert stop.code == code, name
        else:
            assert code == 0, name
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    assert two_processes(several, str(folder)) == [0, 0]
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    run(str(folder), CHANGES)
    return folder


def same(folder: Path, alone: Path) -> None:
    for name in ("loss", "grad_norm"):
        assert metrics(folder, name) == pytest.approx(metrics(alone, name), rel=1e-5, abs=1e-5)
    assert metrics(folder, kind="validation") == pytest.approx(metrics(alone, kind="validation"), rel=1e-5)
    for key, tensor in load_weights(folder / "model").items():
        torch.testing.assert_close(tensor, load_weights(alone / "model")[key], rtol=1e-4, atol=1e-5)


def test_two_processes_have_the_losses_and_gradients_of_one(of_two: Path, alone: Path) -> None:
    same(of_two / "whole", alone)


def test_a_run_of_two_goes_on_alone(of_two: Path, tmp_path: Path) -> None:
    folder = of_two / "begun"
    run(str(folder), CHANGES | SHORT | {"steps": 10})
    run(str(tmp_path), CHANGES | SHORT | {"steps": 10})
    assert metrics(folder) == pytest.approx(metrics(tmp_path), rel=1e-5)


def test_all_processes_stop_at_a_loss_that_is_not_finite_in_one(of_two: Path) -> None:
    assert list(metrics(of_two / "bad")) == [2]


def test_processes_that_start_again_read_nothing_of_those_before_them() -> None:
    """torchrun keeps its store: here with what processes left that ended at any moment."""
    kept = dist.HashStore()
    kept.set("asking/1", "of one that is gone")
    kept.set("asking/2", "of another")
    for start in range(3):
        with ThreadPoolExecutor(3) as threads:
            joining = [threads.submit(own_store, kept, rank, 3, 60.0) for rank in (0, 2)]
            time.sleep(0.05)  # the main one has found what was left of the one that is late
            joining.append(threads.submit(own_store, kept, 1, 3, 60.0))
            stores = [one.result() for one in joining]
        assert not any(store.check(["address"]) for store in stores)
        stores[0].set("address", str(start))
        assert {store.get("address") for store in stores} == {str(start).encode()}
    with pytest.raises(UserError, match="did not begin: 1, 2"):
        own_store(dist.HashStore(), 0, 3, 0.05)


@pytest.mark.slow
def test_under_torchrun(tmp_path: Path, alone: Path) -> None:
    script = Path(__file__).with_name("toy.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    changes = json.dumps({**CHANGES, "precision": "fp32"})  # as tests compute, whatever the processor has
    subprocess.run([*command, str(script), str(tmp_path), changes], check=True, capture_output=True)
    same(tmp_path, alone)


@pytest.mark.parametrize(("count", "size"), [(10, 1), (10, 3), (2, 4)])
def test_shares_cover_everything_once_and_evenly(count: int, size: int) -> None:
    shares = [Team(rank, size, torch.device("cpu")).share(range(count)) for rank in range(size)]
    assert [position for share in shares for position in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("name", ["cuda:99", "warp", "mps:1", "meta", "xpu", "cpu:1", "", "cuda:x"])
def test_a_device_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=re.escape(repr(name))):
        find_device(name)


def test_training_does_not_begin_on_mps(monkeypatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert find_device("mps").type == "mps"
    with pytest.raises(UserError, match="mps"), team("mps"):
        pass
