"""SVG icons to images."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import re
import struct
import zlib
from typing import Any
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from diptych.core.errors import UserError

COLOUR_TYPES = {"RGB": 2, "RGBA": 6}
"""How a PNG's header names a mode."""


def resolve(icon_set: dict[str, Any], icon: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """An icon's body and box with aliases resolved, and their flips. Raises `KeyError`."""
    boxes, flips, name = {}, [], icon
    while name not in icon_set["icons"]:
        alias = icon_set.get("aliases", {})[name]
        if alias.get("rotate"):
            raise ValueError("turned aliases are not supported")
        flips += [key for key in ("hFlip", "vFlip") if alias.get(key)]
        boxes = {**{k: alias[k] for k in ("left", "top", "width", "height") if k in alias}, **boxes}
        name = alias["parent"]
    standard = {"left": 0, "top": 0, "width": icon_set.get("width", 16), "height": icon_set.get("height", 16)}
    return {**standard, **icon_set["icons"][name], **boxes}, tuple(sorted(flips))


def fingerprint(icon_set: dict[str, Any], icon: str) -> str:
    """A hash, equal for drawings of equal appearance at any size (the names of gradients differ between copies)."""
    data, flips = resolve(icon_set, icon)
    text = json.dumps([re.sub(r"svgID\w+", "id", data["body"]), flips, data["width"], data["height"]])
    return hashlib.sha256(text.encode()).hexdigest()


def require_renderer() -> None:
    """Raise a `UserError` where SVG cannot be drawn."""
    if importlib.util.find_spec("resvg") is None:
        raise UserError("resvg is needed to draw emoji: `make install` adds it, or `pip install resvg`")


def draw(data: dict[str, Any], flips: tuple[str, ...], size: int, margin: float) -> Image.Image:
    """One icon from `resolve` as a `size` x `size` RGBA image, centred, `margin` of the side left free.

    Raises `ValueError` when it cannot be drawn or is empty.
    """
    return draw_png(data, flips, size, margin)[0]


def draw_png(data: dict[str, Any], flips: tuple[str, ...], size: int, margin: float) -> tuple[Image.Image, bytes]:
    """`draw`, and the same image as a PNG; without flips the renderer's own, since encoding again takes as long."""
    width, height = data["width"], data["height"]
    side = max(width, height)
    pad = side * margin / (1 - 2 * margin)
    left, top, whole = data["left"] - (side - width) / 2 - pad, data["top"] - (side - height) / 2 - pad, side + 2 * pad
    png = render_svg(
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{size}" height="{size}" viewBox="{left:.6g} {top:.6g} {whole:.6g} {whole:.6g}">{data["body"]}</svg>'
    )
    image = decode_png(png)
    if image.size != (size, size):
        raise ValueError(f"came out as {image.size[0]} x {image.size[1]} pixels")
    if image.getchannel("A").getextrema()[1] < 32:  # type: ignore[operator]
        raise ValueError("the drawing is empty")
    for flip, how in (("hFlip", Image.Transpose.FLIP_LEFT_RIGHT), ("vFlip", Image.Transpose.FLIP_TOP_BOTTOM)):
        if flip in flips:
            image = image.transpose(how)
    return image, png_bytes(image, level=1) if flips else png


def render_svg(svg: str) -> bytes:
    """An SVG as a PNG. Raises `ValueError` when it cannot be drawn."""
    import resvg
    from resvg import usvg

    try:
        ElementTree.fromstring(svg)  # resvg panics where the XML is wrong, and prints a trace
    except ElementTree.ParseError as error:
        raise ValueError(str(error)) from None
    try:
        return bytes(resvg.render(usvg.Tree.from_str(svg, usvg.Options.default()), (1, 0, 0, 0, 1, 0)))
    except BaseException as error:  # a panic is no `Exception`
        if type(error).__name__ != "PanicException":
            raise
        raise ValueError(str(error)) from None


def on_white(image: Image.Image) -> Image.Image:
    """RGBA composited on white, as RGB."""
    ground = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(ground, image).convert("RGB")


def png_bytes(image: Image.Image, level: int = 3) -> bytes:
    """An RGB or RGBA image as a PNG without any metadata, compressed at `level` of zlib.

    Its lines are not filtered (PNG's type 0): flat drawings become hardly larger for that, and Pillow, which tries all
    five filters on each line, takes four times as long.
    """
    width, height, channels = *image.size, len(image.getbands())
    lines = np.zeros((height, 1 + channels * width), np.uint8)  # the type of each line's filter, then its pixels
    lines[:, 1:] = np.asarray(image).reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, COLOUR_TYPES[image.mode], 0, 0, 0)
    chunks = (b"IHDR", header), (b"IDAT", zlib.compress(lines.data, level)), (b"IEND", b"")
    ends = (struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks)
    parts = (struct.pack(">I", len(data)) + kind + data + end for (kind, data), end in zip(chunks, ends, strict=True))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def decode_png(png: bytes) -> Image.Image:
    """The RGBA image of a PNG."""
    return Image.open(io.BytesIO(png)).convert("RGBA")
