"""Two processes do what one does."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from diptych.core.devices import find_device
from diptych.core.errors import UserError
from diptych.training.distributed import Team, own_store, team
from diptych.weights.lazy import load_weights
from tests.training.processes import two_processes
from tests.training.test_trainer import metrics
from tests.training.toy import run

CHANGES = {"batch_size": 5, "log_every": 1}  # 2 + 3 images


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def run_two(folder: Path, changes: dict[str, Any]) -> list[int | None]:
    return two_processes(run, str(folder), changes, 0.0)


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


def test_two_processes_have_the_losses_and_gradients_of_one(tmp_path: Path, alone: Path) -> None:
    assert run_two(tmp_path, CHANGES) == [0, 0]
    same(tmp_path, alone)


def test_a_run_of_two_goes_on_alone(tmp_path: Path, alone: Path) -> None:
    assert run_two(tmp_path, CHANGES | {"steps": 20, "schedule": "constant"}) == [0, 0]
    run(str(tmp_path), CHANGES | {"steps": 22, "schedule": "constant"})
    whole = tmp_path / "whole"
    run(str(whole), CHANGES | {"steps": 22, "schedule": "constant"})
    assert metrics(tmp_path) == pytest.approx(metrics(whole), rel=1e-5)


def test_all_processes_stop_at_a_loss_that_is_not_finite_in_one(tmp_path: Path) -> None:
    changes = CHANGES | {"bad_seed": 14, "log_every": 2, "lag": 2}  # the last image of step 3, in the second process
    assert run_two(tmp_path, changes) == [2, 2]
    assert list(metrics(tmp_path)) == [2]


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
    subprocess.run([*command, str(script), str(tmp_path), json.dumps(CHANGES)], check=True, capture_output=True)
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
