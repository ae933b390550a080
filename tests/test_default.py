"""The embedded default: it is there, it paints, and a seed gives its picture in any batch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

import diptych
from diptych.latent import LatentDiffusion
from diptych.opening import ASSETS

LIMIT = 40 * 2**20  # bytes of all committed weights together, so that a checkout stays light


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
    for folder in ("latent", "judge"):
        assert (ASSETS / folder / "MODEL_CARD.md").is_file()


def test_it_paints_what_is_asked(model: LatentDiffusion) -> None:
    red, blue, yellow = (
        middle(image)
        for image in model.generate(["a red heart", "a blue heart", "a grinning face"], seeds=[0, 0, 0]).images
    )
    assert red[0] > red[1] + 60 and red[0] > red[2] + 60
    assert blue[2] > blue[0] + 30
    assert yellow[0] > yellow[2] + 60 and yellow[1] > yellow[2] + 30


def test_a_seed_gives_the_same_picture_alone_and_in_a_batch_of_eight(model: LatentDiffusion) -> None:
    prompts = ["a cat", "two dogs on a red background", "a rocket", "a", "a house", "an apple", "a car", "a red apple"]
    seeds = [5, 3, 5, 0, 9, 1, 2**31, 7]
    together = model.generate(prompts, seeds=seeds).images
    for place in (0, 3, 7):
        alone = model.generate(prompts[place], seeds=[seeds[place]]).images[0]
        difference = np.asarray(alone, dtype=int) - np.asarray(together[place], dtype=int)
        assert np.abs(difference).max() <= 1
