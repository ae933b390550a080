"""Encoded pictures to square uint8 arrays."""

from __future__ import annotations

import numpy as np
from PIL import Image

from diptych.pictures import opened, upright


def decode(data: bytes, size: int, square: bool = True) -> np.ndarray:
    """An RGB picture, uint8 (size, size, 3): EXIF turned, alpha on white, shorter side resized, centre cropped; all of
    it, (H, W, 3) with a shorter side of `size`, where it is not to be `square`.

    Raises an exception of any kind that Pillow has for broken pictures; its limit on pixels is kept, and where it would
    only warn of a decompression bomb this raises.
    """
    with opened(data) as picture:
        picture.draft("RGB", (size, size))  # JPEG: decode at a fraction where that is still large enough
        return np.asarray(fit(upright(picture), size, square))


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
