"""Latents computed once and captions read in the steps: the field that says so, and what it leaves the same."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.core.errors import UserError
from diptych.encoders.cache import CachedTexts, EmbeddedTexts
from diptych.encoders.frozen import FrozenText
from diptych.encoders.t5 import T5
from diptych.recipes import get
from diptych.training import precompute as module
from diptych.training.experiment import precompute
from diptych.training.experiment_config import Recipe
from diptych.training.experiment_data import open_data
from diptych.training.planning.cards import card
from diptych.training.planning.plan import Cluster, make_plan
from diptych.training.precomputed import PrecomputedLatents
from diptych.training.prefetch import to_device
from diptych.training.tasks.autoencoding import FirstStage, FirstStageConfig
from diptych.training.tasks.guide_training import GuideTraining
from tests.encoders.tiny_encoders import t5_folder
from tests.models.latents import AUTOENCODER, CAPTIONS, SIZE, autoencoder, system, write_images
from tests.training.test_guides import network
from tests.training.test_precompute import files

UNET = "channels=8 multipliers=1,2 blocks=1 attention_levels=1 heads=2 context_width=24 norm_groups=4".split()
LONG = "a red apple and a blue house and a cat and a dog"


def made(folder: Path, count: int = 12) -> Path:
    """Images, a text encoder, a first stage, and a model to be guided."""
    images = write_images(folder / "images", count)
    for number in (0, 1):
        (images / f"{number:02d}.json").write_text(json.dumps({"captions": [LONG], "split": "train"}))
    FirstStage(FirstStageConfig(network=AUTOENCODER), autoencoder()).save(folder / "first")
    t5_folder(folder / "t5")
    system().save(folder / "guided")
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("sd1"))


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "user"))
    for name, value in {"BATCH": 2, "PART": 4}.items():
        monkeypatch.setattr(module, name, value)


def text(place: Path) -> dict[str, Any]:
    return {"kind": "t5", "path": str(place / "t5"), "width": 24, "max_tokens": 12}


def changes(place: Path) -> list[str]:
    """What makes Stable Diffusion 1 small, and lets a T5 read its captions."""
    return [
        *(f"system.model.autoencoder={json.dumps(AUTOENCODER.to_dict())}", f"system.autoencoder={place / 'first'}"),
        *(f"system.model.unet.{change}" for change in UNET),
        *(f"system.model.text={json.dumps(text(place))}", f"system.model.size={SIZE}", f"data.size={SIZE}"),
        *(f"data.path={place / 'images'}", "data.held_out=0", "system.diffusion.prompts=a dog"),
        *("training.device=cpu", "training.batch_size=4"),
    ]


def sd1(place: Path, *more: str) -> Recipe:
    return get("sd1").override([*changes(place), *more])


def opened(recipe: Recipe, folder: Path) -> tuple[Any, Any]:
    """Data and task, as a run begins."""
    data = open_data(recipe, folder / "quarantine.jsonl")
    data.fit(recipe.system.caption_fit)
    return data, recipe.system.build(data, 0)


def batch_of(recipe: Recipe, folder: Path) -> dict[str, Any]:
    data, _ = opened(recipe, folder)
    return to_device(data.batches(0)["train"](list(range(9))), torch.device("cpu"))


def losses(recipe: Recipe, folder: Path, batch: dict[str, Any]) -> torch.Tensor:
    _, task = opened(recipe, folder)
    task.start(batch)
    for parameter in task.module.parameters():  # its last layer starts at zero, behind which no text is seen
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(0))
    return task.loss(batch)[0].detach()


def test_latents_are_read_and_captions_embedded_in_the_steps(
    place: Path, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = precompute(sd1(place, "system.embed_text=online"), tmp_path / "store")
    assert not asked and not list(store.glob("text-*")), "nothing is embedded"
    online = sd1(place, f"system.precomputed={store}", "system.embed_text=online")
    plain, batch = sd1(place), batch_of(online, tmp_path)
    assert "latent" in batch and "picture" not in batch
    with monkeypatch.context() as patch:  # captions are kept as the encoder reads them: they are not gone through again
        patch.setattr(PrecomputedLatents, "fit_captions", None)
        assert any(one != LONG and LONG.startswith(one) for one in batch_of(online, tmp_path)["caption"])
    asked.clear()
    kept = losses(online, tmp_path, batch)
    assert asked and set(asked) <= {"", *batch["caption"]}, (
        "those of the batch alone, and the empty one for a dropped one"
    )
    assert torch.equal(kept, losses(plain, tmp_path, batch)), "as all online, of the same latents"
    fly = batch_of(plain, tmp_path)
    assert fly["caption"] == batch["caption"]
    assert torch.allclose(losses(plain, tmp_path, fly), kept, rtol=0.01), "latents are kept in half precision"
    assert not torch.allclose(losses(plain, tmp_path, {**batch, "caption": ["a dog"] * 9}), kept, rtol=0.01)
    auto = sd1(place, f"system.precomputed={store}")
    assert torch.equal(losses(auto, tmp_path, batch), kept), "there is nothing else to read"
    ahead = sd1(place, f"system.precomputed={store}", "system.embed_text=ahead")
    assert torch.allclose(losses(ahead, tmp_path, batch), kept, rtol=0.01)


def test_embeddings_are_added_and_left_out_without_encoding_images_again(
    place: Path, tmp_path: Path, asked: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = precompute(sd1(place), tmp_path / "whole")
    online, store = sd1(place, "system.embed_text=online"), tmp_path / "store"
    with monkeypatch.context() as patch:
        patch.setattr(module, "encode", None)
        precompute(online, whole)
        assert "nothing to do" in capsys.readouterr().err and list(whole.glob("text-*")), "they may stay"
    precompute(online, store)
    batch = batch_of(sd1(place, f"system.precomputed={whole}", "system.embed_text=online"), tmp_path)
    assert torch.equal(
        losses(sd1(place, f"system.precomputed={store}"), tmp_path, batch), losses(sd1(place), tmp_path, batch)
    )
    asked.clear()
    with monkeypatch.context() as patch:
        patch.setattr(module, "encode", None)
        precompute(sd1(place), store)
    assert "holds no embeddings of its captions: they are added" in capsys.readouterr().err
    assert set(asked) >= {"", *CAPTIONS} and files(store) == files(whole)
    (store / "latents-train-000001.safetensors").write_bytes(b"damaged")
    encoded, encode = [], module.encode
    monkeypatch.setattr(module, "encode", lambda *given: encoded.append(given) or encode(*given))
    precompute(sd1(place), store)
    assert len(encoded) == 2, "the two batches of the part that was lost"
    assert files(store) == files(whole)
    with pytest.raises(UserError, match="made with another text encoder"):
        losses(sd1(place, f"system.precomputed={store}", "system.model.text.max_tokens=9"), tmp_path, {})
    shorter = ("system.model.text.max_tokens=5", "system.embed_text=online")
    cut = batch_of(sd1(place, f"system.precomputed={store}", *shorter), tmp_path)["caption"]
    assert max(map(len, cut)) < max(map(len, batch["caption"])), "another encoder cuts what it does not read"


def test_what_cannot_be_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="embed_text must be auto: there is no frozen text encoder"):
        get("emoji-class").override(["system.embed_text=online"])
    with pytest.raises(UserError, match="lies in the data"):
        precompute(sd1(place), place / "images" / "cache")
    assert not (place / "images" / ".cache.unfinished").exists()


def test_a_plan_counts_the_text_encoder_where_it_runs(place: Path) -> None:
    def planned(*changes: str) -> Any:
        return make_plan(sd1(place, *changes), Cluster(1, card("h100")), caption_tokens=10, examples=12)

    store = "system.precomputed=cache/any"
    stored, online = planned(store), planned(store, "system.embed_text=online")
    assert set(stored.idle) == {"text", "autoencoder"} and set(online.idle) == {"autoencoder"}
    assert set(stored.example_bytes) == {"latents", "text"} and set(online.example_bytes) == {"latents"}
    assert set(planned().example_bytes) == {"latents", "text"}


def guide(place: Path, *changes: str, latents: bool) -> Recipe:
    """A noisy pair of images, or of the latents of a model, and T5's texts."""
    config = GuideTraining(
        network=network(6, channels=4 if latents else 3),
        classes=None,
        text=sd1(place).system.text_config,
        guided=str(place / "guided") if latents else None,
    )
    data = dataclasses.replace(sd1(place).data, size=SIZE)
    return Recipe(description="a pair", system=config, data=data, training=sd1(place).training).override(list(changes))


