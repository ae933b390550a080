"""Layouts as captions: class names with their boxes, in the text format of `encoders/layout.py`.

Scenes have their boxes in their metadata; the box of a single drawing is measured. `annotations.py` writes layouts for
COCO and OpenImages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diptych.data.quarantine import BrokenExample

LAYOUT_FIELD = "layout"
"""The value of `data.caption_field` that uses layouts as captions."""
WRITTEN_WORD = "written word"
"""Class name of a box around a written word."""
WHITE = 250
"""Pixel values below this are not background."""
Sides = tuple[float, float, float, float]
"""Left, top, right, bottom, as fractions of width and height."""


def format_layout(boxes: Sequence[tuple[str, Sides]]) -> str:
    """A layout as text. Semicolons in names become commas; boxes are clipped to the image, and empty ones dropped."""
    lines = []
    for name, sides in boxes:
        left, top, right, bottom = (round(min(max(float(side), 0.0), 1.0), 4) for side in sides)
        if left < right and top < bottom:
            lines.append(f"{' '.join(name.replace(';', ',').split())} {left:g} {top:g} {right:g} {bottom:g}")
    return "; ".join(lines)


def layout_of(meta: dict[str, Any], image: Callable[[], np.ndarray]) -> str:
    """The layout of an example: the one in its metadata, else its objects and written word, else its concept with the
    bounding box of the drawing in its image (H, W, 3). Raises `BrokenExample` where the metadata has none of these.
    """
    require_layout(meta)
    if isinstance(meta.get(LAYOUT_FIELD), str):
        return meta[LAYOUT_FIELD]
    if "objects" in meta:
        try:
            boxes = [(one["concept"], one["box"]) for one in meta["objects"]]
            if isinstance(text := meta.get("text"), dict):
                boxes.append((WRITTEN_WORD, text["box"]))
            return format_layout(boxes)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise BrokenExample("its objects are not each a concept with a box of four numbers") from None
    return format_layout([(meta["concept"], bounding_box(image()))])


def require_layout(meta: dict[str, Any]) -> None:
    """Raise `BrokenExample` for metadata without a layout, objects or a concept."""
    if not (isinstance(meta.get(LAYOUT_FIELD), str) or "objects" in meta or isinstance(meta.get("concept"), str)):
        raise BrokenExample("neither a layout nor objects nor a concept")


def bounding_box(image: np.ndarray) -> Sides:
    """The box around all pixels that are not white in an image, uint8 (H, W, 3); the whole image where all are."""
    rows, columns = np.nonzero((image < WHITE).any(2))
    if not len(rows):
        return 0.0, 0.0, 1.0, 1.0
    height, width = image.shape[:2]
    left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return float(left / width), float(top / height), float(right / width), float(bottom / height)
