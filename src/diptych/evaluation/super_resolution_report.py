"""What a comparison of models that enlarge shows to people: a table, and pictures side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from rich.table import Table
from torch import Tensor

from diptych.evaluation.reconstruction_report import side_by_side
from diptych.evaluation.report import Cell, contact_sheet, number, short_name, signed

MEASURES = {
    "psnr": ("PSNR, dB", 2),
    "ssim": ("SSIM", 4),
    "perceptual": ("perceptual", 4),
    "consistency": ("consistency, dB", 1),
}
"""What is measured of each picture: its name in tables, and decimal places. Consistency is the PSNR of what is made
small again, from the small picture."""
COLOURS = 128
ROOM = 17
"""Letters of a name under a picture of the sheet."""
SIDE = 128
"""Of a picture on the contact sheet, in pixels."""


@dataclass(frozen=True)
class Column:
    """One way to a larger picture, and what it made of all."""

    name: str
    images: list[list[Image.Image]]
    """For each seed, of all pictures."""
    told: dict[str, Any]
    """Which network it is."""


def table(results: dict[str, Any]) -> Table:
    """The ways side by side, with the measures of the paper's table 5: the judge's Fréchet distance stands for FID."""
    settings = results["settings"]
    small, told = settings["size"] // settings["factor"], f"{settings['pictures']} {results['data']['split']} pictures"
    title = f"{small} -> {settings['size']} px, {settings['degradation']}: {told}, {settings['seeds']} seeds"
    return side_by_side(title, {short_name(row["name"]): lines(row) for row in results["models"]})


def lines(row: dict[str, Any]) -> dict[str, str]:
    """What is told of one way."""
    told = {"parameters": f"{row['parameters'] / 1e6:.1f} M"} if "parameters" in row else {}
    distance = row["frechet"]
    told["Fréchet (judge)"] = f"{distance['value']:.3f}" if distance["error"] is None else number(distance, 3)
    told |= {head: number(row[name], places) for name, (head, places) in MEASURES.items() if name in row}
    ahead = row.get("margin", {})
    return told | {
        f"{head.split(',')[0]}, to bicubic": signed(ahead[name], places)
        for name, (head, places) in MEASURES.items()
        if name in ahead and name != "consistency"
    }


def page(
    low: Sequence[Image.Image],
    columns: Sequence[Column],
    truth: Sequence[Image.Image],
    ratios: Sequence[Tensor],
    captions: Sequence[str],
    sheet: int,
) -> Image.Image:
    """The first pictures: small, by each way at its first seed, and as they should be. ratios: PSNR of each, (N,)."""
    cells = []
    for i in range(min(sheet, len(low))):
        pictures = [low[i], *(column.images[0][i] for column in columns), truth[i]]
        both = zip(ratios, columns, strict=True)
        notes = [f"{float(own[i]):.1f} dB {short(column.name)}" for own, column in both]
        cells.append(
            Cell(
                prompt=captions[i],
                pictures=pictures,
                right=[None] * len(pictures),
                notes=[f"{low[i].width} px", *notes, "truth"],
            )
        )
    return contact_sheet(cells, columns=1 if len(columns) > 1 else 2, side=SIDE).quantize(COLOURS)


def short(name: str) -> str:
    """A way's name where there is room for `ROOM` letters: names that begin alike differ at their ends."""
    name = short_name(name).partition(",")[0]
    return name if len(name) <= ROOM else f"…{name[1 - ROOM :]}"


def larger_page(low: Image.Image, made: Sequence[tuple[str, Image.Image]], truth: Image.Image) -> Image.Image:
    """One picture of any shape: small, by each way, and as it should be, one above the other at twice their size."""
    wide, high = 2 * truth.width, 2 * truth.height
    shown = [low, *(one for _, one in made), truth]
    sheet = Image.new("RGB", (2 * wide + 4, -(-len(shown) // 2) * (high + 4) - 4), "white")
    for i, one in enumerate(shown):
        large = one.resize((wide, high), Image.Resampling.NEAREST)
        sheet.paste(large, (i % 2 * (wide + 4), i // 2 * (high + 4)))
    return sheet.quantize(COLOURS)
