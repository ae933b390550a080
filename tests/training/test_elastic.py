"""Processes of a run are killed at random moments, torchrun starts all again, and the weights are what they were."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.weights.lazy import load_weights

ROOT = Path(__file__).parent.parent.parent
KILLS, RUNS = 15, 3
"""Of each of the two ways to train: so many kills in all, spread over so many runs."""
CHANGES = {"steps": 120, "batch_size": 6, "checkpoint_every": 3, "validate_every": 60, "sample_every": 60}


def torchrun(folder: Path, changes: dict[str, Any], restarts: int, seconds: float) -> subprocess.Popen[bytes]:
    """Two processes that train a toy whose batches take so long to make."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", str(restarts)]
    command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", "--monitor-interval", "0.1"]
    command += ["-m", "tests.training.toy", str(folder), json.dumps(CHANGES | changes), str(seconds)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "OMP_NUM_THREADS": "1"}
    log = folder.with_suffix(".log").open("wb")
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def workers(agent: int) -> list[int]:
    """The processes that torchrun has started and that still run."""
    with contextlib.suppress(OSError):
        children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
        return [int(pid) for pid in children if "tests.training.toy" in Path(f"/proc/{pid}/cmdline").read_text()]
    return []


def steps_done(folder: Path) -> int:
    with contextlib.suppress(OSError):
        return max((int(path.name[5:]) for path in (folder / "checkpoints").glob("step-*")), default=0)
    return 0


def killed(folder: Path, changes: dict[str, Any], kills: int, moments: random.Random) -> int:
    """Train under fire; returns how many were killed. Each kill waits for two checkpoints more than the last one found,
    so that the run ends, and then for a moment drawn at random: within a step, a checkpoint or the start."""
    agent, done = torchrun(folder, changes, kills, 0.02), 0
    try:
        while agent.poll() is None and done < kills:
            wanted = steps_done(folder) + 2 * CHANGES["checkpoint_every"] if done % 3 else 0  # a third: as they start
            while agent.poll() is None and (steps_done(folder) < wanted or len(workers(agent.pid)) < 2):
                time.sleep(0.02)
            time.sleep(moments.uniform(0, 0.5))
            if victims := workers(agent.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(moments.choice(victims), signal.SIGKILL)
                    done += 1
        agent.wait(timeout=600)
    finally:
        agent.kill()
        agent.wait()
    assert agent.returncode == 0, folder.with_suffix(".log").read_text()[-2000:]
    return done


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize("changes", [{}, {"shard": "fsdp"}], ids=["whole", "sharded"])
def test_runs_whose_processes_are_killed_end_with_the_weights_of_one_without_faults(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    quiet = torchrun(tmp_path / "quiet", changes, 0, 0.0)
    assert quiet.wait(timeout=300) == 0, (tmp_path / "quiet.log").read_text()[-2000:]
    wanted = load_weights(tmp_path / "quiet" / "model")
    moments = random.Random(0)
    done = 0
    for number in range(RUNS):
        folder = tmp_path / f"killed-{number}"
        done += killed(folder, changes, KILLS // RUNS, moments)
        found = load_weights(folder / "model")
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert torch.equal(found[name], tensor), name
        lines = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert lines == sorted(lines)
    assert done == KILLS
