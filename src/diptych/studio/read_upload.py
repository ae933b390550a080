"""Images that clients send, decoded with care: known formats alone, sizes known before any pixel is."""

from __future__ import annotations

import threading

from PIL import Image

from diptych.core.errors import UserError
from diptych.core.image_files import LEAST, MOST, opened, upright
from diptych.studio.limits import FieldError

PIXELS = 4096 * 4096
ASPECT = 64
"""Largest ratio of the sides of what is decoded."""
SCAN, SCANS = b"\xff\xda", 100
"""What each scan of a JPEG begins with, and how many there may be: each is decoded over the whole image."""
DECODING = threading.BoundedSemaphore(2)
"""Of large images few are decoded at a time, for the sake of memory."""


def read_upload(field: str, data: bytes) -> Image.Image:
    """An image in the bytes of a PNG, JPEG or WebP, as RGB, EXIF turned. Raises a `FieldError` for anything else."""
    if not data:
        raise FieldError(field, "there is no image in the request")
    if data.startswith(b"\xff\xd8") and data.count(SCAN) > SCANS:
        raise FieldError(field, f"a JPEG of more than {SCANS} scans: save it again")
    try:
        with DECODING, opened(data) as image:
            check_size(field, *image.size)
            return upright(image)
    except UserError:
        raise
    except Exception as error:  # of many kinds: whatever a decoder raises
        raise FieldError(field, f"not a PNG, JPEG or WebP image, or a damaged one ({type(error).__name__})") from None


def check_size(field: str, width: int, height: int) -> None:
    """Raise a `FieldError` for sides that are too small, too large or too unlike."""
    if min(width, height) < LEAST or max(width, height) > MOST or width * height > PIXELS:
        raise FieldError(field, f"{width} x {height} pixels: give an image of {LEAST} to {MOST} pixels a side")
    if max(width, height) > ASPECT * min(width, height):
        raise FieldError(field, f"{width} x {height} pixels are too unlike: at most {ASPECT} to 1")
