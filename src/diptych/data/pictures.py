"""Encoded pictures to square uint8 arrays."""

from __future__ import annotations

import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP")


def decode(data: bytes, size: int) -> np.ndarray:
    """A square RGB picture, uint8 (size, size, 3): EXIF turned, alpha on white, shorter side resized, centre cropped.

    Raises an exception of any kind that Pillow has for broken pictures; its limit on pixels is kept, and where it would
    only warn of a decompression bomb this raises.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            opened = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError:  # its own words name a place in memory
            raise ValueError("not a PNG, JPEG or WebP picture") from None
        with opened as picture:
            picture.draft("RGB", (size, size))  # JPEG: decode at a fraction where that is still large enough
            picture.load()
            picture = ImageOps.exif_transpose(picture)
            return np.asarray(fit(flatten(picture), size))


def flatten(picture: Image.Image) -> Image.Image:
    """Any mode to RGB, transparent parts on white."""
    if picture.mode.startswith("I;16"):  # Pillow's own conversion clips 16 bits to white
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")


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
