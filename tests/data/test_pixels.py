"""Pixels on their way into a batch: the same whether NumPy or Pillow cuts and mirrors them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageFile

from diptych.data.augment import augment_image, augment_into
from diptych.data.dataset_config import DataConfig
from diptych.data.decode import decode, decode_image
from diptych.data.pixels import Region, array_of, cut, write
from diptych.data.quarantine import BrokenExample

NOISE = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)


def test_a_region_is_cut_and_mirrored_as_an_array_is() -> None:
    region = Region.whole(Image.fromarray(NOISE))
    for corner, size in (((0, 0), (53, 37)), ((5, 3), (16, 8)), ((52, 36), (1, 1)), ((1, 2), (7, 9))):
        part, wanted = cut(cut(region, (0, 0), (53, 37)), corner, size), array_of(cut(NOISE, corner, size))
        for mirrored in (False, True):  # sizes that are a multiple of eight bytes, and others
            for source in (part, wanted):
                out = np.zeros_like(wanted, order="C")
                write(out, source, mirrored)
                np.testing.assert_array_equal(out, wanted[:, ::-1] if mirrored else wanted)
        np.testing.assert_array_equal(array_of(part), wanted)


def test_pixels_are_not_written_to_a_copy() -> None:
    with pytest.raises(ValueError, match="not contiguous"):
        write(np.zeros((53, 37, 3), np.uint8).transpose(1, 0, 2), Region.whole(Image.fromarray(NOISE)), False)


@pytest.mark.parametrize(
    "config",
    [
        DataConfig(size=32, flip=0.5),
        DataConfig(size=32, crop=24, flip=0.5),
        DataConfig(size=24, max_size=32, crop=24, flip=0.5),
        DataConfig(size=27, center_shift=0.3, flip=0.5),
    ],
    ids=lambda config: f"{config.crop} {config.max_size} {config.center_shift}",
)
def test_training_crops_of_decoded_images_are_those_of_arrays(config: DataConfig) -> None:
    file, sides = io.BytesIO(), []
    Image.fromarray(NOISE).save(file, "PNG")
    decoded = decode_image(file.getvalue(), config.resized, square=not config.drawn)
    for seed in range(24):
        out = np.zeros((config.side, config.side, 3), np.uint8)
        augment_into(out, decoded, config, seed)
        wanted = augment_image(decode(file.getvalue(), config.resized, square=not config.drawn), config, seed)
        np.testing.assert_array_equal(out, wanted)
        sides.append(out.tobytes())
    assert len(set(sides)) > 1


@pytest.mark.parametrize("progressive", (False, True))
def test_a_file_of_several_blocks_decodes_and_fails_as_pillow_reads_it(progressive: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", quality=95, progressive=progressive)
    whole = file.getvalue()
    assert len(whole) > 2 * ImageFile.MAXBLOCK
    np.testing.assert_array_equal(decode(whole, 400), np.asarray(Image.open(io.BytesIO(whole))))
    for size in np.linspace(700, len(whole) - 3, 12).astype(int).tolist():
        with pytest.raises(OSError) as expected:
            Image.open(io.BytesIO(whole[:size])).load()
        with pytest.raises(BrokenExample) as found:
            decode(whole[:size], 400)
        assert str(found.value) == f"a damaged image ({expected.value})"
