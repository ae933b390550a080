"""Encoded pictures to square uint8 arrays."""

from __future__ import annotations

import numpy as np
from PIL import Image

from diptych.core.image_files import opened, upright
from diptych.data.quarantine import Broken

MOST_LONG = 16
"""A picture that is trained on may be so many times as long as it is wide: a strip of one pixel by thousands would be
enlarged to gigabytes."""
MOST_PIXELS = 2**26
"""Pixels of a picture after its shorter side is resized."""


def decode(data: bytes, size: int, square: bool = True) -> np.ndarray:
    """An RGB picture, uint8 (size, size, 3): EXIF turned, alpha on white, shorter side resized, centre cropped; all of
    it, (H, W, 3) with a shorter side of `size`, where it is not to be `square`.

    Raises `Broken`: a picture that cannot be decoded, more pixels than Pillow's limit (before any is decoded), a
    longer side of more than 16 times the shorter, or more than 67 million pixels once resized. A `MemoryError` passes:
    it says nothing about the picture.
    """
    try:
        with opened(data) as picture:
            check_shape(picture.size, size)
            picture.draft("RGB", (size, size))  # JPEG: decode at a fraction where that is still large enough
            return np.asarray(fit(upright(picture), size, square))
    except (MemoryError, Broken):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise Broken(f"more than {Image.MAX_IMAGE_PIXELS or 0:,} pixels") from None
    except Exception as error:  # whatever a decoder raises on a broken file
        said = " ".join(str(error).split())[:120]
        raise Broken(said if said.startswith("not a ") else f"a damaged picture ({said})") from None


def check_shape(sides: tuple[int, int], size: int) -> None:
    """Raises `Broken` for width and height that would take too much once the shorter is resized to `size`."""
    short, long = sorted(sides)
    if long > MOST_LONG * short:
        raise Broken(f"{sides[0]} x {sides[1]} pixels: its longer side is more than {MOST_LONG} times the shorter")
    if size * max(size, round(size * long / short)) > MOST_PIXELS:
        raise Broken(f"{sides[0]} x {sides[1]} pixels: more than {MOST_PIXELS:,} once resized to {size}")


def fit(picture: Image.Image, size: int, square: bool = True) -> Image.Image:
    """Resize the shorter side to `size` (Lanczos, antialiased), then crop the centre if it is to be `square`."""
    width, height = picture.size
    if (width, height) == (size, size):
        return picture
    scale = size / min(width, height)
    wide, high = max(size, round(width * scale)), max(size, round(height * scale))
    picture = picture.resize((wide, high), Image.Resampling.LANCZOS, reducing_gap=3.0)
    if not square:
        return picture
    left, top = (wide - size) // 2, (high - size) // 2
    return picture.crop((left, top, left + size, top + size))
