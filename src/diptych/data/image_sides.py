"""Width and height of images as training sees them, turned as their EXIF says, from their first bytes.

What metadata state is not asked: img2dataset, for example, keeps the sides that an image had before it was resized.
"""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

from diptych.core.errors import UserError
from diptych.core.image_files import is_encoded, opened, orientation
from diptych.data.paths import MAX_IMAGE_BYTES
from diptych.data.quarantine import BrokenExample, broken_image

FIRST, GROWTH = 2**14, 8
"""Bytes that are read of an image at first, and by how much more where its header is longer."""
WEBP_EXIF = 8
"""The bit of a WebP file's flags that says that EXIF follows the pixels."""
UNKNOWN = 0, 0
Start = Callable[[int], bytes]
"""Gives so many bytes from the start of an image, or all where it has fewer."""


def image_size(start: Start) -> tuple[int, int]:
    """Width and height of an encoded image. A turn that a PNG states behind its pixels is not seen.

    Raises what `start` raises, and `BrokenExample` for a broken header, more pixels than Pillow's limit, or an image
    larger than is read.
    """
    size = FIRST
    while size < GROWTH * MAX_IMAGE_BYTES:
        data = start(size)
        if (found := webp_sides(data)) is not None:
            return found
        try:
            with opened(data) as image:
                width, height = image.size
                turned = orientation(image, before_pixels=True) >= 5  # by a quarter
                return (height, width) if turned else (width, height)
        except Exception as error:  # whatever a decoder makes of half a header
            large = isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning))
            if large or len(data) < size or not is_encoded(data):
                raise broken_image(error) from None
        size *= GROWTH
    raise BrokenExample(f"an image larger than {MAX_IMAGE_BYTES // 2**20} MiB")


def sides_of(start: Start) -> tuple[int, int]:
    """As `image_size`; (0, 0) where the image cannot be read: training meets it again, and counts it."""
    try:
        return image_size(start)
    except UserError:  # a shard that was replaced, a store that does not answer
        raise
    except Exception:
        return UNKNOWN


def webp_sides(data: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP image without EXIF, of which Pillow would want all bytes (RFC 9649, sections 2.5 to
    2.7). None for any other, which includes those of more pixels than are read."""
    if len(data) < 30 or data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    kind = data[12:16]
    if kind == b"VP8X" and not data[20] & WEBP_EXIF:
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    elif kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    elif kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        return None
    return None if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS else (width, height)
