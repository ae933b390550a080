"""Encoded images to square uint8 arrays."""

from __future__ import annotations

import numpy as np
from PIL import Image

from diptych.core.image_files import open_encoded, upright
from diptych.data import jpeg
from diptych.data.pixels import Region, array_of
from diptych.data.quarantine import BrokenExample, broken_image

MAX_ASPECT_RATIO = 16
"""Largest ratio of the sides of an image: a strip of one pixel by thousands would be enlarged to gigabytes."""
MAX_PIXELS = 2**26
"""Most pixels of an image after its shorter side is resized."""


def decode(data: bytes, size: int | tuple[int, int], square: bool = True) -> np.ndarray:
    """`decode_image` as an array, uint8 (H, W, 3)."""
    return array_of(decode_image(data, size, square))


def decode_image(data: bytes, size: int | tuple[int, int], square: bool = True) -> Region:
    """An RGB image of `size` x `size` pixels: EXIF turned, alpha on white, shorter side resized, centre cropped; all
    of it, with a shorter side of `size`, where it is not to be `square`; of (height, width) for such a `size`.

    Raises `BrokenExample`: an image that cannot be decoded, more pixels than Pillow's limit (before any is decoded), a
    longer side of more than 16 times the shorter, or more than 67 million pixels once resized. A `MemoryError` passes:
    it says nothing about the image.
    """
    high, wide = (size, size) if isinstance(size, int) else size
    try:
        if (image := plain(data, (wide, high))) is not None:
            return covered(image, (wide, high), square)
        with open_encoded(data) as image:
            check_shape(image.size, max(high, wide))
            image.decodermaxblock = max(image.decodermaxblock, len(data))  # all at once
            image.draft("RGB", (wide, high))  # JPEG: decode at a fraction where that is still large enough
            return covered(upright(image, copy=False), (wide, high), square)
    except (MemoryError, BrokenExample):
        raise
    except Exception as error:  # whatever a decoder raises on a broken file
        raise broken_image(error) from None


def plain(data: bytes, least: tuple[int, int]) -> Image.Image | None:
    """An image that `jpeg` can decode; none for any other, which is not one or is damaged perhaps."""
    sides, most = jpeg.plain_size(data), Image.MAX_IMAGE_PIXELS
    if sides is None or (most is not None and sides[0] * sides[1] > most):
        return None
    check_shape(sides, max(least))
    return jpeg.decoded(data, sides, least)


def check_shape(sides: tuple[int, int], size: int) -> None:
    """Raises `BrokenExample` for width and height that would take too much once the shorter is resized to `size`."""
    short, long = sorted(sides)
    if long > MAX_ASPECT_RATIO * short:
        raise BrokenExample(
            f"{sides[0]} x {sides[1]} pixels: its longer side is more than {MAX_ASPECT_RATIO} times the shorter"
        )
    if size * max(size, round(size * long / short)) > MAX_PIXELS:
        raise BrokenExample(f"{sides[0]} x {sides[1]} pixels: more than {MAX_PIXELS:,} once resized to {size}")


def covered(image: Image.Image, least: tuple[int, int], crop: bool = True) -> Region:
    """Resized (Lanczos, antialiased) to the smallest that is as wide and as high as `least`, then cropped to it at the
    centre, or not."""
    (width, height), (across, down) = image.size, least
    scale = max(across / width, down / height)
    wide, high = max(across, round(width * scale)), max(down, round(height * scale))
    if (wide, high) != (width, height):  # Pillow would copy it
        image = image.resize((wide, high), Image.Resampling.LANCZOS, reducing_gap=3.0)
    left, top = ((wide - across) // 2, (high - down) // 2) if crop else (0, 0)
    return Region(image, left, top, *(least if crop else (wide, high)))
