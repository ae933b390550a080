"""Images in the requests of other APIs: parts of forms, base64 and data URLs, and masks by their transparency."""

from __future__ import annotations

import base64
import binascii
from typing import Any

from PIL import Image, ImageFilter, ImageOps

from diptych.core.errors import UserError
from diptych.core.image_files import opened
from diptych.models.exif import texts_of
from diptych.studio.limits import FieldError
from diptych.studio.read_upload import DECODING, check_size, read_upload

CUT = [0] * 128 + [255] * 128
"""A grey value -> black or white."""
MOST_BLUR = 64
"""Pixels of the deviation of a mask's blur."""


def from_base64(field: str, text: Any) -> bytes:
    """The bytes in base64, with or without `data:image/...;base64,` before it. No address is ever fetched."""
    if not isinstance(text, str):
        raise FieldError(field, f"{field} must be an image in base64")
    if text[:8].lower().startswith(("http:", "https:", "file:", "ftp:")):
        raise FieldError(field, f"{field} must be the image itself in base64: no address is fetched")
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise FieldError(field, f"{field} must be in base64: data:image/png;base64,...")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise FieldError(field, f"{field} is no valid base64") from None


def sent_texts(field: str, data: bytes) -> dict[str, str]:
    """The texts in an image, by the keys that they have in a PNG."""
    read_upload(field, data)
    with DECODING, opened(data) as image:
        image.load()  # texts may stand behind the pixels
        return texts_of(image)


def alpha_mask(field: str, data: bytes) -> Image.Image:
    """A mask as OpenAI's API has it, transparent where to generate, as diptych has it: white there.

    Half transparent counts as transparent. Raises a `FieldError` where nothing is transparent.
    """
    try:
        with DECODING, opened(data) as image:
            check_size(field, *image.size)
            if image.format == "JPEG":
                raise ValueError("a JPEG has no transparency")
            alpha = image.convert("RGBA").getchannel("A")
    except UserError:
        raise
    except Exception as error:  # of many kinds: whatever a decoder raises
        raise FieldError(field, f"the mask must be a PNG with transparency ({type(error).__name__})") from None
    mask = ImageOps.invert(alpha).point(CUT)
    if mask.getextrema()[1] == 0:
        raise FieldError(field, "nothing of the mask is transparent: its transparent part says where to generate")
    return mask


def grey_mask(field: str, data: bytes, invert: bool, blur: float) -> Image.Image:
    """A mask as A1111's API has it, white where to generate: inverted, blurred, and cut at the middle grey, since an
    image's pixel is either generated or not."""
    mask = read_upload(field, data).convert("L")
    mask = ImageOps.invert(mask) if invert else mask
    if blur > 0:
        mask = mask.filter(ImageFilter.GaussianBlur(min(blur, MOST_BLUR)))
    return mask.point(CUT)
