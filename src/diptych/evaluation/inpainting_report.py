"""What a comparison of fills shows to people: the paper's table, margins, and masked pictures beside their fills."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich import box
from rich.table import Table

from diptych.evaluation.report import number, picture_table, short_name
from diptych.evaluation.retrieval import Mean

MEASURES = {"frechet": ("Fréchet", 2), "perceptual": ("perceptual", 3), "psnr": ("PSNR, dB", 2), "ssim": ("SSIM", 3)}
"""Their names in tables, and decimal places. Of the first two less is better, of the others more."""
COLOURS = 96
"""On the contact sheet, which is to be small."""


def summary(cells: Sequence[dict[str, Any]], rows: Sequence[str], seeds: int) -> list[dict[str, Any]]:
    """For each row and share the means over seeds, and the margins against the first row, seed by seed."""
    by = {(cell["row"], cell["share"], cell["seed"]): cell for cell in cells if cell["seed"] < seeds}
    found = []
    for row in rows:
        for share in dict.fromkeys(cell["share"] for cell in cells):
            own, first = ([by[name, share, k] for k in range(seeds)] for name in (row, rows[0]))
            line: dict[str, Any] = {"row": row, "share": share, "hidden": sum(c["hidden"] for c in own) / seeds}
            for name in (name for name in MEASURES if name in own[0]):
                values, base = (torch.tensor([cell[name] for cell in these]).double() for these in (own, first))
                line[name] = Mean.of(values)._asdict()
                line[f"{name}_margin"] = Mean.of(values - base)._asdict()
            found.append(line)
    return found


def tables(results: dict[str, Any]) -> list[Table]:
    """The paper's table; what pixels say; and the margins."""
    settings, lines = results["settings"], results["rows"]
    told = f"{settings['pictures']} pictures, {results['data']['split']}, {settings['seeds']} seeds"
    base, first = lines[0]["row"], [name for name in ("frechet", "perceptual") if name in lines[0]]
    others = [line for line in lines if line["row"] != base]
    return [
        table(f"Holes filled, {told}", lines, first),
        table("The same by pixels", lines, ["psnr", "ssim"]),
        table(f"What is added to {base}", others, first, "_margin"),
        table(f"What is added to {base}, by pixels", others, ["psnr", "ssim"], "_margin"),
    ]


def table(title: str, lines: Sequence[dict[str, Any]], measures: Sequence[str], what: str = "") -> Table:
    """A row for each fill, columns for each share of masked pixels."""
    made = Table(title=title, box=box.MARKDOWN)
    made.add_column("", overflow="fold")
    shares = list(dict.fromkeys(line["share"] for line in lines))
    for share in shares:
        for name in measures:
            made.add_column(f"{share}: {MEASURES[name][0]}", justify="right", min_width=13)
    for row in dict.fromkeys(line["row"] for line in lines):
        own = {line["share"]: line for line in lines if line["row"] == row}
        made.add_row(row, *(number(own[s][name + what], MEASURES[name][1]) for s in shares for name in measures))
    return made


def sheet_of(folder: Path, titles: Sequence[str], captions: Sequence[str]) -> Image.Image:
    """A row of pictures for each title, from the strips in a folder, with few colours."""
    strips = []
    for title in titles:
        with Image.open(folder / f"{title.replace('/', '-')}.png") as strip:
            side = strip.height  # its pictures are square
            strips.append([strip.crop((x, 0, x + side, side)) for x in range(0, strip.width, side)])
    rows = [(short_name(title), [strip]) for title, strip in zip(titles, strips, strict=True)]
    notes = [f"{i}  {caption}" for i, caption in enumerate(captions[: len(strips[0])], 1)]
    side = strips[0][0].width
    page = picture_table([""], rows, notes, side * max(1, 96 // side))
    return page.quantize(COLOURS, dither=Image.Dither.NONE)
