"""Prompts and sizes that are far from what a model was trained on are told in one line."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import diptych
from diptych.cli import main as cli
from diptych.core.errors import DiptychWarning, UserError
from diptych.encoders.prompt_domain import PromptDomain
from diptych.evaluation.training_prompts import wordings
from diptych.models.size_warning import warn_of_size
from diptych.weights.files import load_safetensors
from diptych.weights.identity import FAMILIAR
from diptych.weights.save import save_safetensors
from tests.models import latents, stages

SEEN = ["a red apple", "two green pears", "a sleeping cat", "a house next to a tree"]


@pytest.fixture(scope="module")
def familiar() -> PromptDomain:
    encoder = latents.minilm()
    return PromptDomain.of(SEEN, encoder.encode(SEEN).pooled, encoder.fingerprint, 0.5)


def test_the_likeness_is_the_largest_cosine_less_half_the_share_of_new_words(familiar: PromptDomain) -> None:
    prompts = ["a sleeping apple", "the theory of international trade"]
    others, seen = latents.minilm().encode(prompts).pooled, latents.minilm().encode(SEEN).pooled
    wanted = (F.normalize(others, dim=-1) @ F.normalize(seen, dim=-1).T).amax(1) - torch.tensor([0, 0.5])
    assert torch.allclose(familiar.likeness(prompts, others), wanted, atol=0.02), "8 bits"
    assert torch.allclose(familiar.likeness(SEEN, seen), torch.ones(len(SEEN)), atol=0.02)


def test_what_is_alike_is_kept_once() -> None:
    encoder, prompts = latents.minilm(), ["a red apple on a table", "a red apple", "one red apple", "a submarine"]
    found = PromptDomain.of(prompts, encoder.encode(prompts).pooled, encoder.fingerprint)
    assert len(found.prompts) == 2 and "table" in found.words
    assert familiar_enough(found, prompts)


def familiar_enough(found: PromptDomain, prompts: list[str]) -> bool:
    return bool((found.likeness(prompts, latents.minilm().encode(prompts).pooled) > 0.6).all())


def test_it_is_small_and_comes_back(familiar: PromptDomain, tmp_path: Path) -> None:
    assert PromptDomain.load(tmp_path) is None
    familiar.save(tmp_path)
    found = PromptDomain.load(tmp_path)
    assert found is not None and (found.least, found.encoder, found.words) == (
        familiar.least,
        familiar.encoder,
        familiar.words,
    )
    assert torch.equal(found.prompts, familiar.prompts) and torch.allclose(found.basis, familiar.basis, atol=1e-3)
    tensors = load_safetensors(tmp_path / FAMILIAR)
    save_safetensors({"basis": tensors["basis"].clone()}, tmp_path / FAMILIAR, {"least": "x"})
    with pytest.raises(UserError, match="is no summary of training prompts"):
        PromptDomain.load(tmp_path)


def told(model: Any, prompt: str) -> dict[str, Any]:
    return model.generate(prompt, steps=1).metadata[0].get("notes", {}).get("prompt", {})


def test_an_out_of_domain_prompt_warns_and_is_in_the_metadata(familiar: PromptDomain, tmp_path: Path) -> None:
    latents.system("minilm").save(tmp_path / "model")
    before: Any = diptych.load(tmp_path / "model", "cpu")
    familiar.save(tmp_path / "model")
    model: Any = diptych.load(tmp_path / "model", "cpu")
    assert model.origin.sha256 == before.origin.sha256, "it changes no image"
    with pytest.warns(DiptychWarning, match="'the theory of trade' is far from all that this model was trained on"):
        assert -1 < told(model, "the theory of trade")["likeness"] < 0.5
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not told(model, "one red apple") and not told(before, "the theory of trade")
        assert not model.generate("a red apple", negative="the theory of trade").metadata[0].get("notes")


@pytest.mark.parametrize("sides", [(512, 512), (128, 128), (32, 32), (192, 32)])
def test_a_size_far_from_the_training_size_warns(sides: tuple[int, int]) -> None:
    with pytest.warns(DiptychWarning, match=f"{sides[0]} x {sides[1]} pixels are far from the 64 x 64"):
        warn_of_size(sides, 64)


@pytest.mark.parametrize("sides", [(64, 64), (128, 64), (96, 96), (48, 48)])
def test_a_size_near_the_training_size_does_not_warn(sides: tuple[int, int]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_size(sides, 64)


def test_both_panels_look_at_the_size() -> None:
    for model in (latents.system(), stages.stage(stages.base())):
        side = 4 * model.config.size
        with pytest.warns(DiptychWarning, match=f"{side} x {side} pixels are far"):
            model.generate("a red picture", steps=1, size=(side, side))


def test_the_command_makes_it_for_models_that_read_alike(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    data = latents.write_images(tmp_path / "data")
    folder = tmp_path / "model"
    latents.system("minilm").save(folder)
    assert cli.main(["data", "familiar", str(data), "--model", str(folder), "--least", "0.4"]) == 0
    assert capsys.readouterr().out.strip() == str(folder / FAMILIAR)
    found = PromptDomain.load(folder)
    assert found is not None and found.least == 0.4 and len(found.prompts) <= len(wordings(str(data), "train"))
    latents.system().save(tmp_path / "joint")
    assert cli.main(["data", "familiar", str(data), "--model", str(tmp_path / "joint")]) == 2
    assert "has no frozen text encoder" in capsys.readouterr().err


STYLES = ("Noto", "Twemoji", "OpenMoji", "EmojiOne", "Fluent", "FxEmoji")


@pytest.mark.parametrize("panel", ["latent", "cascade"])
def test_a_thing_in_a_style_of_training_is_near(panel: str) -> None:
    known = PromptDomain.load(Path(diptych.__file__).parent / "assets" / panel)
    assert known is not None
    prompts = [f"a {thing}, in the style of {style}" for thing in ("rocket", "house", "pumpkin") for style in STYLES]
    assert known.likeness(prompts, latents.minilm().encode(prompts).pooled).min() >= known.least
