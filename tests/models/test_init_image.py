"""The image that a new one is made from: how it is read, what of it is kept, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.core.errors import UserError
from diptych.core.images import to_images
from diptych.models.init_image import InitImage, read_init_image
from diptych.models.latent_config import LatentConfig
from diptych.models.options import LatentOptions, read_options
from tests.models.latents import config

SIZE, FACTOR = 16, 2
"""Of the tiny model: the side that it was trained on, and of a latent's place, of which sides are multiples."""


def picture(width: int = SIZE, height: int = SIZE, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def mask(width: int = SIZE, height: int = SIZE) -> Image.Image:
    """White in its right half."""
    values = np.zeros((height, width), np.uint8)
    values[:, width // 2 :] = 255
    return Image.fromarray(values)


def values(image: Image.Image) -> torch.Tensor:
    """(H, W, 3), whole numbers."""
    return torch.from_numpy(np.asarray(image).astype(int))


def found(count: int = 1, steps: int = 10, model: LatentConfig | None = None, **given: Any) -> InitImage | None:
    return read_init_image(model or config(), count, steps, read_options(LatentOptions, given), factor=FACTOR)


def read(*positional: Any, **given: Any) -> InitImage:
    original = found(*positional, **{"image": picture(), **given})
    assert original is not None
    return original


def repainting() -> LatentConfig:
    """Of a model that was trained to repaint."""
    return config(unet=config().unet.override(["concat_channels=5"]))


# What is read


def test_nothing_is_read_where_nothing_is_given() -> None:
    assert found() is None and found(size=(32, 16)) is None


def test_an_image_of_the_right_size_is_left_as_it_is(tmp_path: Path) -> None:
    original = read()
    assert original.size == [16, 16] and original.mask is None and original.strength == 0.8 and not original.from_noise
    assert torch.equal(values(to_images(original.images)[0]), values(picture()))
    picture().save(tmp_path / "p.png")
    for given in (tmp_path / "p.png", str(tmp_path / "p.png"), [picture()], original.images, original.images * 1.0):
        assert torch.equal(read(image=given).images, original.images)
    assert original.metadata() == {"strength": 0.8}


def test_with_a_mask_all_is_painted_anew_unless_it_is_said() -> None:
    original = read(mask=mask())
    assert original.strength == 1 and original.from_noise
    assert original.metadata() == {"strength": 1.0, "paste": False}
    assert not read(mask=mask(), strength=0.5).from_noise and not read(strength=1).from_noise
    assert read(mask=mask(), paste=True, strength=0.5).metadata()["paste"] is True


@pytest.mark.parametrize(
    ("size", "sides"),
    [((32, 32), [16, 16]), ((40, 20), [32, 16]), ((20, 40), [16, 32]), ((16, 17), [16, 16]), ((8, 32), [16, 64])],
)
def test_an_image_keeps_its_shape(size: tuple[int, int], sides: list[int]) -> None:
    """Its shorter side is brought to that of training, the longer one to the nearest multiple."""
    original = read(image=picture(*size), mask=mask(*size))
    assert original.size == sides and original.images.shape[2:] == original.images.shape[:1:-1][::-1]
    assert original.mask is not None and original.mask.shape == (1, 1, sides[1], sides[0])
    assert original.mask.mean() == pytest.approx(0.5, abs=0.03)


def test_what_does_not_come_out_even_is_cropped_and_said() -> None:
    """To the size at which least is lost; what is left keeps its shape, and the mask stays where it was."""
    wide = Image.new("L", (365, 320))
    wide.paste(255, (0, 0, 40, 320))
    original = read(image=wide.convert("RGB"), mask=wide)
    width, height = original.size
    assert abs(width / height / (365 / 320) - 1) < 0.02 and original.metadata()["fit"] == "crop"
    assert original.mask is not None and torch.equal(original.mask > 0, original.images[:, :1] > 0)
    assert "fit" not in read(image=picture(40, 20)).metadata(), "its shape is a size"


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
def test_init_image_and_mask_are_fitted_by_the_fit_option(fit: str) -> None:
    """A band of the image's middle half and the mask of it end up in one place."""
    values = np.zeros((32, 64), np.uint8)
    values[:, 16:48] = 255
    band = Image.fromarray(values)
    original = read(image=band.convert("RGB"), mask=band, size=(32, 32), fit=fit)
    assert original.size == [32, 32] and original.metadata()["fit"] == fit and original.mask is not None
    rows, columns = original.mask[0, 0].any(1).sum(), original.mask[0, 0].any(0).sum()
    assert (int(rows), int(columns)) == {"crop": (32, 32), "pad": (16, 16), "stretch": (32, 16)}[fit]
    shown = original.images[0, 0] > 0
    if fit == "pad":
        assert shown[:, 16].all(), "edge pixels go on where there was nothing, and are not painted"
        shown[:8], shown[24:] = False, False
    assert torch.equal(shown, original.mask[0, 0] > 0)


def test_a_size_that_is_asked_for_is_given() -> None:
    assert read(image=picture(40, 20), size=(24, 12)).size == [24, 12]
    assert read(image=picture(41, 20), size=(24, 12)).size == [24, 12], "that one pixel is less than a multiple"


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I;16"])
def test_any_mode_is_read_as_it_looks(mode: str) -> None:
    """Grey is grey in all three colours, 16 bits become 8, and what is transparent is white."""
    grey = Image.new("L", (SIZE, SIZE), 96 if mode != "1" else 255)
    shown = 255 if mode == "1" else 96
    if mode == "I;16":
        given = Image.fromarray(np.full((SIZE, SIZE), 96 * 256 + 3, np.uint16))
    else:
        given = grey.convert("RGB").convert(mode) if mode in ("CMYK", "RGBA") else grey.convert(mode)
    if mode in ("LA", "RGBA"):
        given.putalpha(Image.fromarray(np.repeat(np.uint8([[255] * 8 + [0] * 8]), SIZE, 0)))
    shown_now = values(to_images(read(image=given).images)[0])
    left, right = shown_now[:, :8], shown_now[:, 8:]
    assert (left == shown).all()
    assert (right == (255 if mode in ("LA", "RGBA") else shown)).all()


def test_each_prompt_may_have_an_image_and_a_mask_of_its_own() -> None:
    two = [picture(seed=0), picture(seed=1)]
    original = read(2, image=two, mask=[mask(), mask().rotate(180)])
    assert torch.equal(values(to_images(original.images)[1]), values(two[1]))
    assert original.mask is not None and torch.equal(original.mask[0], 1 - original.mask[1])
    assert read(2, image=two, mask=mask()).images.shape[0] == 2
    assert len(read(2, image=picture(), mask=[mask(), mask()]).images) == 1


def test_a_mask_is_white_from_the_middle_on() -> None:
    levels = Image.fromarray(np.repeat(np.uint8([[0] * 4 + [127] * 4 + [128] * 4 + [255] * 4]), SIZE, 0))
    wanted = torch.tensor([0.0] * 8 + [1.0] * 8).expand(1, 1, SIZE, SIZE)
    assert torch.equal(read(mask=levels).mask, wanted)  # type: ignore[arg-type]
    soft = torch.tensor([0.0, 0.49, 0.5, 1.0]).repeat_interleave(4).expand(1, 1, SIZE, SIZE)
    assert torch.equal(read(mask=soft).mask, wanted)  # type: ignore[arg-type]
    assert torch.equal(read(mask=mask(32, 32)).mask, wanted)  # type: ignore[arg-type]  # of another size
    assert torch.equal(read(mask=mask().convert("1")).mask, wanted)  # type: ignore[arg-type]


def test_what_is_transparent_of_a_mask_is_white(tmp_path: Path) -> None:
    """But not where that would mark everything: a white brush on a transparent layer means the brush."""
    layer = mask().convert("RGBA")
    layer.paste((0, 0, 0, 255), (0, 0, SIZE, SIZE))
    layer.paste((0, 0, 0, 0), (SIZE // 2, 0, SIZE, SIZE))
    assert torch.equal(read(mask=layer).mask, read(mask=mask()).mask)  # type: ignore[arg-type]
    brush = Image.new("RGBA", (SIZE, SIZE), (255, 255, 255, 0))
    brush.paste((255, 255, 255, 255), (SIZE // 2, 0, SIZE, SIZE))
    brush.save(tmp_path / "brush.png")
    for given in (brush, tmp_path / "brush.png", str(tmp_path / "brush.png"), [brush], brush.convert("LA")):
        with pytest.raises(UserError, match=r"white or transparent everywhere, .* counts as white: put it on black"):
            read(mask=given)
    for opaque in (Image.new("RGBA", (SIZE, SIZE), "white"), Image.new("L", (SIZE, SIZE), 255)):
        assert read(mask=opaque).mask.all(), "all of it, as it is said"  # type: ignore[union-attr]


def test_the_latents_mask_is_that_of_each_places_first_pixel() -> None:
    given = torch.zeros(1, 1, SIZE, SIZE)
    given[0, 0, 2, 4] = given[0, 0, 5, 5] = given[0, 0, 6, 7] = 1  # the latter two are no first pixels
    small = read(mask=given).latent_mask(FACTOR)
    assert small.shape == (1, 1, 8, 8) and small.sum() == 1 and small[0, 0, 1, 2] == 1
    assert torch.equal(small, given[..., ::FACTOR, ::FACTOR])


def test_what_is_pasted_is_exact() -> None:
    original = read(mask=mask(), paste=True)
    painted = torch.full((3, 3, SIZE, SIZE), 0.5)
    painted[..., :8] = torch.nan  # whatever is there
    shown = to_images(original.paste_into(painted))
    assert len(shown) == 3
    for one in shown:
        assert torch.equal(values(one)[:, :8], values(picture())[:, :8]) and (values(one)[:, 8:] == 191).all()
    assert read(mask=mask()).paste_into(painted) is painted


@pytest.mark.parametrize(("strength", "steps", "taken"), [(1, 10, 10), (0.8, 10, 8), (0.55, 10, 5), (0.5, 3, 1)])
def test_the_last_steps_are_taken(strength: float, steps: int, taken: int) -> None:
    times = torch.linspace(1, 0, steps + 1)
    left = read(1, steps, strength=strength).state(torch.zeros(1), None).remaining(times)
    assert len(left) == taken + 1 and torch.equal(left, times[steps - taken :])


# What is refused

BAD: list[tuple[dict[str, Any], str]] = [
    ({"image": None, "mask": mask()}, "mask is for an image to start from: give that as --image"),
    ({"image": None, "strength": 0.5}, "strength is for an image to start from"),
    ({"image": None, "paste": True}, "paste is for an image to start from"),
    ({"paste": True}, "paste puts back the pixels outside a mask: give the mask"),
    ({"strength": 0}, "strength must be more than 0 and at most 1, not 0"),
    ({"strength": -0.5}, "strength must be more than 0"),
    ({"strength": 1.01}, "at most 1, not 1.01"),
    ({"strength": float("nan")}, "strength must be a finite number, not nan"),
    ({"strength": float("inf")}, "strength must be a finite number"),
    ({"strength": "0.5"}, "strength must be a finite number, not '0.5'"),
    ({"strength": True}, "strength must be a finite number"),
    ({"strength": [0.5, 0.5]}, "strength must be a finite number"),
    ({"strength": 0.09}, "strength 0.09 of 10 steps leaves none to take: raise one of them"),
    ({"image": "nowhere.png"}, "nowhere.png is no file"),
    ({"image": np.zeros((16, 16, 3))}, "must be a path or one of Pillow's images, not of type ndarray"),
    ({"image": []}, "give one image for all 2 prompts or one for each, not 0"),
    ({"image": [picture()] * 3}, "give one image for all 2 prompts or one for each, not 3"),
    ({"image": [picture(), picture(32, 16)]}, "the images have different shapes: give them one at a time"),
    ({"image": picture(80, 16)}, "the image has 80 x 16 pixels: crop it, its longer side may be at most 4 times"),
    ({"image": picture(16, 7)}, "too small: 16 x 7 pixels"),
    ({"image": Image.new("F", (16, 16))}, "numbers of no known range"),
    ({"image": picture(40, 20), "size": (16, 16)}, "the image has 40 x 20 pixels: crop it to the shape of 16 x 16"),
    ({"image": None, "fit": "crop"}, "fit is for an image to start from"),
    ({"fit": "shrink"}, "unknown fit 'shrink': choose one of crop, pad, stretch"),
    ({"image": picture(80, 16), "fit": "crop"}, "its longer side may be at most 4 times"),
    ({"size": (17, 16)}, "multiples of 2"),
    ({"image": torch.zeros(3, 16, 16)}, r"image must be a tensor of shape \(1 or 2, 3, H, W\), not \(3, 16, 16\)"),
    ({"image": torch.zeros(3, 3, 16, 16)}, r"not \(3, 3, 16, 16\)"),
    ({"image": torch.zeros(1, 4, 16, 16)}, r"not \(1, 4, 16, 16\)"),
    ({"image": torch.full((1, 3, 16, 16), 200.0)}, "the values of image must lie between -1 and 1"),
    ({"image": torch.full((1, 3, 16, 16), torch.nan)}, "the values of image must lie between -1 and 1"),
    ({"image": torch.zeros(1, 3, 16, 17)}, "multiples of 2"),
    ({"image": torch.zeros(1, 3, 16, 0)}, "multiples of 2"),
    ({"image": torch.zeros(1, 3, 16, 16), "size": (32, 16)}, "the image has 16 x 16 values, and size is 32 x 16"),
    ({"mask": "nowhere.png"}, "nowhere.png is no file"),
    ({"mask": [mask()] * 3}, "give one mask for all 2 prompts or one for each, not 3"),
    ({"mask": mask(32, 16)}, "the mask has 32 x 16 pixels and the image 16 x 16: give a mask of the image's shape"),
    ({"mask": [mask(), mask(16, 32)]}, "the mask has 16 x 32 pixels and the image 16 x 16"),
    ({"mask": Image.new("L", (16, 16), 0)}, "the mask is black where it counts: it must be white where to generate"),
    ({"mask": Image.new("L", (16, 16), 127)}, "the mask is black"),
    ({"mask": [mask(), Image.new("L", (16, 16))]}, "the mask is black"),
    ({"mask": torch.zeros(1, 1, 16, 16)}, "the mask is black"),
    ({"mask": torch.zeros(1, 3, 16, 16)}, r"mask must be a tensor of shape \(1 or 2, 1, H, W\)"),
    ({"mask": torch.ones(1, 1, 8, 8)}, "the mask has 8 x 8 values, and the image 16 x 16"),
    ({"mask": torch.full((1, 1, 16, 16), 255.0)}, "the values of mask must lie between 0 and 1"),
    ({"mask": torch.full((1, 1, 16, 16), torch.nan)}, "the values of mask must lie between 0 and 1"),
]


@pytest.mark.parametrize(("bad", "says"), BAD, ids=[f"{next(iter(bad))}-{i}" for i, (bad, _) in enumerate(BAD)])
def test_what_makes_no_sense_is_one_line(bad: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        found(2, **{"image": picture(), **bad})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 250


@pytest.mark.parametrize("given", [{}, {"image": picture()}, {"mask": mask()}])
def test_a_model_that_repaints_asks_for_both(given: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"inpaints: give it an image and a mask .* --image"):
        found(model=repainting(), **given)
    assert read(model=repainting(), mask=mask()).from_noise


def test_a_place_without_a_first_pixel_is_marked_for_nothing() -> None:
    given = torch.zeros(1, 1, SIZE, SIZE)
    given[0, 0, 5, 5] = 1
    with pytest.raises(UserError, match="the mask is black"):
        read(mask=given)
