"""The loop in one process."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from diptych.core.errors import UserError
from diptych.data import DataConfig, open_dataset
from diptych.data.shards import write_shard
from diptych.data.stream import ImageBatches
from diptych.recipes import get
from diptych.training import run_checkpoint as checkpoint
from diptych.training.prefetch import prefetched
from diptych.training.trainer import train
from diptych.training.training_config import TrainingConfig, compare_config, write_config
from diptych.weights import save as weights_save
from diptych.weights.lazy import load_weights
from tests.data.tiny import png
from tests.training.toy import Toy, batch_at, settings


def metrics(folder: Path, name: str = "loss", kind: str = "train") -> dict[int, float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line[name] for line in lines if line["kind"] == kind}


def settle_config(folder: Path, *values: Any) -> list[str]:
    """As a run does that goes on."""
    changed, resolved = compare_config(folder, *values)
    write_config(folder, resolved)
    return changed


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert train(Toy(), batch_at, settings(), folder, batch_at) == folder / "model"
    return folder


def test_a_run_learns_and_leaves_all_its_files(finished: Path) -> None:
    losses = metrics(finished)
    assert list(losses) == list(range(5, 41, 5))
    assert losses[40] < 0.7 * losses[5]
    assert list(metrics(finished, kind="validation")) == [20, 40]
    for step in (20, 40):
        with Image.open(finished / "samples" / f"step-{step:08d}.png") as image:
            assert image.size == (4, 4)
    assert list((finished / "tensorboard").iterdir())
    steps = sorted(p.name for p in (finished / "checkpoints").iterdir())
    assert steps == ["step-00000036", "step-00000040"]
    assert TrainingConfig.from_dict(json.loads((finished / "config.json").read_text())["training"]) == settings()


def test_the_finished_model_has_the_averaged_weights_and_the_started_buffers(finished: Path) -> None:
    found = checkpoint.latest(finished / "checkpoints")
    assert found is not None
    model, ema, weights = load_weights(finished / "model"), found.load("ema"), found.load("weights")
    assert all(torch.equal(model[key], ema[key]) for key in ema)
    assert not torch.equal(model["0.weight"], weights["0.weight"])
    first = batch_at(list(range(6)))["picture"]
    assert model["scale"] == pytest.approx(1 / first.std().item())


def test_a_finished_run_says_so_and_does_nothing(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(finished)
    train(Toy(), batch_at, settings(), finished, batch_at)
    assert "is finished (40 steps); raise training.steps to train on" in capsys.readouterr().err
    assert contents(finished) == before
    train(Toy(), batch_at, settings(steps=20, log_every=2), finished, batch_at)
    said = "is finished (40 steps), and training.steps=20 (was 40), training.log_every=2 (was 5) changes nothing;"
    assert said in capsys.readouterr().err
    assert contents(finished) == before


def test_a_run_goes_on_to_more_steps(tmp_path: Path) -> None:
    short, long = settings(steps=10, schedule="constant"), settings(steps=15, schedule="constant")
    train(Toy(), batch_at, short, tmp_path / "a")
    train(Toy(), batch_at, long, tmp_path / "a")
    train(Toy(), batch_at, long, tmp_path / "b")
    assert contents(tmp_path / "a" / "model") == contents(tmp_path / "b" / "model")


@pytest.mark.parametrize("change", [{"learning_rate": 0.5}, {"batch_size": 7}, {"seed": 3}, {"optimizer": "adam"}])
def test_another_config_is_refused_by_field(finished: Path, change: dict[str, Any]) -> None:
    before = contents(finished)
    with pytest.raises(UserError, match=f"training.{next(iter(change))}="):
        train(Toy(), batch_at, settings(**change), finished, batch_at)
    assert contents(finished) == before


def test_fields_outside_training_count_and_logging_does_not(tmp_path: Path) -> None:
    settle_config(tmp_path, {"training": {"steps": 5, "seed": 1}, "system": {"width": 8, "text": None}})
    values = {"training": {"steps": 9, "seed": 1}, "system": {"width": 8, "text": None}}
    assert settle_config(tmp_path, values) == ["training.steps=9 (was 5)"]
    assert settle_config(tmp_path, values) == []
    assert json.loads((tmp_path / "config.json").read_text())["training"]["steps"] == 9
    with pytest.raises(UserError, match=r"system\.width=8, not 16"):
        settle_config(tmp_path, {"training": {"steps": 9, "seed": 1}, "system": {"width": 16, "text": None}})
    with pytest.raises(UserError, match=r"system\.text=null"):
        settle_config(tmp_path, {"training": {"steps": 9, "seed": 1}, "system": {"width": 8, "text": {"k": 1}}})


def test_a_field_that_came_with_a_later_version_had_its_default(tmp_path: Path) -> None:
    """A run whose config lacks it goes on where the recipe has the default, and is refused where it has not."""
    saved = get("ddpm").to_dict()
    del saved["data"]["flip"], saved["data"]["center_shift"], saved["system"]["model"]["schedule"]["conditioning"]
    (tmp_path / "config.json").write_text(json.dumps({**saved, "gone": 1}))
    with pytest.raises(UserError, match=r"holds a run with data\.flip=0\.0, not 0\.5: .* set data\.flip back"):
        settle_config(tmp_path, get("ddpm"))
    several = ["data.flip=0", "training.seed=3", "training.steps=7", "system.model.network=" + json.dumps(OTHER)]
    with pytest.raises(UserError) as told:
        settle_config(tmp_path, get("ddpm").override(several))
    assert 'network.kind="unet", not "adm", training.seed=0, not 3: ' in str(told.value)
    assert settle_config(tmp_path, get("ddpm").override(["data.flip=0"]), {"found": "x"}) == []
    with pytest.raises(UserError, match='found="x", not "y"'):
        settle_config(tmp_path, get("ddpm").override(["data.flip=0"]), {"found": "y"})


OTHER = {"kind": "adm", "out_channels": 3}


def test_another_recipe_in_the_folder_is_named(tmp_path: Path) -> None:
    settle_config(tmp_path, {"description": "small", "system": {"width": 8}})
    settle_config(tmp_path, {"description": "small, worded anew", "system": {"width": 8}})
    with pytest.raises(UserError, match=r"system\.width=8, not 9, of the recipe 'small, worded anew': train into "):
        settle_config(tmp_path, {"description": "large", "system": {"width": 9}})


def test_settings_that_change_as_a_run_goes_on_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(Toy(), batch_at, settings(steps=1), tmp_path, batch_at)
    assert "goes on with" not in capsys.readouterr().err
    train(Toy(), batch_at, settings(steps=2), tmp_path, batch_at)
    told = capsys.readouterr().err
    assert "the run goes on with training.steps=2 (was 1)\n" in told and ", 0:00 of training alone: " in told


@pytest.mark.parametrize("change", [{"accumulation": 3}, {"accumulation": 4}, {"workers": 0}, {"workers": 3}])
def test_accumulation_and_workers_change_nothing(finished: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    train(Toy(), batch_at, settings(**change), tmp_path, batch_at)
    assert list(metrics(tmp_path).values()) == pytest.approx(list(metrics(finished).values()), rel=1e-5)
    norms = metrics(finished, "grad_norm").values()
    assert list(metrics(tmp_path, "grad_norm").values()) == pytest.approx(list(norms), rel=1e-4)
    for key, tensor in load_weights(tmp_path / "model").items():
        torch.testing.assert_close(tensor, load_weights(finished / "model")[key], rtol=1e-4, atol=1e-5)


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_image(tmp_path: Path) -> None:
    config = settings(checkpoint_every=3, log_every=1)
    good, bad = Toy(), Toy(bad_seed=7 * 6 + 2)
    with pytest.raises(UserError, match=r"step 8: loss nan .* Batch: toy-44\.") as caught:
        train(bad, batch_at, config, tmp_path / "bad")
    assert "\n" not in str(caught.value)
    train(good, batch_at, settings(steps=7, schedule="constant"), tmp_path / "other")
    assert list(metrics(tmp_path / "bad")) == list(range(1, 8))
    found = checkpoint.latest(tmp_path / "bad" / "checkpoints")
    assert found is not None
    assert found.step == 6
    assert all(torch.isfinite(p).all() for p in bad.module.parameters())
    assert not (tmp_path / "bad" / "model").exists()


def test_a_gradient_that_is_not_finite_stops_too(tmp_path: Path) -> None:
    class Steep(Toy):
        def loss(self, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
            losses, scalars = super().loss(batch)
            return losses + (losses - losses).sqrt(), scalars  # the gradient of sqrt at 0 is infinite

    toy = Steep()
    before = {key: value.clone() for key, value in toy.module.named_parameters()}
    with pytest.raises(UserError, match=r"step 1: loss [0-9.]+ with gradient norm nan"):
        train(toy, batch_at, settings(), tmp_path)
    assert all(torch.equal(p, before[key]) for key, p in toy.module.named_parameters())


def test_a_full_disk_during_the_run_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = weights_save.save_file, 0

    def fail(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls > 5:  # three files a checkpoint: in the middle of the second
            raise OSError(28, "No space left on device")
        real(*arguments)

    monkeypatch.setattr(weights_save, "save_file", fail)
    with pytest.raises(UserError, match="disk is full"):
        train(Toy(), batch_at, settings(), tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]
    monkeypatch.undo()
    train(Toy(), batch_at, settings(), tmp_path)
    assert (tmp_path / "model").exists()


def test_a_time_limit_finishes_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = settings(steps=100_000, minutes=0.3 / 60)
    train(Toy(), batch_at, config, tmp_path)
    found = checkpoint.latest(tmp_path / "checkpoints")
    assert found is not None
    assert 0 < found.step < 100_000
    assert 0.3 <= found.state["seconds"] < 5
    assert (tmp_path / "model").exists()
    train(Toy(), batch_at, config, tmp_path)
    assert "is finished" in capsys.readouterr().err


def test_the_learning_rate_and_metrics_of_the_loss_are_logged(finished: Path) -> None:
    assert metrics(finished, "learning_rate")[40] < metrics(finished, "learning_rate")[10] <= 1e-2
    assert all(value > metrics(finished)[step] for step, value in metrics(finished, "largest").items())


def test_batches_are_prepared_ahead_in_order_and_errors_come_through() -> None:
    seen: list[int] = []
    names: set[str] = set()

    def slow(positions: list[int]) -> dict[str, Any]:
        names.add(threading.current_thread().name)
        seen.append(positions[0])
        if positions[0] == 7:
            raise UserError("broken picture 7")
        return {"position": positions[0]}

    batches = prefetched(slow, ([i] for i in range(10)), settings(workers=2), torch.device("cpu"))
    assert next(batches)["position"] == 0
    time.sleep(0.05)
    assert len(seen) == 3  # two more are ready
    assert [next(batches)["position"] for _ in range(6)] == list(range(1, 7))
    with pytest.raises(UserError, match="picture 7"):
        next(batches)
    assert threading.current_thread().name not in names


class Spoiling(Toy):
    """Its loss stays finite, and a step makes a weight that it does not use infinite."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.module.register_parameter("spare", torch.nn.Parameter(torch.zeros(2)))
        self.at = at

    def loss(self, batch: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if batch["step"] == self.at:
            with torch.no_grad():
                self.module.get_parameter("spare").fill_(torch.inf)
        return super().loss(batch)


@pytest.mark.parametrize("part", ["weights", "ema", "optimizer"])
def test_a_checkpoint_that_was_saved_with_what_is_not_finite_is_not_gone_on_from(tmp_path: Path, part: str) -> None:
    train(Toy(), batch_at, settings(steps=4, schedule="constant"), tmp_path)
    found = checkpoint.latest(tmp_path / "checkpoints")
    assert found is not None
    parts = {name: found.load(name) for name in ("weights", "ema", "optimizer")}
    next(tensor for name, tensor in parts[part].items() if name.startswith("0.weight") and tensor.ndim)[0] = torch.nan
    checkpoint.save(tmp_path / "checkpoints", 6, parts, found.state)
    with pytest.raises(UserError, match=r"step-00000006 the .* 0\.weight.* hold NaN or Inf.*: move that folder away"):
        train(Toy(), batch_at, settings(steps=8, schedule="constant"), tmp_path)


@pytest.mark.parametrize("at", [5, 7, 9])
def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, at: int) -> None:
    def run(toy: Toy) -> Path:
        return train(toy, batch_at, settings(steps=10, schedule="constant"), tmp_path)

    seen = 8 if at < 8 else 10  # when the next checkpoint is due
    with pytest.raises(UserError, match=f"after step {seen} the weights spare hold"):
        run(Spoiling(at))
    found = checkpoint.latest(tmp_path / "checkpoints")
    assert found is not None and found.step == at // 4 * 4
    assert not (tmp_path / "model").exists()
    assert all(torch.isfinite(tensor).all() for tensor in found.load("weights").values())


