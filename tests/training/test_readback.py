"""The loop where the host runs ahead of the device, as it does of a GPU: the lag is forced on the CPU."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from diptych.core.errors import UserError
from diptych.training import readback
from diptych.training import run_checkpoint as checkpoint
from diptych.training.adafactor import Adafactor
from diptych.training.optim import build_optimizer, skip_unless_finite
from diptych.training.readback import Readback
from diptych.training.tasks.diffusion import DiffusionTask, DiffusionTraining
from diptych.training.trainer import train
from tests.models.latents import system, toy_batch
from tests.training.test_resume import outcome
from tests.training.toy import Toy, batch_at, settings

CPU = torch.device("cpu")


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(readback.LAG, "cpu", 2)


class Counting(Toy):
    """Sends its process a signal in a step, and counts the batches that it saw."""

    seen = 0

    def __init__(self, *, at: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.at = at

    def loss(self, batch: dict[str, Any]) -> Any:
        self.seen += 1
        if batch["step"] == self.at:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().loss(batch)


def test_numbers_are_read_so_many_sends_later_and_all_at_the_end(ahead: None) -> None:
    numbers = Readback[str](CPU)
    read = []
    for i in range(4):
        numbers.send(torch.tensor([float(i)]), f"step {i}")
        read.append([(values, note) for values, note in numbers.read()])
    assert read == [[], [], [([0.0], "step 0")], [([1.0], "step 1")]]
    assert list(numbers.read(wait=True)) == [([2.0], "step 2"), ([3.0], "step 3")]
    assert not list(numbers.read(wait=True))


@pytest.mark.parametrize("optimizer", ["adamw", "adafactor"])
def test_a_run_that_reads_later_has_the_same_weights_and_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    changes = settings(
        steps=23, optimizer=optimizer, log_every=7, validate_every=10, checkpoint_every=9, sample_every=0
    )
    train(Toy(dropout=0.2), batch_at, changes, tmp_path / "at once", batch_at)
    monkeypatch.setitem(readback.LAG, "cpu", 2)
    train(Toy(dropout=0.2), batch_at, changes, tmp_path / "later", batch_at)
    assert outcome(tmp_path / "later") == outcome(tmp_path / "at once")


def test_a_loss_that_is_not_finite_reaches_no_weight_before_the_host_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step 8 is bad; steps 9 and 10 are queued by then, and change nothing. No line of a later step is written."""
    toys = []
    for name, lag in (("at once", 0), ("later", 2)):
        monkeypatch.setitem(readback.LAG, "cpu", lag)
        toys.append(Counting(bad_seed=7 * 6 + 2))
        with pytest.raises(UserError, match=r"step 8: loss nan .* Batch: toy-44\."):
            train(toys[-1], batch_at, settings(checkpoint_every=11), tmp_path / name)
    assert [toy.seen for toy in toys] == [8, 10]
    assert all(map(torch.equal, *(toy.module.parameters() for toy in toys)))
    assert outcome(tmp_path / "later") == outcome(tmp_path / "at once")


@pytest.mark.parametrize("due", ["checkpoint_every", "validate_every", "sample_every", "log_every"])
def test_everything_is_read_before_anything_is_kept(tmp_path: Path, ahead: None, due: str) -> None:
    """Step 8 is bad, and something is due after it."""
    never = {"checkpoint_every": 99, "validate_every": 0, "sample_every": 0, "log_every": 99}
    toy = Counting(bad_seed=7 * 6 + 2)
    with pytest.raises(UserError, match="step 8: loss nan"):
        train(toy, batch_at, settings(**never | {due: 8}), tmp_path, batch_at)
    assert toy.seen == 8
    assert not any((tmp_path / name).exists() for name in ("checkpoints", "samples", "metrics.jsonl"))


def test_a_signal_stops_so_many_steps_later_and_is_gone_on_from(tmp_path: Path, ahead: None) -> None:
    changes = settings(steps=14, checkpoint_every=99, log_every=99)
    with pytest.raises(SystemExit) as stopped:
        train(Counting(at=4), batch_at, changes, tmp_path / "broken", batch_at)
    assert stopped.value.code == 128 + signal.SIGTERM
    found = checkpoint.latest(tmp_path / "broken" / "checkpoints")
    assert found is not None and found.step == 7  # steps 6 and 7 were queued when the host read of step 5
    train(Toy(), batch_at, changes, tmp_path / "broken", batch_at)
    train(Toy(), batch_at, changes, tmp_path / "whole", batch_at)
    results = [outcome(tmp_path / name) for name in ("broken", "whole")]
    assert all(value == results[0][name] for name, value in results[1].items() if name.endswith("safetensors"))
    assert results[1].keys() > {"model/model.safetensors", "checkpoints/step-00000014/ema.safetensors"}


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "adafactor"])
def test_skip_unless_finite_changes_neither_weights_nor_moments(optimizer: str) -> None:
    module = nn.Linear(130, 129)
    made = build_optimizer(module, settings(optimizer=optimizer, weight_decay=0.1))
    one = torch.ones(())
    skip_unless_finite(made, one, one)

    def step(gradient: float) -> list[torch.Tensor]:
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        made.step()
        moments = [v for state in made.state.values() for name, v in state.items() if name != "step"]
        return [tensor.detach().clone() for tensor in (*module.parameters(), *moments)]

    first = step(1.0)
    skip_unless_finite(made, one, one / 0)
    assert all(map(torch.equal, first, step(torch.nan)))
    skip_unless_finite(made, one, one)  # once is for ever
    assert all(map(torch.equal, first, step(1.0)))
    made.found_inf = None  # type: ignore[attr-defined]
    assert not any(map(torch.equal, first[:2], step(1.0)))
    assert isinstance(made, Adafactor) == (optimizer == "adafactor")


def test_the_loss_of_a_diffusion_model_reads_nothing_back_from_its_device() -> None:
    """Tensors of the meta device have no values: what asks for one fails, as it would wait for a GPU."""
    it, batch = DiffusionTask(system(), DiffusionTraining()), toy_batch([1, 2, 3])
    moments = it.system.autoencoder.moments(batch["picture"])  # type: ignore[attr-defined]
    it.module.to("meta")
    there = {"seed": batch["seed"].to("meta"), "latent": moments.detach().to("meta")}
    here = {"caption": batch["caption"], "random": "counter", "seed_on_host": batch["seed"].numpy()}
    losses, _ = it.loss({**there, **here})
    losses.sum().backward()
    assert losses.device.type == "meta" and all(p.grad is not None for p in it.module.parameters())
