"""The low-resolution image of a stage: of any shape and kind, enlarged whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.core.images import to_images
from diptych.models.pixel_diffusion import PixelDiffusion
from tests.models.latents import same_image
from tests.models.stages import drawing, enlarging, stage, unet


@pytest.fixture(scope="module")
def enlarger() -> PixelDiffusion:
    return stage(enlarging())


@pytest.mark.parametrize(("size", "made"), [((8, 8), (16, 16)), ((12, 8), (24, 16)), ((8, 24), (16, 48))])
def test_images_of_other_shapes_are_enlarged_whole(enlarger: PixelDiffusion, size: Any, made: Any) -> None:
    low = drawing(*size)
    result = enlarger.generate(["a", "b"], low=low)
    assert [image.size for image in result.images] == [made] * 2 and result.metadata[0]["size"] == list(made)
    assert same_image(enlarger.generate("b", seeds=[1], low=low).images[0], result.images[1])


def shown_low(model: PixelDiffusion, low: Any) -> np.ndarray:
    """The image that the stage takes a given one for, (H, W, 3)."""
    seen: list[torch.Tensor] = []
    enlarged, model.enlarged = model.enlarged, lambda low, *rest: (seen.append(low), enlarged(low, *rest))[1]  # type: ignore
    try:
        model.generate("a", low=low, steps=1)
    finally:
        model.enlarged = enlarged
    return np.asarray(to_images(seen[0])[0])


def test_whatever_image_comes_is_made_what_the_stage_reads(enlarger: PixelDiffusion, tmp_path: Path) -> None:
    image = drawing(8, 8)
    exact = np.asarray(image)
    image.save(tmp_path / "low.png")
    for one in (image, tmp_path / "low.png", str(tmp_path / "low.png"), [image], (tmp_path / "low.png",)):
        assert np.array_equal(shown_low(enlarger, one), exact)
    blocks = image.resize((64, 64), Image.Resampling.NEAREST)
    assert np.array_equal(shown_low(enlarger, blocks), exact), "means of whole boxes"
    grey = image.convert("L")
    assert np.array_equal(shown_low(enlarger, grey), np.asarray(grey.convert("RGB")))
    clear = image.copy()
    clear.putalpha(Image.fromarray(np.array([[0] * 4 + [255] * 4] * 8, dtype=np.uint8)))
    shown = shown_low(enlarger, clear)
    assert (shown[:, :4] == 255).all() and np.array_equal(shown[:, 4:], exact[:, 4:]), "on white"
    assert shown_low(enlarger, drawing(800, 600)).shape == (8, 10, 3), "the shorter side at 8, the other even"
    assert shown_low(enlarger, drawing(9, 33)).shape == (30, 8, 3)


@pytest.mark.parametrize(("factor", "unit"), [(2, 4), (3, 8), (4, 2), (6, 4)])
def test_low_resolution_images_fit_any_factor(factor: int, unit: int) -> None:
    model = stage(enlarging(8, size=8 * factor, network=unet(multipliers=(1, 1, 1), blocks=(1, 1, 1))))
    assert model.config.unit == unit
    result = model.generate("a", low=drawing(8, 13), steps=1)
    assert result.images[0].size[0] == 8 * factor and result.images[0].size[1] % model.config.multiple == 0