def test_a_run_whose_checkpoints_are_all_broken_stops_and_keeps_what_there_is(tmp_path: Path) -> None:
    train(Toy(), batch_at, settings(steps=8, schedule="constant"), tmp_path)
    for file in tmp_path.glob("checkpoints/*/weights.safetensors"):
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole"):
        train(Toy(), batch_at, settings(steps=12, schedule="constant"), tmp_path)
    after = contents(tmp_path)
    assert {k: v for k, v in after.items() if k != "config.json"} == {
        k: v for k, v in before.items() if k != "config.json"
    }


def test_a_finished_model_is_replaced_only_while_it_is_ours(tmp_path: Path) -> None:
    train(Toy(), batch_at, settings(steps=4, schedule="constant"), tmp_path)
    (tmp_path / "model" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds notes\.txt, which is no part of a trained model"):
        train(Toy(), batch_at, settings(steps=8, schedule="constant"), tmp_path)
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"
    (tmp_path / "model" / "notes.txt").unlink()
    train(Toy(), batch_at, settings(steps=8, schedule="constant"), tmp_path)
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["model.safetensors"]


def test_a_run_whose_data_have_changed_stops_unless_allowed(tmp_path: Path) -> None:
    """The order of an epoch follows from how many examples there are, and from which: kept, and compared."""
    (tmp_path / "data").mkdir()
    for number in range(3):
        write_shard(tmp_path / "data" / f"{number}.tar", [(f"{number}-{k}", {"png": png()}) for k in range(4)])

    def facts(**changes: Any) -> dict[str, Any]:
        dataset = open_dataset(DataConfig(path=str(tmp_path / "data"), size=8, **changes), captions=False)
        return {"examples": ImageBatches(dataset, 0).identity}

    def resume(found: dict[str, Any], **training: Any) -> list[str]:
        return settle_config(tmp_path / "run", {"training": settings(**training).to_dict()}, found)

    first = facts()
    assert first["examples"]["count"] == 12 and resume(first) == [] == resume(facts())
    os.rename(tmp_path / "data" / "0.tar", tmp_path / "data" / "3.tar")  # the same examples at other places
    before = contents(tmp_path / "run")
    with pytest.raises(UserError, match=r"it began with 12 examples, and there are as many others now; bring back"):
        resume(facts())
    os.remove(tmp_path / "data" / "3.tar")
    with pytest.raises(UserError, match=r"it began with 12 examples, and there are 8 now.*training\.changed_data=true"):
        resume(facts())
    assert contents(tmp_path / "run") == before
    said = resume(facts(), changed_data=True)
    assert said == ["other data, 8 examples (were 12)", "training.changed_data=true (was false)"]
    assert resume(facts(), changed_data=True) == []
    with pytest.raises(UserError, match="there are 7 now"):
        resume({"examples": {**facts()["examples"], "count": 7}})
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    del saved["examples"]  # of an earlier version
    (tmp_path / "run" / "config.json").write_text(json.dumps(saved))
    resume(first)
    assert json.loads((tmp_path / "run" / "config.json").read_text())["examples"] == first["examples"]
