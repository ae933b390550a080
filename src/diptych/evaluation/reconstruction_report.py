"""What a comparison of first stages shows to people: tables, and pictures beside their reconstructions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from rich import box
from rich.table import Table

from diptych.evaluation.report import Cell, contact_sheet, number


def page(
    originals: Sequence[Image.Image],
    found: Sequence[tuple[str, Sequence[Image.Image], Sequence[dict[str, Any]]]],
    captions: Sequence[str],
    sheet: int,
) -> Image.Image:
    """The first pictures, each beside what every model made of it. found: a name, its pictures, numbers of each."""
    side = originals[0].width
    cells = [
        Cell(
            prompt=captions[i],
            pictures=[originals[i], *(images[i] for _, images, _ in found)],
            right=[None] * (1 + len(found)),
            notes=["original", *(f"{each[i]['psnr']:.1f} dB {name.rpartition('/')[2]}" for name, _, each in found)],
        )
        for i in range(min(sheet, len(originals)))
    ]
    return contact_sheet(cells, columns=max(1, 6 // (1 + len(found))), side=side * max(1, 128 // side))


def tables(results: dict[str, Any]) -> list[Table]:
    """The models side by side; a tiny decoder once more, beside its teacher."""
    settings, rows = results["settings"], results["models"]
    told = f"{settings['pictures']} pictures of {settings['size']} px, {results['data']['split']}"
    found = [side_by_side(f"Reconstructions of {told}", {row["name"]: lines(row) for row in rows})]
    for row in rows:
        if "of_teacher" in row:
            named = f"The tiny decoder, {row['times_as_fast']:.1f} times as fast as its teacher"
            found.append(side_by_side(named, {"from the teacher's pictures": measured(row["of_teacher"])}))
    return found


def side_by_side(title: str, columns: dict[str, dict[str, str]]) -> Table:
    """A column for each model, a row for each of the lines that any of them has."""
    table = Table(title=title, box=box.MARKDOWN)
    table.add_column("")
    for name in columns:
        table.add_column(name, justify="right", overflow="fold")
    for line in dict.fromkeys(line for found in columns.values() for line in found):
        table.add_row(line, *(found.get(line, "") for found in columns.values()))
    return table


def lines(row: dict[str, Any]) -> dict[str, str]:
    """What is told of a model."""
    told = {"kind": row["kind"], "factor": str(row["factor"]), "channels": str(row["channels"]), **measured(row)}
    if (book := row.get("codebook")) is not None:
        told["codebook used"] = f"{100 * book['used']:.1f}% of {book['entries']:,}"
        told["perplexity"] = f"{book['perplexity']:.1f}"
    return told | {f"{part}, ms": f"{row['milliseconds'][part]:.2f}" for part in ("encode", "decode")}


def measured(row: dict[str, Any]) -> dict[str, str]:
    told = {"PSNR, dB": number(row["psnr"], 2), "SSIM": number(row["ssim"], 4)}
    if "perceptual" in row:
        told["perceptual"] = number(row["perceptual"], 4)
    return told | {"Fréchet (judge)": f"{row['frechet']:.3f}"}
