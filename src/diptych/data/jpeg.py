"""JPEGs that need nothing but decoding, with Pillow's decoder alone: most photographs in shards are such.

Pillow parses the tables of a JPEG in Python, and its decoder parses them again: a tenth of the time of a photograph of
half a million pixels. Here the segments before the pixels are only counted through. Whatever is not the usual, or
fails, is left to Pillow, which turns it, or says what is wrong with it.
"""

from __future__ import annotations

from PIL import Image

SKIPPED = frozenset((0xC4, 0xDB, 0xDD, 0xFE, *range(0xE3, 0xED), 0xEF))
"""Segments that change nothing, or that the decoder reads: tables, comments, most of applications."""
CHECKED = {0xE0: (b"", 7), 0xE2: (b"ICC_PROFILE\0", 14), 0xEE: (b"", 7)}
"""Segments of applications that Pillow parses: how they begin, and their least size, where that cannot fail or say
anything of the pixels. EXIF and XMP (0xE1), which may turn an image, several images (0xE2) and Photoshop's (0xED) are
not among them."""
FRAMES = (0xC0, 0xC1, 0xC2)
"""Segments that hold the size: baseline, extended, progressive."""
SCAN = 0xDA
SCALES = (8, 4, 2, 1)
"""Denominators of the fractions at which the decoder can decode."""


def plain_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG of three components of 8 bits without anything that Pillow would look at more closely;
    none for others."""
    if data[:2] != b"\xff\xd8":
        return None
    at, found, end = 2, None, len(data)
    while at + 4 <= end and data[at] == 0xFF:
        kind, start, size = data[at + 1], at + 4, (data[at + 2] << 8 | data[at + 3]) - 2
        at = start + size
        if size < 0 or at > end:
            return None
        if kind in SKIPPED:
            continue
        if kind in CHECKED:
            begins, least = CHECKED[kind]
            if size < least or not data.startswith(begins, start):
                return None
        elif kind in FRAMES and found is None and size == 15 and data[start] == 8 and data[start + 5] == 3:
            found = data[start + 3] << 8 | data[start + 4], data[start + 1] << 8 | data[start + 2]
        else:
            return found if kind == SCAN and found is not None and min(found) > 0 else None
    return None


def decoded(data: bytes, size: tuple[int, int], least: tuple[int, int]) -> Image.Image | None:
    """The pixels of a JPEG of this `plain_size`, RGB, at the smallest fraction, down to an eighth, at which it is as
    wide and as high as `least`, as `Image.draft` chooses it. None where the decoder does not reach its end."""
    most = min(size[0] // least[0], size[1] // least[1])
    scale = next((one for one in SCALES if most >= one), 1)
    core = Image.core.new("RGB", tuple(-(-side // scale) for side in size))
    decoder = Image._getdecoder("RGB", "jpeg", ("RGB", ""), (scale, 0))
    try:
        decoder.setimage(core, (0, 0, *core.size))
        left, error = decoder.decode(data)
    finally:
        decoder.cleanup()
    return Image.Image()._new(core) if left < 0 <= error else None
