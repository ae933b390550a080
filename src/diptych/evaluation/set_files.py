"""The files of a set of images: written whole, with all that makes them again, and verified before they are kept."""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from diptych.core.disk import PARTIAL_PREFIX, replacing, values_of
from diptych.core.errors import UserError
from diptych.core.images import png_info
from diptych.core.version import version
from diptych.evaluation.folder import require_folder
from diptych.models.metadata import KEY, png_texts
from diptych.models.provenance import xmp

MANIFEST = "manifest.jsonl"
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


def require_ours(out: Path) -> None:
    """Raise a `UserError` where a folder holds what is no set of images. It needs no model, so it may come first."""
    require_folder(out)
    if not out.exists() or values_of(out / MARK):
        return
    if present(out):
        raise UserError(f"{out} holds images and no {MARK}: name a new folder as --out")
    require_bare(out)


def require_bare(out: Path) -> None:
    """Raise a `UserError` that names the first entry of a folder that is of no set."""
    others = (name for name in sorted(os.listdir(out)) if name != MARK and not name.startswith(PARTIAL_PREFIX))
    if other := next((name for name in others if not name.isdecimal()), None):
        raise UserError(f"{out} holds {other}, which is no set of images: name a new folder as --out")


def require_whole(folder: Path, number: int, patience: float = 90.0) -> None:
    """Raise a `UserError` where a set that other processes say they have made is not there: they do not share the
    folder. A network's file system may show their files a little later."""
    until = time.monotonic() + patience
    while len(there := present(folder)) < number or not (folder / MANIFEST).exists():
        if time.monotonic() > until:
            raise UserError(
                f"{folder} has {len(there):,} of {number:,} images, though all processes are done: give all of them "
                "one folder that they share"
            )
        time.sleep(1)
