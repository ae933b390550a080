"""What a study shows to people: tables, and contact sheets of pictures with words beneath."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from rich import box
from rich.table import Table

from diptych.evaluation.scores import ROWS

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
            method = Image.Resampling.NEAREST if side % picture.width == 0 else Image.Resampling.BICUBIC
            page.paste(picture.convert("RGB").resize((side, side), method), (x + border, top + border))
            note = textwrap.shorten(cell.notes[j], (side + 2 * border) // 5, placeholder="…")
            draw.text((x, top + side + 2 * border), note, fill=colour if colour != GREY else "#666666", font=font)
        for k, words in enumerate(prompt):
            draw.text((left, top + side + 2 * border + line * (k + 1)), words, fill="black", font=font)
    return page


def tables(results: dict[str, Any]) -> list[Table]:
    """The results of `evaluate` as tables (in Markdown, so that they can be pasted into a page)."""
    found = [_retrieval_table(results)]
    if results["scenes"]:
        found.append(_scene_table(results["scenes"]))
    return found


def _retrieval_table(results: dict[str, Any]) -> Table:
    table = Table(title=f"Named among {results['concepts']} concepts by the judge, %", box=box.MARKDOWN)
    left = ("prompts", "pictures")
    for name in (*left, "top-1", "top-5", "top-5 of ceiling", "top-5 of own real", "Fréchet"):
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
                "" if distance is None else f"{distance:.2f}",
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
    error = share.get("error")
    return f"{100 * share['value']:.1f}" + (f"±{100 * error:.1f}" if error is not None else "")
