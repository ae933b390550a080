"""PNGs of drawings: what Pillow reads from them is the image, to the bit, and nothing else is in them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from diptych.data.emoji.render import png_bytes


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (64, 33)])
@pytest.mark.parametrize("level", [1, 3])
def test_a_png_holds_the_image_and_no_metadata(mode: str, size: tuple[int, int], level: int) -> None:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], len(mode)), dtype=np.uint8)
    data = png_bytes(Image.fromarray(values), level)
    with Image.open(io.BytesIO(data)) as image:
        image.verify()  # all checksums
    with Image.open(io.BytesIO(data)) as image:
        assert (image.mode, image.size, image.info) == (mode, size, {})
        np.testing.assert_array_equal(np.asarray(image), values)
    assert data == png_bytes(Image.fromarray(values), level)


def test_drawings_are_compressed() -> None:
    flat = Image.new("RGB", (128, 128), (10, 200, 30))
    assert len(png_bytes(flat)) < 128 * 128 * 3 / 50
