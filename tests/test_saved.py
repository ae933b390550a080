"""What was recorded and saved before the modules were moved: the same seed gives the same image, old files open."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import diptych
from diptych.cli.main import main
from diptych.core.images import to_tensor
from diptych.encoders.cache import CachedTexts, EmbeddedTexts
from diptych.encoders.configs import T5Config
from diptych.evaluation.runner import config_hash
from diptych.models.judge import load_judge
from diptych.pretrained.load import open_autoencoder
from diptych.pretrained.load_guide import open_guide
from diptych.recipes import all_recipes
from diptych.training.precompute import PrecomputedLatents
from tests.saved.replay import HERE, TOLERANCE, compare, generate, machine, numbered, picture, small

PNGS = [path.stem for path in sorted((HERE / "pngs").glob("*.png")) if path.stem not in ("waves", "low", "box")]
RECIPES = json.loads(gzip.decompress((HERE / "recipes.json.gz").read_bytes()))["recipes"]


@functools.cache
def embedded(name: str) -> Any:
    return diptych.load(name, device="cpu")


@pytest.mark.every(3)
@pytest.mark.parametrize(("number", "call"), numbered("images"))
def test_the_same_seed_gives_the_recorded_image(number: int, call: dict[str, Any]) -> None:
    compare("images", number, generate(embedded(call["model"]), call))


@pytest.mark.parametrize("name", RECIPES)
def test_a_recorded_recipe_resolves_to_the_same_values(name: str) -> None:
    recipe = all_recipes()[name]
    recorded = type(recipe).from_dict(RECIPES[name])
    assert dataclasses.replace(recorded, description=recipe.description) == recipe


@pytest.mark.parametrize(("number", "call"), numbered("folders"))
def test_a_saved_model_opens_and_gives_the_recorded_image(
    number: int, call: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(HERE / "folders")  # the T5 is named by its place beside the models
    compare("folders", number, generate(diptych.load(call["model"], device="cpu"), call))


@pytest.mark.parametrize("png", PNGS)
def test_a_saved_image_is_made_again(png: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE / "folders")
    path = HERE / "pngs" / f"{png}.png"
    assert main(["generate", "--from", str(path), "--out", str(tmp_path), "--device", "cpu"]) == 0
    (made,) = tmp_path.iterdir()
    with Image.open(path) as before, Image.open(made) as now:
        assert now.size == before.size
        assert np.abs(small(now).astype(int) - small(before)).max() <= TOLERANCE
        if json.loads((HERE / "pngs.json").read_text())["machine"] == machine():
            assert now.tobytes() == before.tobytes()
        for name, value in json.loads(before.text.get("diptych", "{}")).items():
            assert name in ("diptych", "cost") or json.loads(now.text["diptych"])[name] == value


@pytest.mark.parametrize(
    "name", ["latent-mask-fine", "latent-low", "latent-classes", "stage-classes", "autoregressive"]
)
def test_a_saved_sweep_knows_its_model(name: str) -> None:
    saved = json.loads((HERE / "folders" / name / "config.json").read_text())
    values = json.dumps([{key: value for key, value in saved.items() if key != "scale"}])
    model = diptych.load(str(HERE / "folders" / name), device="cpu")
    assert config_hash(model) == hashlib.sha256(values.encode()).hexdigest()[:16]


T5 = T5Config(path="t5", width=24, max_tokens=32)
PROMPTS = ["a red apple", "", "two cats left of a house, and a dog"]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the saved folders, and the working folder."""
    shutil.copytree(HERE / "folders", tmp_path / "folders")
    monkeypatch.chdir(tmp_path / "folders")
    return tmp_path / "folders"


def same(name: str, found: Tensor) -> None:
    with np.load(HERE / "arrays.npz") as recorded:
        np.testing.assert_allclose(found.float().numpy(), recorded[name], rtol=1e-3, atol=1e-3, err_msg=name)


@torch.no_grad()
def test_saved_first_stages_judges_and_guides_open(folders: Path) -> None:
    images = to_tensor([picture(16, 16)])
    same("autoencoder", open_autoencoder(folders / "autoencoder").moments(images))
    same("autoencoder-vq", open_autoencoder(folders / "autoencoder-vq").codes(images))
    judge = load_judge(folders / "judge-tiny")
    same("judge-pictures", judge.embed_images(images))
    same("judge-captions", judge.embed_captions(PROMPTS[:1]))
    guide: Any = open_guide(folders / "pair-of-pixels")
    same("pair-captions", guide.embed(PROMPTS[:1]))


def test_saved_texts_are_found_in_the_cache(folders: Path) -> None:
    texts = CachedTexts(T5, folders / "text-cache")
    same("text-cache", texts.encode(PROMPTS).sequence)
    assert not texts.loaded, "the text encoder was needed"


def test_saved_latents_and_their_texts_are_read(folders: Path) -> None:
    first = open_autoencoder(folders / "autoencoder")
    batch = PrecomputedLatents(folders / "precomputed", "train", 0, first)([0, 5, 12])
    same("precomputed", batch["latent"])
    texts = EmbeddedTexts.load(CachedTexts(T5), folders / "precomputed")
    assert not texts.missing([*batch["caption"], ""])