@pytest.mark.every(2)
@pytest.mark.parametrize("latents", [True, False])
def test_a_pair_reads_what_was_precomputed(place: Path, tmp_path: Path, asked: list[str], latents: bool) -> None:
    recipe = guide(place, latents=latents)
    store = precompute(recipe, tmp_path / "store")
    assert set(asked) >= {"", *CAPTIONS} and bool(list(store.glob("latents-*"))) == latents
    stored = guide(place, f"system.precomputed={store}", latents=latents)
    batch = batch_of(stored, tmp_path)
    assert ("latent" in batch) == latents
    asked.clear()
    read = losses(stored, tmp_path, batch)
    assert not asked, "nothing is embedded again"
    online = guide(place, "system.embed_text=online", latents=latents)
    exact = losses(online, tmp_path, batch)
    assert asked and (read - exact).abs().max() < 0.01 * exact.abs().max()
    assert (read - losses(online, tmp_path, {**batch, "caption": batch["caption"][::-1]})).abs().max() > 0
    if latents:
        bare = guide(place, f"system.precomputed={store}", "system.embed_text=online", latents=True)
        assert torch.equal(losses(bare, tmp_path, batch), exact)
    else:
        with pytest.raises(UserError, match="embed_text must be auto where captions are precomputed"):
            guide(place, f"system.precomputed={store}", "system.embed_text=online", latents=False)
    plan = make_plan(stored, Cluster(1, card("h100")), caption_tokens=10, examples=12)
    assert "text" in plan.idle and "text" in plan.example_bytes


