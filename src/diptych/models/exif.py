"""The texts of an image in JPEG and WebP files, which have no keys for them as a PNG has: in EXIF.

The web UIs' text stands in UserComment, as galleries read it: "UNICODE", a zero byte and UTF-16. diptych's JSON stands
in MakerNote, which EXIF leaves to whoever made the image.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from typing import Any, Literal

from PIL import Image

SOFTWARE, IFD, USER_COMMENT, MAKER_NOTE = 0x0131, 0x8769, 0x9286, 0x927C
"""EXIF's numbers of these."""
UNICODE, OWN = b"UNICODE\0", b"diptych\0"
"""What the values begin with."""
MOST = 65_000
"""Bytes of EXIF that a JPEG's segment has place for."""
XMP = ("xmp", "XML:com.adobe.xmp")
"""Where Pillow keeps an image's XMP, of JPEG and WebP, and of PNG."""


def exif_of(texts: Mapping[str, str]) -> bytes:
    """The EXIF of an image whose PNG would have these texts. What does not fit into a JPEG is left out, the JSON
    first."""
    comment = UNICODE + texts.get("parameters", "").encode("utf-16-be", "replace")
    with contextlib.suppress(KeyError, ValueError):
        row = json.dumps(json.loads(texts["diptych"]), ensure_ascii=False).encode("utf-8", "surrogatepass")
        if len(comment) + len(row) <= MOST:
            return _exif(texts.get("Software", ""), {USER_COMMENT: comment, MAKER_NOTE: OWN + row})
    return _exif(texts.get("Software", ""), {USER_COMMENT: comment} if len(comment) <= MOST else {})


def _exif(software: str, values: Mapping[int, bytes]) -> bytes:
    exif = Image.Exif()
    exif.endian = ">"  # the byte order of UserComment, for those who take it from here
    if software:
        exif[SOFTWARE] = software
    exif.get_ifd(IFD).update(values)
    return exif.tobytes()


def texts_of(image: Image.Image) -> dict[str, str]:
    """The texts of an image, which is loaded, by the keys that they have in a PNG; damaged ones are left out."""
    if image.format == "PNG":
        return {key: str(value) for key, value in getattr(image, "text", {}).items()}
    texts = {}
    with contextlib.suppress(Exception):  # of many kinds: whatever damaged EXIF raises
        values = image.getexif().get_ifd(IFD)
        comment, row = values.get(USER_COMMENT, b""), values.get(MAKER_NOTE, b"")
        if isinstance(comment, bytes) and comment.startswith(UNICODE):
            texts["parameters"] = comment.removeprefix(UNICODE).decode("utf-16-be")
        if isinstance(row, bytes) and row.startswith(OWN):
            texts["diptych"] = row.removeprefix(OWN).decode("utf-8", "surrogatepass")
    return texts


def encoded(png: bytes, format: Literal["webp", "jpeg"], quality: int = 100) -> bytes:
    """A PNG with its metadata in another format. quality: 0 to 100, as Pillow takes it."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        options: dict[str, Any] = {"exif": exif_of(texts_of(image))}
        if xmp := next((image.info[key] for key in XMP if key in image.info), None):
            options["xmp"] = xmp.encode() if isinstance(xmp, str) else xmp
        image.convert("RGB").save(file, format.upper(), quality=quality, **options)
    return file.getvalue()
