"""Texts of pixel models computed once: stored whatever the images, read from disk, grown, refused where they are not
those of the data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.core.errors import UserError
from diptych.recipes import get
from diptych.training import precompute as module
from diptych.training.experiment import precompute
from diptych.training.experiment_config import Recipe
from diptych.training.experiment_data import open_data
from diptych.training.planning.cards import card
from diptych.training.planning.plan import Cluster, make_plan
from diptych.training.prefetch import to_device
from diptych.training.read_text import PrecomputedTexts
from tests.encoders.tiny_encoders import t5_folder
from tests.models.latents import SIZE, write_images
from tests.training.test_precompute import files

NARROW = ("channels=8", "multipliers=1,2", "blocks=1", "attention_levels=1", "norm_groups=4", "dropout=0")
PROMPT = "two red dogs"


@pytest.fixture(scope="module")
def t5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return t5_folder(tmp_path_factory.mktemp("t5"))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "user"))
    for name, value in {"BATCH": 2, "PART": 4}.items():
        monkeypatch.setattr(module, name, value)


def changes(t5: Path, images: Path) -> list[str]:
    """What makes Imagen's base small, on random crops."""
    network = [*NARROW, "head_width=4", "context_width=24", "text_pooling_heads=4"]
    return [
        *(f"system.model.network.{change}" for change in network),
        *(f"system.model.size={SIZE}", f"data.size={SIZE}", f"data.crop={SIZE}", f"data.max_size={SIZE + 4}"),
        *(f"system.model.text.path={t5}", "system.model.text.width=24", f"system.diffusion.prompts={PROMPT}"),
        *(f"data.path={images}", "training.device=cpu", "training.batch_size=4"),
    ]


def recipe(t5: Path, images: Path, *more: str) -> Recipe:
    return get("imagen-base").override([*changes(t5, images), *more])


def loss(recipe: Recipe, folder: Path, positions: tuple[int, ...] = (0, 1, 2, 3)) -> torch.Tensor:
    data = open_data(recipe, folder / "quarantine.jsonl")
    task = recipe.system.build(data, 0)
    batch = to_device(data.batches(0)["train"](list(positions)), torch.device("cpu"))
    task.start(batch)
    for parameter in task.module.parameters():  # its last layer starts at zero, behind which no text is seen
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(0))
    return task.loss(batch)[0].detach()


def caption(folder: Path, name: str, text: str) -> None:
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "captions": [text]}))


def test_texts_are_stored_alone_and_trained_from(t5: Path, tmp_path: Path, asked: list[str], capsys: Any) -> None:
    images = write_images(tmp_path / "images")
    for number in range(12):
        caption(images, f"{number:02d}", f"{number} red apple{'s' * (number % 3)}")
    captions = sorted(f"{number} red apple{'s' * (number % 3)}" for number in range(12))
    ahead = loss(recipe(t5, images), tmp_path)  # the sample prompt goes to the cache, as other runs left it
    asked.clear()
    store = precompute(recipe(t5, images), tmp_path / "store")
    assert sorted(asked) == sorted(["", *captions]), "each once, and no other"
    assert not list(store.glob("captions-*")) and len(list(store.glob("text-*"))) >= 3
    asked.clear()
    stored = recipe(t5, images, f"system.precomputed={store}")
    assert torch.equal(loss(stored, tmp_path), ahead) and not asked
    precompute(stored.override(["data.size=20", f"data.crop={SIZE}", "data.flip=0.5"]), store)
    assert "nothing to do" in capsys.readouterr().err and not asked

    plan = make_plan(stored, Cluster(1, card("h100")), caption_tokens=10, examples=12)
    assert plan.example_bytes == {"text": 2 * 24 * 10} and plan.idle == ("text",)
    for number in range(12, 14):  # the data grow
        shutil.copy(images / "00.png", images / f"{number}.png")
        shutil.copy(images / "00.json", images / f"{number}.json")
        caption(images, str(number), f"{number} blue dogs")
    with pytest.raises(UserError, match=r"the caption '12 blue dogs' and 1 more is not in .*embeds what is missing"):
        loss(stored, tmp_path)
    precompute(stored, store)
    assert sorted(asked) == ["12 blue dogs", "13 blue dogs"]
    assert "made before the data changed: it is made again" in capsys.readouterr().err
    loss(stored, tmp_path, tuple(range(11)))
    assert len(asked) == 2


def test_a_store_that_does_not_fit_is_refused(t5: Path, tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", count=4, held_out=1)
    store = precompute(recipe(t5, images), tmp_path / "store")
    other = t5_folder(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="made with another text encoder: make it again"):
        loss(recipe(other, images, f"system.precomputed={store}"), tmp_path)
    with pytest.raises(UserError, match="no precomputed texts in nowhere: make them with `diptych precompute`"):
        loss(recipe(t5, images, "system.precomputed=nowhere"), tmp_path)
    with pytest.raises(UserError, match="embed_text must be auto"):
        recipe(t5, images, f"system.precomputed={store}", "system.embed_text=online")
    with pytest.raises(UserError, match="no frozen text encoder"):
        get("adm-256").override(["system.precomputed=here"])
    latents = get("emoji-latent").override([f"data.path={images}", f"system.precomputed={store}"])
    with pytest.raises(UserError, match="holds texts alone, and no latents"):
        open_data(latents, tmp_path).encoded_by(torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="not precomputed data"):
        precompute(latents, store)
    before = files(store)
    (store / "config.json").write_text(json.dumps({"autoencoder": "latents", "examples": {}, "texts": {}}))
    with pytest.raises(UserError, match="not precomputed texts"):
        precompute(recipe(t5, images), store)
    (store / "config.json").write_bytes(before["config.json"])
    text = PrecomputedTexts(recipe(t5, images).system.text_config, store, [PROMPT], torch.device("cpu"))
    text.encode([PROMPT, ""])
    with pytest.raises(UserError, match="the caption 'a blue house' is not in"):
        text.encode(["a blue house", PROMPT])


def test_interrupted_anywhere_texts_end_with_the_same_bytes(
    t5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = write_images(tmp_path / "images")
    whole, save, left = precompute(recipe(t5, images), tmp_path / "whole"), module.save_part, 0

    def dying(*arguments: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        save(*arguments)

    monkeypatch.setattr(module, "save_part", dying)
    for left in (0, 1):  # noqa: B007 (counted down by what dies)
        with pytest.raises(KeyboardInterrupt):
            precompute(recipe(t5, images), tmp_path / "parts")
    left = 100
    precompute(recipe(t5, images), tmp_path / "parts")
    assert files(tmp_path / "parts") == files(whole)
    assert left == 100 - (len(list(whole.glob("text-*"))) - 1)


def test_latents_in_buckets_are_refused_before_any_work(tmp_path: Path) -> None:
    latents = get("emoji-latent").override(["system.precomputed=none", "data.path=nowhere", "data.bucket_step=16"])
    with pytest.raises(UserError, match=r"latents are kept of square images: set data\.bucket_step=0"):
        precompute(latents, tmp_path / "out")
    with pytest.raises(UserError, match=r"data\.bucket_step must be 0: precomputed data is square"):
        latents.override(["system.precomputed=here"])
