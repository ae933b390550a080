"""The cascade panel from an image, with and without a mask: what stages are shown, keep and refuse."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diptych.conditioning.lowres_augmentation import downsample
from diptych.core.errors import UserError
from diptych.core.images import to_tensor
from diptych.diffusion.steps import NoiseSource
from diptych.models.cascade import Cascade
from diptych.models.pixel_diffusion import PixelDiffusion
from tests.models.latents import arrays
from tests.models.stages import CAPTIONS, Words, base, cascade, close, drawing, enlarging, equal, stage

SEEDS = [5, 7]
PROMPTS = ["red left", "two blue cats"]


@pytest.fixture(scope="module")
def model() -> Cascade:
    """8 -> 16 -> 32 pixels."""
    return cascade()


def mask(width: int = 32, height: int = 32, left: int = 11) -> Image.Image:
    """White right of a column that is at no border of a smaller image's pixels."""
    values = np.zeros((height, width), np.uint8)
    values[3:-2, left:] = 255
    return Image.fromarray(values)


def first_input(it: PixelDiffusion, **options: Any) -> Tensor:
    """What its network is first shown when it paints."""
    seen: list[Tensor] = []
    hook = it.network.register_forward_pre_hook(lambda network, inputs: seen.append(inputs[0].clone()))
    try:
        it.generate("red left", seeds=[7], guidance=1.0, **options)
    finally:
        hook.remove()
    return seen[0]


# What is shown


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_painting_over_starts_from_the_image_in_the_noise_of_a_later_time(strength: float) -> None:
    """x_t = alpha x_0 + sigma eps of the last so many of the times, eps the seed's own noise (SDEdit)."""
    it, picture = stage(base(steps=4)), drawing()
    found = first_input(it, image=picture, strength=strength)
    times = it.config.times.times(it.schedule, 4, it.config.sampler)
    alpha, sigma = it.schedule.alpha_sigma(times[4 - int(4 * strength)])
    noise = NoiseSource([7], (3, 8, 8), torch.device("cpu")).draw()
    torch.testing.assert_close(found, (alpha * to_tensor([picture]) + sigma * noise).float(), rtol=1e-5, atol=1e-5)


def test_a_cascade_makes_the_image_small_for_its_base_and_enlarges_that(model: Cascade) -> None:
    picture = drawing(32, 32)
    result = model.generate(PROMPTS, seeds=SEEDS, image=picture, strength=0.7, steps=4, keep=True)
    small = downsample(to_tensor([picture]), (8, 8))
    alone = model.stage(0).generate(PROMPTS, seeds=SEEDS, image=small, strength=0.7, steps=4)
    assert equal(result.stages[0], alone.images)
    onward = model.generate(PROMPTS, seeds=SEEDS, low=alone.images, steps=4)
    assert equal(result.images, onward.images)


