"""What the study of layouts shows to people: tables, and pictures with their boxes drawn on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from rich import box
from rich.table import Table

from diptych.data.layouts import Sides
from diptych.evaluation.boxes import MEASURES
from diptych.evaluation.report import GREEN, RED, Cell, contact_sheet, percent, resized

SIDE = 96
COLOURS = 128
"""Of the contact sheet, which is kept small."""


def tables(results: dict[str, Any]) -> list[Table]:
    """Shares of boxes, and their margins."""
    settings = results["settings"]
    told = f"{results['boxes']} boxes of {settings['scenes']} held-out scenes, {settings['seeds']} seeds"
    rows = Table(title=f"{told}: named among {results['concepts']} concepts, %", box=box.MARKDOWN)
    for name in ("pictures, boxes", "boxes", *MEASURES.values(), "over seeds"):
        rows.add_column(name, justify="left" if name == "pictures, boxes" else "right")
    for name, found in results["rows"].items():
        seeds = found[list(MEASURES)[-1]]["over_seeds"]
        told = "" if seeds is None else f"±{100 * seeds:.1f}"
        rows.add_row(name, str(found["boxes"]), *(percent(found[measure]) for measure in MEASURES), told)
    rows.add_row("chance", "", *(percent(results["chance"][measure]) for measure in MEASURES), "")
    margins = Table(title="Margins, scene by scene, in percentage points; errors over scenes", box=box.MARKDOWN)
    for name in ("difference", "boxes", *MEASURES.values()):
        margins.add_column(name, justify="left" if name == "difference" else "right")
    for name, found in results["margins"].items():
        margins.add_row(name, str(found["boxes"]), *(percent(found[measure]) for measure in MEASURES))
    return [rows, margins]


def page(
    scenes: Sequence[Sequence[tuple[str, Sides]]],
    pictures: dict[str, list[Image.Image]],
    right: dict[str, list[np.ndarray]],
) -> Image.Image:
    """Each scene as every painter has it, and as it is; a green box is one whose thing the judge found among few.

    right: of each kind and scene (things, measures).
    """
    cells = []
    for i, things in enumerate(scenes):
        shown = [drawn_on(found[i], [sides for _, sides in things], right[kind][i]) for kind, found in pictures.items()]
        names = ", ".join(name for name, _ in things)
        cells.append(Cell(prompt=names, pictures=shown, right=[None] * len(shown), notes=list(pictures)))
    sheet = contact_sheet(cells, columns=max(1, 9 // len(pictures)), side=SIDE)
    return sheet.quantize(COLOURS, dither=Image.Dither.NONE)


def drawn_on(picture: Image.Image, boxes: Sequence[Sides], right: np.ndarray) -> Image.Image:
    """A picture at `SIDE` pixels with boxes on it. right: (things, measures)."""
    large = resized(picture, SIDE)
    draw = ImageDraw.Draw(large)
    for sides, found in zip(boxes, right, strict=True):
        left, top, far, low = (side * (SIDE - 1) for side in sides)
        draw.rectangle((left, top, far, low), outline=GREEN if found[-1] == 1 else RED)
    return large