def test_a_pair_reads_the_latents_of_a_store_whose_texts_are_of_another_encoder(
    place: Path, tmp_path: Path, asked: list[str]
) -> None:
    store = precompute(guide(place, latents=True), tmp_path / "store")
    asked.clear()
    other = guide(place, f"system.precomputed={store}", "system.text.max_tokens=9", latents=True)
    text = opened(other, tmp_path)[1].module.text
    assert isinstance(text, CachedTexts) and set(asked) >= {"", "a red", "a blue"}, "cut and embedded ahead"


def test_the_empty_caption_is_embedded_ahead_with_the_others(place: Path, tmp_path: Path, asked: list[str]) -> None:
    """Where captions are dropped it is read in every step, and the network is not there any more."""
    recipe = sd1(place, "system.embed_text=ahead")
    read = opened(recipe, tmp_path)[1].system.text
    assert "" in asked and not read.missing(["", "a dog"]) and not read.loaded
    online = sd1(place, "system.embed_text=online")
    read = opened(online, tmp_path)[1].system.text
    assert isinstance(read, T5) and isinstance(read, FrozenText) and read.online


def test_a_store_that_is_too_large_for_a_table_is_padded_on_the_device(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diptych.encoders import cache, text_table

    store, config = precompute(sd1(place), tmp_path / "store"), sd1(place).system.text_config
    prompts = [*CAPTIONS, "", CAPTIONS[0], "a dog"]
    for name in ("IN_MEMORY", "LARGEST"):
        with monkeypatch.context() as patch:
            patch.setattr(cache if name == "IN_MEMORY" else text_table, name, 0)
            texts = EmbeddedTexts.load(CachedTexts(config), store)
            texts.keep_on(torch.device("meta"))
        assert texts.table is None and texts.packing is not None
        assert {part.device.type for part in texts.encode(prompts)} == {"meta"}
        texts.packing = None
        wanted = texts.encode(prompts)
        texts.packing = torch.device("cpu")
        for mine, theirs in zip(texts.encode(prompts), wanted, strict=True):
            assert mine.dtype == theirs.dtype and torch.equal(mine, theirs)
