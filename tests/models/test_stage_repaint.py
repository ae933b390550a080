"""Stages that are trained to repaint: told the rest of an image and the mask in four more channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from diptych.conditioning.concat_config import MaskConfig
from diptych.conditioning.masks import sample_masks
from diptych.core.errors import UserError
from diptych.core.images import to_tensor
from diptych.core.random import GeneratorDraws
from diptych.models.cascade import Cascade
from diptych.models.pixel_diffusion import PixelDiffusion
from diptych.training.init_from import init_pixel
from tests.models.latents import arrays
from tests.models.stages import MIDDLE, SMALL, Words, attentive, base, drawing, enlarging, stage, toy_batch, unet

MASKS = MaskConfig()
BASE = base(network=attentive(concat_channels=4, augmented=False), masks=MASKS)
LARGE = enlarging(network=unet(concat_channels=7), masks=MASKS)


def shown(model: PixelDiffusion) -> list[Tensor]:
    """What the network will be shown beside the noisy image, once a step."""
    seen: list[Tensor] = []
    model.network.register_forward_pre_hook(lambda net, args, kwargs: seen.append(kwargs["concat"]), with_kwargs=True)
    return seen


def mask(side: int) -> Tensor:
    """The right half is to be painted."""
    return (torch.arange(side) >= side // 2).float().expand(1, 1, side, side).contiguous()


@pytest.mark.parametrize("config", [BASE, LARGE], ids=["base", "enlarging"])
def test_training_shows_the_rest_and_the_mask(config: Any) -> None:
    model, seeds = stage(config), [3, 1, 4]
    batch = toy_batch(seeds, config.size)
    x0, cond = model.prepare(batch, GeneratorDraws(batch["seed"]), torch.zeros(3, dtype=torch.bool))
    rest, masks = cond["concat"][:, -4:-1], cond["concat"][:, -1:]
    assert torch.equal(masks, sample_masks(MASKS, (config.size, config.size), batch["seed"]))
    assert torch.equal(rest, x0 * (1 - masks)) and 0 < masks.mean() < 1
    alone = toy_batch([1], config.size)
    _, other = model.prepare(alone, GeneratorDraws(alone["seed"]), torch.zeros(1, dtype=torch.bool))
    assert torch.allclose(other["concat"][0], cond["concat"][1], atol=1e-6)
    made = model.sample_from_images(x0, batch["caption"], seeds)
    assert made[1].shape == x0.shape
    if config.low_size is None:
        assert torch.equal(made[0], x0 * (1 - sample_masks(MASKS, x0.shape[-2:], batch["seed"])))


def test_inpainting_stage_gets_the_masked_image_as_concat() -> None:
    model, image = stage(BASE), drawing(SMALL, SMALL)
    seen = shown(model)
    result = model.generate("red", image=image, mask=mask(SMALL), steps=2)
    known = to_tensor([image]) * (1 - mask(SMALL))
    assert all(torch.equal(one, torch.cat([known, mask(SMALL)], 1).expand_as(one)) for one in seen)
    (before,), (after,) = np.asarray(image)[None], arrays(result)
    half = SMALL // 2
    assert np.array_equal(after[:, :half], before[:, :half]) and not np.array_equal(after[:, half:], before[:, half:])
    with pytest.raises(UserError, match="this model inpaints: give it an image and a mask"):
        model.generate("red")


def test_a_stage_that_enlarges_alone_is_shown_nothing_of_the_large_image() -> None:
    model = stage(LARGE)
    seen = shown(model)
    model.generate("red", low=drawing(), steps=1)
    assert not seen[0][:, 3:6].any() and seen[0][:, 6:].eq(1).all()


def test_inpainting_cascade_resizes_the_masked_image_for_every_stage() -> None:
    words = Words()
    cascade = Cascade.of([stage(BASE, 1, words), stage(LARGE, 2, words)])
    seen = shown(cascade.stage(1))
    cascade.generate("red", image=drawing(MIDDLE, MIDDLE), mask=mask(MIDDLE), steps=2)
    assert torch.equal(seen[0][:1, 6:], mask(MIDDLE)) and seen[0][:, 3:6, :, : MIDDLE // 2].any()


@torch.no_grad()
def test_it_starts_as_if_the_rest_were_not_there() -> None:
    plain, model = stage(base()), PixelDiffusion(BASE, Words())
    init_pixel(model, plain, "plain")
    x, time = torch.randn(2, 3, SMALL, SMALL, generator=torch.Generator().manual_seed(0)), torch.tensor([3.0, 700.0])
    cond = plain.cond(plain.text.encode(["a red one", "blue"]))
    rest = torch.ones(2, 4, SMALL, SMALL)
    assert torch.equal(model.eval().network(x, time, concat=rest, **cond), plain.network(x, time, **cond))
    other = stage(base(network=attentive(concat_channels=0, augmented=False, channels=12, head_width=12)))
    with pytest.raises(UserError, match="tensors of this U-Net only"):
        init_pixel(PixelDiffusion(BASE, Words()), other, "other")


def test_the_network_has_room_for_it() -> None:
    with pytest.raises(UserError, match=r"network\.concat_channels must be 4"):
        base(masks=MASKS)
