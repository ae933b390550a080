"""GLIDE's recipes: their parameters are the published ones, and the small one trains from images to a painting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import diptych
from diptych.cli import main as cli
from diptych.cli.describe import describe
from diptych.recipes import get
from diptych.training.experiment_config import PixelTraining
from diptych.training.tasks.guide_training import GuideTraining
from tests.models.latents import write_images

RELEASED = {"glide-base-small": 385_030_726, "glide-upsampler-small": 398_361_286}
"""As the notebooks of glide-text2im print them."""


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_models_have_exactly_their_parameters(name: str) -> None:
    assert describe(name)["total"] == RELEASED[name]


def test_the_papers_models_have_about_what_it_states() -> None:
    """2.3 B for the images and 1.2 B for the text; 1.5 B together for the upsampler (section 4)."""
    base, upsampler = (describe(name) for name in ("glide-base", "glide-upsampler"))
    assert base["networks"]["network"] == pytest.approx(2.3e9, rel=0.05)
    assert base["networks"]["text"] == pytest.approx(1.2e9, rel=0.1)
    assert upsampler["total"] == pytest.approx(1.5e9, rel=0.1)


def test_from_images_to_a_painting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "pictures")
    text = {"vocabulary": 64, "max_tokens": 12, "width": 16, "layers": 1, "heads": 2, "head_width": 8}
    network = {"channels": 8, "multipliers": "1,2", "attention_levels": 1, "head_width": 8, "norm_groups": 4}
    network |= {"context_width": 16, "pooled_width": 16}
    training = {"steps": 3, "batch_size": 4, "warmup": 1, "validate_every": 3, "validation_images": 3, "threads": 1}
    training |= {"sample_every": 3, "checkpoint_every": 3, "device": "cpu"}
    changes = ["data.path=pictures", "data.size=16", "system.model.size=16", "system.model.steps=2"]
    changes += [f"system.model.text.network.{key}={value}" for key, value in text.items()]
    changes += [f"system.model.network.{key}={value}" for key, value in network.items()]
    changes += [f"training.{key}={value}" for key, value in training.items()]
    assert cli.main(["train", "emoji-glide", "--run", "run", *changes]) == 0
    model: Any = diptych.load("run", "cpu")
    assert model.generate("a red picture").images[0].size == (16, 16)
    assert model.joint_text.tokenizer.token_to_id("red") is not None
    fine = [*changes, "system.init_from=run", "system.model.masks.thin=1", "system.model.network.concat_channels=4"]
    assert cli.main(["train", "emoji-glide", "--run", "inpainting", *fine]) == 0
    repaints: Any = diptych.load("inpainting", "cpu")
    assert repaints.joint_text.tokenizer.to_str() == model.joint_text.tokenizer.to_str()
    image = model.generate("a red picture").images[0]
    mask = Image.new("L", (16, 16))
    mask.paste(255, (8, 0, 16, 16))
    assert repaints.generate("blue", image=image, mask=mask).images[0].crop((0, 0, 8, 16)) == image.crop((0, 0, 8, 16))
    assert cli.main(["train", "emoji-glide", "--run", "other", *changes, "system.init_from=latent"]) == 2


def test_the_paper_is_followed_in_what_is_fine_tuned() -> None:
    dropout = {name: get(name).system for name in ("glide-base", "glide-base-guided", "glide-base-inpainting")}
    assert all(isinstance(system, PixelTraining) for system in dropout.values())
    rates = [system.diffusion.caption_dropout for system in dropout.values()]  # type: ignore[union-attr]
    begun = [system.init_from for system in dropout.values()]  # type: ignore[union-attr]
    assert (rates, begun) == ([0.0, 0.2, 0.2], [None, "runs/glide-base", "runs/glide-base-guided"])
    guide = get("glide-noisy-clip").system
    base = get("glide-base-guided").system
    assert isinstance(guide, GuideTraining) and isinstance(base, PixelTraining)
    assert guide.schedule == base.model.schedule and guide.network.size == base.model.size
