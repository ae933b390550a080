"""Encoded pictures to square uint8 arrays."""

from __future__ import annotations

import numpy as np
from PIL import Image

from diptych.pictures import opened, upright


def decode(data: bytes, size: int) -> np.ndarray:
    """A square RGB picture, uint8 (size, size, 3): EXIF turned, alpha on white, shorter side resized, centre cropped.

    Raises an exception of any kind that Pillow has for broken pictures; its limit on pixels is kept, and where it would
    only warn of a decompression bomb this raises.
    """
    with opened(data) as picture:
        picture.draft("RGB", (size, size))  # JPEG: decode at a fraction where that is still large enough
        return np.asarray(fit(upright(picture), size))


def fit(picture: Image.Image, size: int) -> Image.Image:
    """Resize the shorter side to `size` (Lanczos, antialiased), then crop the centre."""
    width, height = picture.size
    if (width, height) == (size, size):
        return picture
    scale = size / min(width, height)
    wide, high = max(size, round(width * scale)), max(size, round(height * scale))
    picture = picture.resize((wide, high), Image.Resampling.LANCZOS, reducing_gap=3.0)
    left, top = (wide - size) // 2, (high - size) // 2
    return picture.crop((left, top, left + size, top + size))
