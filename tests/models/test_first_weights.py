"""What a run learns follows from its recipe and its data alone: not from caches, nor from what was built before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from diptych.cli import main as cli
from diptych.data.dataset import open_dataset
from diptych.recipes import get
from diptych.training import distributed, experiment_data
from diptych.training.experiment_data import ImageData
from tests.evaluation.toys import TRAINING
from tests.models.latents import SIZE
from tests.recipes.test_recipes import FIRST, JOINT_TEXT, LATENT, QUICK, here, workshop

__all__ = ["here", "workshop"]

BASE = [
    *QUICK,
    *(f"system.model.size={SIZE}", "system.model.network.channels=16", "system.model.network.multipliers=1,2"),
    *("system.model.network.attention_levels=1", "system.model.network.head_width=8", "system.model.steps=2"),
    'system.diffusion.prompts=["a cat"]',
]
PAIR = [
    *QUICK,
    *(
        "system.guided=none",
        "system.precomputed=none",
        "data.least=1",
        "data.caption_field=none",
        "system.network.encoder.in_channels=3",
    ),
    *("system.network.encoder.channels=32", "system.network.encoder.blocks=1"),
]
FLY = "system.precomputed=none"
KINDS = {
    "emoji-autoencoder": FIRST,
    "emoji-latent": [*LATENT, FLY],
    "emoji-latent-joint": [*JOINT_TEXT, FLY],
    "emoji-base": BASE,
    "emoji-noisy-clip": PAIR,
    "judge": [*QUICK, f"system.judge={json.dumps(TRAINING.judge.to_dict())}"],
}


@pytest.mark.every(2)
@pytest.mark.parametrize("name", KINDS)
def test_first_weights_follow_from_the_seed_alone(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    recipe = get("emoji-latent" if "joint" in name else name).override(KINDS[name])
    dataset = open_dataset(recipe.data)
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path))  # empty at first, and full afterwards

    def weights(seed: int, recipe=recipe) -> dict[str, torch.Tensor]:
        torch.manual_seed(seed)
        data = ImageData({"train": dataset})
        return dict(recipe.system.build(data, recipe.training.seed).module.state_dict())

    first, again = weights(1), weights(2)
    assert all(torch.equal(first[key], again[key]) for key in first)
    other = weights(1, recipe.override(["training.seed=7"]))
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_an_empty_and_a_full_cache_of_texts_train_the_same_weights(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    for name in ("empty", "full"):
        assert cli.main(["train", "emoji-base", "--run", str(tmp_path / name), *BASE]) == 0
        assert list((tmp_path / "cache" / "text").rglob("text.safetensors"))
    one, other = ({p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*.safetensors")}
                  for n in ("empty", "full"))  # fmt: skip
    assert len(one) > 3 and one == other


def test_a_folder_with_files_of_something_else_is_refused_before_any_work(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("no captions are embedded, no process is joined")

    monkeypatch.setattr(experiment_data, "open_splits", never)
    monkeypatch.setattr(distributed, "find_device", never)
    for taken in ("model/cat.png", "checkpoints/mine.txt", "metrics.jsonl", "config.json", "samples/cat.png"):
        folder = tmp_path / taken.replace("/", "-")
        (folder / taken).parent.mkdir(parents=True)
        (folder / taken).write_text('{"training": {"epochs": 3}}')
        assert cli.main(["train", "emoji-base", "--run", str(folder), *BASE]) == 2
        said = capsys.readouterr().err
        assert f"{folder / taken.split('/')[0]} is there already, and is of no run of diptych" in said
        assert [path for path in folder.rglob("*") if path.is_file()] == [folder / taken]
