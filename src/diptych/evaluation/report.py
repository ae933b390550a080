"""Contact sheets and tables: the layout that all studies share."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from rich import box
from rich.table import Table

from diptych.data.box_layouts import Sides

DASH = "–"
GREEN, RED, GREY = "#1a9850", "#d73027", "#bbbbbb"


@dataclass(frozen=True, kw_only=True)
class SheetCell:
    """One prompt on a contact sheet: its images side by side, with a line beneath each."""

    prompt: str
    """Written below the images."""
    images: Sequence[Image.Image]
    """For example the generated one, then the real one."""
    correct: Sequence[bool | None]
    """For each image: a green border if true, a red one if false, grey if none."""
    notes: Sequence[str]
    """For each image: the line beneath it, such as the judge's first guess."""


def contact_sheet(cells: Sequence[SheetCell], columns: int = 6, side: int = 96) -> Image.Image:
    """All cells on one white page, row by row; images are `side` pixels wide."""
    pad, border, line = 8, 3, 12
    font = ImageFont.load_default(size=10)
    across = max(len(cell.images) for cell in cells)
    wide = across * (side + 2 * border) + (across + 1) * pad
    letters = max(wide // 5 - 1, 8)  # about five pixels a letter
    prompts = [textwrap.wrap(cell.prompt, letters)[:3] for cell in cells]
    high = pad + side + 2 * border + line * (1 + max(map(len, prompts))) + pad
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    page = Image.new("RGB", (columns * wide, rows * high), "white")
    draw = ImageDraw.Draw(page)
    for i, (cell, prompt) in enumerate(zip(cells, prompts, strict=True)):
        left, top = i % columns * wide + pad, i // columns * high + pad
        for j, image in enumerate(cell.images):
            x = left + j * (side + 2 * border + pad)
            colour = {True: GREEN, False: RED, None: GREY}[cell.correct[j]]
            draw.rectangle(
                (x, top, x + side + 2 * border - 1, top + side + 2 * border - 1), outline=colour, width=border
            )
            page.paste(resized(image, side), (x + border, top + border))
            note = textwrap.shorten(cell.notes[j], (side + 2 * border) // 5, placeholder="…")
            draw.text((x, top + side + 2 * border), note, fill=colour if colour != GREY else "#666666", font=font)
        for k, words in enumerate(prompt):
            draw.text((left, top + side + 2 * border + line * (k + 1)), words, fill="black", font=font)
    return page


def resized(image: Image.Image, side: int) -> Image.Image:
    """A square of `side` pixels: nearest neighbour by whole factors, else bicubic."""
    method = Image.Resampling.NEAREST if side % image.width == 0 else Image.Resampling.BICUBIC
    return image.convert("RGB").resize((side, side), method)


def percent(share: dict[str, float]) -> str:
    """A share in percent with its standard error, if it has one; no spaces, so that no table breaks it."""
    return _with_error(share, 1, 100)


def short_name(model: str) -> str:
    """The last part of a model's path, for tables and sheets."""
    return model.rstrip("/").rpartition("/")[2]


def number(mean: dict[str, float] | None, places: int) -> str:
    """A mean with its standard error; nothing where there is none."""
    return "" if mean is None else _with_error(mean, places)


def signed(mean: dict[str, float], places: int) -> str:
    """A difference with its standard error."""
    return _with_error(mean, places, sign="+")


def plain(value: float | None, places: int) -> str:
    """A number; nothing where there is none, and a dash where too few images were left to have one."""
    return "" if value is None else DASH if math.isnan(value) else f"{value:.{places}f}"


def _with_error(mean: Mapping[str, float | None], places: int, times: float = 1, sign: str = "") -> str:
    value, error = mean["value"], mean.get("error")
    assert value is not None
    text = DASH if math.isnan(value) else f"{times * value:{sign}.{places}f}"
    return text if error is None else f"{text}±{plain(times * error, places)}"


def image_table(
    columns: Sequence[str],
    rows: Sequence[tuple[str, Sequence[Sequence[Image.Image]]]],
    notes: Sequence[str],
    side: int,
) -> Image.Image:
    """A white page with a row of images for each title: as many in each column as its list holds; notes beneath."""
    margin, gap, wide, line = 90, 4, 16, 16
    font = ImageFont.load_default(size=12)
    across = max((len(run) for _, runs in rows for run in runs), default=1)
    column = across * (side + gap) + wide
    page = Image.new(
        "RGB", (margin + len(columns) * column, 2 * line + len(rows) * (side + gap) + line * len(notes) + line), "white"
    )
    draw = ImageDraw.Draw(page)
    for j, title in enumerate(columns):
        left = margin + j * column
        draw.text((left, 2), title, fill="black", font=font)
        for k in range(across):
            draw.text((left + k * (side + gap) + side // 2, line), str(k + 1), fill="#666666", font=font)
    for i, (title, runs) in enumerate(rows):
        top = 2 * line + i * (side + gap)
        draw.text((6, top + side // 2 - 8), title, fill="black", font=font)
        for j, run in enumerate(runs):
            for k, image in enumerate(run):
                page.paste(resized(image, side), (margin + j * column + k * (side + gap), top))
    for n, note in enumerate(notes):
        top = 2 * line + len(rows) * (side + gap) + 4 + n * line
        draw.text((6, top), textwrap.shorten(note, (page.width - 12) // 6, placeholder="…"), fill="black", font=font)
    return page


def comparison_table(title: str, columns: dict[str, dict[str, str]]) -> Table:
    """A column for each model, and a row for each line that any of them has."""
    table = Table(title=title, box=box.MARKDOWN)
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right", overflow="fold")
    for line in dict.fromkeys(line for lines in columns.values() for line in lines):
        table.add_row(line, *(lines.get(line, "") for lines in columns.values()))
    return table


def with_boxes(image: Image.Image, boxes: Sequence[Sides], correct: Sequence[float], side: int) -> Image.Image:
    """An image at `side` pixels with boxes drawn on it, green where `correct` is 1 and red elsewhere."""
    large = resized(image, side)
    draw = ImageDraw.Draw(large)
    for sides, right in zip(boxes, correct, strict=True):
        corners = tuple(place * (side - 1) for place in sides)
        draw.rectangle(corners, outline=GREEN if right == 1 else RED)
    return large


def enlarged_sheet(images: Sequence[Image.Image]) -> Image.Image:
    """Images of one shape, two in a row, at twice the size of the last."""
    wide, high = 2 * images[-1].width, 2 * images[-1].height
    sheet = Image.new("RGB", (2 * wide + 4, -(-len(images) // 2) * (high + 4) - 4), "white")
    for i, image in enumerate(images):
        sheet.paste(image.resize((wide, high), Image.Resampling.NEAREST), (i % 2 * (wide + 4), i // 2 * (high + 4)))
    return sheet
