"""Sharded runs: the numbers of one process, and checkpoints that any number of processes goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.core.errors import UserError
from diptych.training import run_checkpoint as checkpoint
from diptych.training.distributed import Team
from diptych.training.parallel import shard_group
from diptych.weights.lazy import load_weights
from tests.training.processes import processes
from tests.training.test_trainer import metrics
from tests.training.toy_blocks import many, run, settings

ADAFACTOR = {"optimizer": "adafactor"}
RECOMPUTED = {"activation_checkpointing": "blocks"}


def same(folder: Path, alone: Path) -> None:
    """Losses, gradient norms, validation and the finished model, to 1e-5."""
    for name in ("loss", "grad_norm"):
        assert metrics(folder, name) == pytest.approx(metrics(alone, name), rel=1e-5, abs=1e-6)
    validation, expected = metrics(folder, kind="validation"), metrics(alone, kind="validation")
    assert {step: validation[step] for step in expected} == pytest.approx(expected, rel=1e-5)  # more where it stopped
    model, expected = load_weights(folder / "model"), load_weights(alone / "model")
    assert model.keys() == expected.keys()
    for key, tensor in expected.items():
        torch.testing.assert_close(model[key], tensor, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process, not sharded: AdamW, Adafactor."""
    folder = tmp_path_factory.mktemp("alone")
    assert run(folder / "adamw") is None
    assert run(folder / "adafactor", **ADAFACTOR) is None
    return folder


def test_two_processes_do_what_one_does_and_go_on_from_each_others_checkpoints(tmp_path: Path, alone: Path) -> None:
    """Steps 1 to 4 are sharded in runs that go to one process, 3 to 6 in those that come from one."""
    for name, changes in (("from-one", RECOMPUTED), ("from-one-adafactor", ADAFACTOR)):
        assert run(tmp_path / name, **changes, steps=2) is None
    runs: list[tuple[str, dict[str, Any], str | None]] = [
        ("from-one", RECOMPUTED, None),
        ("from-one-adafactor", ADAFACTOR, None),
        ("to-one", {"steps": 4}, None),
        ("to-one-adafactor", {**ADAFACTOR, "steps": 4}, None),
        ("not-finite", {"bad_seed": 14}, "step 3: loss nan"),
        ("too-few", {"accumulation": 3}, "needs an image for each part"),
    ]
    asked = [(str(tmp_path / name), {**changes, "shard": "fsdp"}, said) for name, changes, said in runs]
    assert processes(2, many, asked) == [0, 0]
    for name, changes in (("to-one", {}), ("to-one-adafactor", ADAFACTOR)):
        found = checkpoint.latest(tmp_path / name / "checkpoints")
        assert found is not None
        assert found.sharded
        assert len(list(found.path.glob("shard-*.safetensors"))) == 6  # of three parts, in two processes
        assert run(tmp_path / name, **changes) is None
    for name in ("from-one", "to-one"):
        same(tmp_path / name, alone / "adamw")
    for name in ("from-one-adafactor", "to-one-adafactor"):
        same(tmp_path / name, alone / "adafactor")
    assert list(metrics(tmp_path / "not-finite")) == [1, 2]
    assert not (tmp_path / "too-few" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_blocks_that_are_compiled(tmp_path: Path, alone: Path) -> None:
    """By themselves, and where their activations are computed again."""
    both = {"shard": "fsdp", "compile": "blocks"}
    runs = [(str(tmp_path / "compiled"), both, None), (str(tmp_path / "recomputed"), RECOMPUTED | both, None)]
    assert processes(2, many, runs) == [0, 0]
    for name in ("compiled", "recomputed"):
        same(tmp_path / name, alone / "adamw")


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_four_processes_then_two_then_one(tmp_path: Path, alone: Path, optimizer: str) -> None:
    changes = {"optimizer": optimizer, "accumulation": 1}
    fsdp, hsdp = {**changes, "shard": "fsdp"}, {**changes, "shard": "hsdp", "shard_group": 2}
    whole = {**hsdp, "steps": 6}
    assert processes(4, many, [(str(tmp_path / "run"), {**hsdp, "steps": 2}, None),
                               (str(tmp_path / "hsdp"), whole, None),
                               (str(tmp_path / "fsdp"), fsdp, None)]) == [0] * 4  # fmt: skip
    assert processes(2, many, [(str(tmp_path / "run"), {**fsdp, "steps": 4}, None)]) == [0, 0]
    assert run(tmp_path / "run", **changes) is None
    for name in ("run", "hsdp", "fsdp"):
        same(tmp_path / name, alone / optimizer)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"shard": "fsdp", "accumulation": 2}, "needs an image for each part"),
     ({"shard": "hsdp", "shard_group": 3}, "shard_group=3 does not"),
     ({"shard": "hsdp"}, "of this machine does not")],
)  # fmt: skip
def test_processes_that_cannot_be_grouped_so_are_refused(
    changes: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UserError, match=said):
        shard_group(settings(batch_size=4, **{"accumulation": 1, **changes}), Team(0, 4, torch.device("cpu")))


def test_groups() -> None:
    team = Team(0, 4, torch.device("cpu"))
    assert shard_group(settings(shard="fsdp"), Team(0, 1, torch.device("cpu"))) is None
    assert shard_group(settings(accumulation=1), team) is None
    assert shard_group(settings(accumulation=1, shard="fsdp"), team) == 4
    assert shard_group(settings(accumulation=1, shard="hsdp", shard_group=2), team) == 2
    with pytest.raises(UserError, match="shard_group"):
        settings(shard="fsdp", shard_group=2)
