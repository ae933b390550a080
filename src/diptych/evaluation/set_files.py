"""The files of a set of images: written whole, with all that makes them again, and verified before they are kept."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from diptych.core.disk import replacing, values_of
from diptych.core.errors import UserError
from diptych.core.images import png_info
from diptych.core.version import version
from diptych.models.metadata import KEY, png_texts
from diptych.models.provenance import xmp

MARK = "set.json"
"""What a set was made from."""
SIGNATURE = b"\x89PNG\r\n\x1a\n"
SUFFIXES = (".png", ".jpg")
MOST_COMMENT = 2**16 - 3
"""Bytes of a comment in a JPEG."""


def made_with(folder: Path) -> dict[str, Any]:
    """Model and settings of a set that diptych made; empty for other images."""
    stated = values_of(folder / MARK)
    return {entry: stated.get(entry) for entry in ("model", "settings", "model_source")} if "settings" in stated else {}


def write_image(image: Image.Image, path: Path, row: Mapping[str, Any], quality: int) -> None:
    """Write an image in one step: a PNG with its texts, or by the ending a JPEG whose comment is the same JSON."""
    if path.suffix == ".png":
        texts = png_texts(dict(row))
        with replacing(path) as partial:
            image.save(partial, "PNG", pnginfo=png_info(texts))
        return
    comment = json.dumps({KEY: version(), **row}).encode()
    if len(comment) > MOST_COMMENT:
        raise UserError(f"the settings of {path.name} do not fit a JPEG, whose prompt is that long: choose png")
    with replacing(path) as partial:
        image.save(partial, "JPEG", quality=quality, subsampling=0, comment=comment, xmp=xmp(row).encode())


def stored_row(path: Path) -> dict[str, Any] | None:
    """What `write_image` stated about an image; none where the file is missing, damaged or cut short."""
    try:
        if path.suffix == ".png" and not whole_png(path.read_bytes()):
            return None
        with Image.open(path) as image:
            if path.suffix != ".png":
                image.load()
            text = image.info.get(KEY if path.suffix == ".png" else "comment", b"")
    except FileNotFoundError:
        return None
    except (OSError, SyntaxError, ValueError):  # of a decoder
        return None
    try:
        row = json.loads(text)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def whole_png(data: bytes) -> bool:
    """Whether all chunks of a PNG are there, each with its checksum. Nothing is decoded."""
    view, place, kind = memoryview(data), len(SIGNATURE), b""
    if data[:place] != SIGNATURE:
        return False
    while kind != b"IEND":
        length = int.from_bytes(view[place : place + 4], "big")
        end = place + 8 + length
        if end + 4 > len(data) or zlib.crc32(view[place + 4 : end]) != int.from_bytes(view[end : end + 4], "big"):
            return False
        kind, place = bytes(view[place + 4 : place + 8]), end + 4
    return True


def present(out: Path, suffix: str | tuple[str, ...] = SUFFIXES) -> set[str]:
    """The names of all images of a set that are there, as `SetPlan.file` has them."""
    names = set[str]()
    try:
        folders = [entry.name for entry in os.scandir(out) if entry.name.isdecimal()]
        for folder in folders:
            names.update(f"{folder}/{entry.name}" for entry in os.scandir(out / folder) if entry.name.endswith(suffix))
    except OSError:  # removed meanwhile: whoever writes there reports it
        pass
    return names
