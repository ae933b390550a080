"""Encoded images to square uint8 arrays."""

from __future__ import annotations

import numpy as np
from PIL import Image

from diptych.core.image_files import opened, upright
from diptych.data.quarantine import BrokenExample

MAX_ASPECT_RATIO = 16
"""Largest ratio of the sides of an image: a strip of one pixel by thousands would be enlarged to gigabytes."""
MAX_PIXELS = 2**26
"""Most pixels of an image after its shorter side is resized."""


def decode(data: bytes, size: int, square: bool = True) -> np.ndarray:
    """An RGB image, uint8 (size, size, 3): EXIF turned, alpha on white, shorter side resized, centre cropped; all of
    it, (H, W, 3) with a shorter side of `size`, where it is not to be `square`.

    Raises `BrokenExample`: an image that cannot be decoded, more pixels than Pillow's limit (before any is decoded), a
    longer side of more than 16 times the shorter, or more than 67 million pixels once resized. A `MemoryError` passes:
    it says nothing about the image.
    """
    try:
        with opened(data) as image:
            check_shape(image.size, size)
            image.draft("RGB", (size, size))  # JPEG: decode at a fraction where that is still large enough
            return np.asarray(resize_and_crop(upright(image), size, square))
    except (MemoryError, BrokenExample):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BrokenExample(f"more than {Image.MAX_IMAGE_PIXELS or 0:,} pixels") from None
    except Exception as error:  # whatever a decoder raises on a broken file
        reason = " ".join(str(error).split())[:120]
        raise BrokenExample(reason if reason.startswith("not a ") else f"a damaged image ({reason})") from None


def check_shape(sides: tuple[int, int], size: int) -> None:
    """Raises `BrokenExample` for width and height that would take too much once the shorter is resized to `size`."""
    short, long = sorted(sides)
    if long > MAX_ASPECT_RATIO * short:
        raise BrokenExample(
            f"{sides[0]} x {sides[1]} pixels: its longer side is more than {MAX_ASPECT_RATIO} times the shorter"
        )
    if size * max(size, round(size * long / short)) > MAX_PIXELS:
        raise BrokenExample(f"{sides[0]} x {sides[1]} pixels: more than {MAX_PIXELS:,} once resized to {size}")


def resize_and_crop(image: Image.Image, size: int, square: bool = True) -> Image.Image:
    """Resize the shorter side to `size` (Lanczos, antialiased), then crop the centre if it is to be `square`."""
    width, height = image.size
    if (width, height) == (size, size):
        return image
    scale = size / min(width, height)
    wide, high = max(size, round(width * scale)), max(size, round(height * scale))
    image = image.resize((wide, high), Image.Resampling.LANCZOS, reducing_gap=3.0)
    if not square:
        return image
    left, top = (wide - size) // 2, (high - size) // 2
    return image.crop((left, top, left + size, top + size))
