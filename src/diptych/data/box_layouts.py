"""Layouts as captions: what stands where in a picture, as `encoders/layout.py` reads it.

Our own scenes say it themselves; a single drawing is one box, which is measured. `annotations.py` makes layouts for
pictures of others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from diptych.data.quarantine import Broken

FIELD = "layout"
"""As `data.caption_field`: an example's layout in the place of its captions."""
WORD = "written word"
"""What a box holds in which a word is written."""
PAPER = 250
"""A value below this is no white paper."""
Sides = tuple[float, float, float, float]
"""Left, top, right, bottom, as fractions of width and height."""


def written(boxes: Sequence[tuple[str, Sides]]) -> str:
    """A layout as text. Names lose what would part two boxes; sides are clipped to the picture, and what is nothing
    after that is left out."""
    lines = []
    for name, sides in boxes:
        left, top, right, bottom = (round(min(max(float(side), 0.0), 1.0), 4) for side in sides)
        if left < right and top < bottom:
            lines.append(f"{' '.join(name.replace(';', ',').split())} {left:g} {top:g} {right:g} {bottom:g}")
    return "; ".join(lines)


def layout_of(meta: dict[str, Any], picture: Callable[[], np.ndarray]) -> str:
    """The layout of an example: what its metadata say, else its objects and written word, else the one thing that it
    shows, in a box around what is drawn in its picture (H, W, 3). Raises `Broken` where nothing says what it shows.
    """
    require_layout(meta)
    if isinstance(meta.get(FIELD), str):
        return meta[FIELD]
    if "objects" in meta:
        try:
            boxes = [(one["concept"], one["box"]) for one in meta["objects"]]
            if isinstance(text := meta.get("text"), dict):
                boxes.append((WORD, text["box"]))
            return written(boxes)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            raise Broken("its objects are not each a concept with a box of four numbers") from None
    return written([(meta["concept"], drawn(picture()))])


def require_layout(meta: dict[str, Any]) -> None:
    """Raises `Broken` where metadata says nothing of what `layout_of` reads."""
    if not (isinstance(meta.get(FIELD), str) or "objects" in meta or isinstance(meta.get("concept"), str)):
        raise Broken("neither a layout nor objects nor a concept")


def drawn(picture: np.ndarray) -> Sides:
    """Around what is not white in a picture (H, W, 3) uint8; the whole where all is white."""
    rows, columns = np.nonzero((picture < PAPER).any(2))
    if not len(rows):
        return 0.0, 0.0, 1.0, 1.0
    height, width = picture.shape[:2]
    left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    return float(left / width), float(top / height), float(right / width), float(bottom / height)