def test_outside_the_mask_every_stage_keeps_the_image_at_its_size(model: Cascade) -> None:
    picture, hole = drawing(32, 32, seed=4), mask()
    whole, painted = to_tensor([picture]), torch.from_numpy(np.asarray(hole) > 0)
    result = model.generate(PROMPTS, seeds=SEEDS, image=picture, mask=hole, keep=True)
    for images in result.stages:
        side = images[0].width
        known = downsample(whole, (side, side))[0]  # (3, side, side)
        touched = painted.float().reshape(side, 32 // side, side, 32 // side).amax((1, 3)) > 0
        for image in images:
            made = to_tensor([image])[0]
            apart = (made - known).abs().amax(0)
            assert apart[~touched].max() < 1.01 / 255 and apart[touched].max() > 0.2
    assert np.abs(arrays(result)[0] - arrays(result)[1]).max() > 1  # each seed its own


def test_what_is_known_is_shown_with_noise_from_the_second_step_on() -> None:
    """Of the seed's own noise, at the time of the step; what is painted is as the sampler has it."""
    it, picture, hole = stage(base(steps=3, sampler="ddim")), drawing(), mask(8, 8, left=4)
    seen: list[Tensor] = []
    it.network.register_forward_pre_hook(lambda network, inputs: seen.append(inputs[0].clone()))
    it.generate("red left", seeds=[7], guidance=1.0, image=picture, mask=hole)
    noise = NoiseSource([7], (3, 8, 8), torch.device("cpu")).draw()
    known = torch.from_numpy(np.asarray(hole) == 0).expand(3, 8, 8)
    for x, time in zip(seen[1:], it.config.times.times(it.schedule, 3, "ddim")[1:], strict=False):
        alpha, sigma = it.schedule.alpha_sigma(time)
        wanted = (alpha * to_tensor([picture]) + sigma * noise).float()[0]
        torch.testing.assert_close(x[0][known], wanted[known], rtol=1e-5, atol=1e-5)
        assert (x[0] - wanted)[~known].abs().max() > 0.05


# What is promised


@pytest.mark.parametrize("options", [{"strength": 0.7}, {"mask": mask()}, {"mask": mask(), "strength": 0.7}])
def test_a_seed_gives_its_image_alone_and_in_any_company(model: Cascade, options: dict[str, Any]) -> None:
    pictures = [drawing(32, 32, seed) for seed in range(2)]
    together = model.generate(PROMPTS, seeds=SEEDS, image=pictures, **options)
    for i in range(2):
        alone = model.generate(PROMPTS[i], seeds=[SEEDS[i]], image=pictures[i], **options)
        assert close(alone.images[0], together.images[i])


def test_the_metadata_and_the_image_are_enough_to_make_it_again(model: Cascade) -> None:
    given: dict[str, Any] = {"image": drawing(48, 32), "mask": mask(48, 32)}
    result = model.generate(PROMPTS, seeds=SEEDS, strength=0.7, **given)
    for image, row in zip(result.images, json.loads(json.dumps(result.metadata)), strict=True):
        assert image.size == (48, 32) and row["size"] == [48, 32]
        assert "sha256" in row["image"] and "sha256" in row["mask"] and row["strength"] == 0.7
        again = model.generate(row["prompt"], seeds=[row["seed"]], strength=row["strength"], **given)
        assert close(again.images[0], image)
    assert not {"image", "mask", "strength"} & set(model.generate(CAPTIONS[0]).metadata[0])


def test_steps_that_are_not_taken_are_not_counted(model: Cascade) -> None:
    seen: list[tuple[int, int]] = []
    model.generate(
        "red left",
        image=drawing(32, 32),
        strength=0.5,
        steps=4,
        callback=lambda step, steps, x0: seen.append((step, steps)),
    )
    assert seen == [(step, 2 + 4 + 4) for step in range(10)]


def test_an_image_needs_no_words(model: Cascade) -> None:
    """Without words both conditions are alike: guidance has nothing to do, and the null text is what is read."""
    free = model.generate("", image=drawing(32, 32), guidance=1.0)
    assert close(free.images[0], model.generate(" ", image=drawing(32, 32), guidance=9.0).images[0])
    assert free.metadata[0]["prompt"] == ""
    assert not close(free.images[0], model.generate("red left", image=drawing(32, 32), guidance=1.0).images[0])
    with pytest.raises(UserError, match="a prompt is empty"):
        model.generate("")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"strength": 0.5}, "strength is for an image to start from"),
        ({"image": drawing(32, 32), "low": drawing()}, "stage 8-16 enlarges an image and starts from no other"),
        ({"image": drawing(32, 32), "strength": 0.2}, "strength 0.2 of 3 steps leaves none to take"),
        ({"image": drawing(32, 32), "mask": Image.new("L", (32, 32))}, "the mask is black"),
        ({"image": torch.zeros(1, 3, 24, 24)}, "multiples of 16"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(model: Cascade, given: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        model.generate("red left", **given)


def test_a_stage_that_enlarges_paints_no_image_over() -> None:
    with pytest.raises(UserError, match="stage 8-16 enlarges an image and starts from no other: give it as --low-res"):
        stage(enlarging(), text=Words()).generate("red left", image=drawing(16, 16))
