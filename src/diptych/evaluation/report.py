"""What a study shows to people: tables, and contact sheets of pictures with words beneath."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from rich import box
from rich.table import Table

from diptych.evaluation.scores import ROWS

DASH = "–"
GREEN, RED, GREY = "#1a9850", "#d73027", "#bbbbbb"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One prompt on a contact sheet: its pictures side by side, and what the judge made of each."""

    prompt: str
    """Written beneath."""
    pictures: Sequence[Image.Image]
    """The generated one, then the real one."""
    right: Sequence[bool | None]
    """Of each picture: a green border if true, a red one if false, grey if none."""
    notes: Sequence[str]
    """Of each picture: a line beneath it, such as the judge's first guess."""


def contact_sheet(cells: Sequence[Cell], columns: int = 6, side: int = 96) -> Image.Image:
    """All cells on one white page, row by row; pictures are shown `side` pixels wide."""
    pad, border, line = 8, 3, 12
    font = ImageFont.load_default(size=10)
    across = max(len(cell.pictures) for cell in cells)
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
        for j, picture in enumerate(cell.pictures):
            x = left + j * (side + 2 * border + pad)
            colour = {True: GREEN, False: RED, None: GREY}[cell.right[j]]
            draw.rectangle(
                (x, top, x + side + 2 * border - 1, top + side + 2 * border - 1), outline=colour, width=border
            )
            page.paste(resized(picture, side), (x + border, top + border))
            note = textwrap.shorten(cell.notes[j], (side + 2 * border) // 5, placeholder="…")
            draw.text((x, top + side + 2 * border), note, fill=colour if colour != GREY else "#666666", font=font)
        for k, words in enumerate(prompt):
            draw.text((left, top + side + 2 * border + line * (k + 1)), words, fill="black", font=font)
    return page


def resized(picture: Image.Image, side: int) -> Image.Image:
    """At `side` pixels; whole multiples keep their pixels."""
    method = Image.Resampling.NEAREST if side % picture.width == 0 else Image.Resampling.BICUBIC
    return picture.convert("RGB").resize((side, side), method)


def tables(results: dict[str, Any]) -> list[Table]:
    """The results of `evaluate` as tables (in Markdown, so that they can be pasted into a page)."""
    found = [_retrieval_table(results)]
    if results["scenes"]:
        found.append(_scene_table(results["scenes"]))
    return found


def _retrieval_table(results: dict[str, Any]) -> Table:
    table = Table(title=f"Named among {results['concepts']} concepts by the judge, %", box=box.MARKDOWN)
    left = ("prompts", "pictures")
    for name in (*left, "top-1", "top-5", "top-5 of ceiling", "top-5 of own real", "mean place", "Fréchet"):
        table.add_column(name, justify="left" if name in left else "right")
    for group, found in results["groups"].items():
        titles = (group, f"n = {found['pictures']}", "", "")
        for title, row in zip(titles, ROWS, strict=True):
            shares = [found[name]["top5"] if row == "generated" else None for name in ("of_ceiling", "of_real")]
            distance = {"generated": found["frechet"], "real": results["frechet_between_real"]}.get(row)
            table.add_row(
                title,
                row,
                percent(found[row]["top1"]),
                percent(found[row]["top5"]),
                *("" if share is None else f"{100 * share:.0f}" for share in shares),
                percent(found[row]["place"]) if "place" in found[row] else "",
                plain(distance, 2),
            )
    return table


def _scene_table(scenes: dict[str, Any]) -> Table:
    table = Table(title="Held-out scenes: the true caption before all its foils, %", box=box.MARKDOWN)
    for name in ("category", "n", *ROWS):
        table.add_column(name, justify="left" if name == "category" else "right")
    for category, found in scenes.items():
        table.add_row(category, str(found["pictures"]), *(percent(found[row]) for row in ROWS))
    return table


def percent(share: dict[str, float]) -> str:
    """A share in percent with its standard error, where it has one; no spaces, so that no table breaks it."""
    return _with_error(share, 1, 100)


def sweep_table(results: dict[str, Any]) -> Table:
    """The cells of a sweep, and what to compare them with."""
    cells, references = results["cells"], results["references"]
    keys = ("threshold", "guidance") if results["sweep"] == "guidance" else ("level",)
    told = f"{results['model']['name']}: {results['settings']['pictures']} pictures a row"
    table = Table(title=f"{told}, named among {results['concepts']} concepts", box=box.MARKDOWN)
    # Top-1 is in results.json alone: the table fits a terminal of 80 columns.
    for name in (*keys, "alignment", "top-5 %", "Fréchet", "saturated %"):
        table.add_column(name, justify="left" if name == keys[0] else "right")
    if with_psnr := any("psnr" in cell for cell in cells):
        table.add_column("PSNR, dB", justify="right")

    def row(*titles: str, cell: dict[str, Any]) -> None:
        measures = [
            number(cell.get("alignment"), 3),
            percent(cell["top5"]),
            plain(cell.get("frechet"), 2),
            f"{100 * cell['saturated']:.1f}" if "saturated" in cell else "",
        ]
        table.add_row(*titles, *measures, *([number(cell.get("psnr"), 2)] if with_psnr else []))

    for cell in cells:
        row(*(f"{cell[key]:g}" if isinstance(cell[key], float) else cell[key] for key in keys), cell=cell)
    for name in ("bicubic", "real", "chance"):
        if name in references:
            row(name, *[""] * (len(keys) - 1), cell=references[name])
    return table


def short_name(model: str) -> str:
    """What a table or sheet calls a model: the last part of its path."""
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
    told = DASH if math.isnan(value) else f"{times * value:{sign}.{places}f}"
    return told if error is None else f"{told}±{plain(times * error, places)}"


def sweep_sheet(
    results: dict[str, Any], strip: Callable[[str], list[Image.Image]], prompts: Sequence[str]
) -> Image.Image:
    """The same prompts in every cell of a sweep: a row for each weight or level, thresholds side by side.

    strip: the first pictures of a cell or of a reference, by its `name`.
    """
    cells = results["cells"]
    bounds = list(dict.fromkeys(cell.get("threshold", "") for cell in cells))
    value = "guidance" if results["sweep"] == "guidance" else "level"
    rows: list[tuple[str, list[list[Image.Image]]]] = [
        (f"{value} {number:g}", [_strip_of(cells, strip, {"threshold": bound, value: number}) for bound in bounds])
        for number in sorted({cell[value] for cell in cells})
    ]
    rows += [(name, [strip(name) for _ in bounds]) for name in ("bicubic", "real") if strip(name)]
    side = 96 if value == "guidance" else 256  # what augmentation changes are details
    return picture_table(bounds, rows, [f"{i}  {prompt}" for i, prompt in enumerate(prompts, 1)], side)


def _strip_of(cells: list[dict[str, Any]], strip: Callable, key: dict[str, Any]) -> list[Image.Image]:
    found = [cell for cell in cells if all(cell.get(name, "") == value for name, value in key.items())]
    return strip(found[0]["strip"]) if found else []


def picture_table(
    columns: Sequence[str],
    rows: Sequence[tuple[str, Sequence[Sequence[Image.Image]]]],
    notes: Sequence[str],
    side: int,
) -> Image.Image:
    """Rows of pictures on a white page: a title, then a run of pictures for each column; notes beneath."""
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
            for k, picture in enumerate(run):
                page.paste(resized(picture, side), (margin + j * column + k * (side + gap), top))
    for n, note in enumerate(notes):
        top = 2 * line + len(rows) * (side + gap) + 4 + n * line
        draw.text((6, top), textwrap.shorten(note, (page.width - 12) // 6, placeholder="…"), fill="black", font=font)
    return page
