"""The embedded defaults: each is there, it paints, and a seed gives its image in any batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

import diptych
from diptych.models.cascade import Cascade
from diptych.models.latent_diffusion import LatentDiffusion
from diptych.pretrained.load import ASSETS

LIMIT = 90 * 2**20  # bytes of all committed weights together, so that a checkout stays light
FEW = 4
"""Sampling steps: enough for colours and shapes."""


@pytest.fixture(scope="module")
def model() -> Iterator[LatentDiffusion]:
    yield diptych.load(device="cpu")


def middle(image: Image.Image) -> np.ndarray:
    """Mean colour of the middle third, (3,) in 0..255."""
    pixels = np.asarray(image, dtype=np.float64)
    a, b = image.width // 3, 2 * image.width // 3
    return pixels[a:b, a:b].mean((0, 1))


def test_the_shipped_weights_stay_light_and_have_a_card() -> None:
    assert 0 < sum(file.stat().st_size for file in ASSETS.rglob("*.safetensors")) < LIMIT
    for folder in ("latent", "latent-4-steps", "cascade", "judge"):
        assert (ASSETS / folder / "MODEL_CARD.md").is_file()


def test_it_paints_what_is_asked(model: LatentDiffusion) -> None:
    prompts = ["a red heart", "a blue heart", "a grinning face"]
    red, blue, yellow = map(middle, model.generate(prompts, seeds=[0, 0, 0], steps=FEW).images)
    assert red[0] > red[1] + 60 and red[0] > red[2] + 60
    assert blue[2] > blue[0] + 30
    assert yellow[0] > yellow[2] + 60 and yellow[1] > yellow[2] + 30


def test_its_student_paints_much_the_same_in_four_calls(model: LatentDiffusion) -> None:
    student = diptych.load("latent-4-steps", device="cpu")
    prompts = ["a red heart", "a blue heart", "a grinning face"]
    own, result = model.generate(prompts, seeds=[0, 1, 2], steps=8), student.generate(prompts, seeds=[0, 1, 2])
    assert result.metadata[0]["cost"]["calls"] == 4
    for one, other in zip(result.images, own.images, strict=True):
        assert np.abs(middle(one) - middle(other)).max() < 60
    red, blue, yellow = map(middle, result.images)
    assert red[0] > red[1] + 60 and blue[2] > blue[0] + 30 and yellow[0] > yellow[2] + 60


@pytest.mark.slow
def test_a_seed_gives_the_same_image_alone_and_in_a_batch_of_eight(model: LatentDiffusion) -> None:
    prompts = ["a cat", "two dogs on a red background", "a rocket", "a", "a house", "an apple", "a car", "a red apple"]
    seeds = [5, 3, 5, 0, 9, 1, 2**31, 7]
    together = model.generate(prompts, seeds=seeds, steps=FEW).images
    for place in (0, 3, 7):
        alone = model.generate(prompts[place], seeds=[seeds[place]], steps=FEW).images[0]
        difference = np.asarray(alone, dtype=int) - np.asarray(together[place], dtype=int)
        assert np.abs(difference).max() <= 1


@pytest.fixture(scope="module")
def cascade() -> Iterator[Cascade]:
    yield diptych.load("cascade", device="cpu")


def test_the_cascade_paints_what_is_asked_in_three_stages(cascade: Cascade) -> None:
    result = cascade.generate("a red heart", seeds=[0], steps=[8, FEW, 2], keep=True)
    assert [images[0].size for images in result.stages] == [(32, 32), (128, 128), (512, 512)]
    for images in result.stages:
        red = middle(images[0])
        assert red[0] > red[1] + 60 and red[0] > red[2] + 60
    small, large = result.stages[0][0], result.images[0]
    reduced = np.asarray(large.resize(small.size, Image.Resampling.BOX), dtype=np.float64)
    assert np.abs(reduced - np.asarray(small)).mean() < 15, "the large image is the small one, enlarged"


def test_the_base_of_the_cascade_follows_colours(cascade: Cascade) -> None:
    blue, yellow = (
        middle(image)
        for image in cascade.generate(["a blue heart", "a grinning face"], seeds=[0, 0], steps=FEW, stop=1).images
    )
    assert blue[2] > blue[0] + 30
    assert yellow[0] > yellow[2] + 60 and yellow[1] > yellow[2] + 30


@pytest.mark.slow  # of small cascades test_cascade.py says the same
def test_a_seed_gives_the_same_cascade_alone_and_in_a_batch(cascade: Cascade) -> None:
    prompts, seeds = ["a cat", "two dogs on a red background", "a rocket"], [5, 3, 2**31]
    together = cascade.generate(prompts, seeds=seeds, steps=FEW, stop=2).images
    alone = cascade.generate(prompts[2], seeds=[seeds[2]], steps=FEW, stop=2).images[0]
    difference = np.abs(np.asarray(alone, dtype=int) - np.asarray(together[2], dtype=int))
    assert (difference > 1).mean() < 0.001  # a value that rounds the other way in a small image spreads a little
