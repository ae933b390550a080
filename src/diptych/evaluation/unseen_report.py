"""What the comparison by new words shows to people: a table, how each wording fared, and a sheet of the pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from rich import box
from rich.console import Console
from rich.table import Table

from diptych.evaluation.folder import write_tables
from diptych.evaluation.report import Cell, contact_sheet, percent
from diptych.evaluation.unseen_scores import SHUFFLED, WORDINGS
from diptych.pictures import save_png

SHOWN = 2
"""Pictures of each wording and model on the sheet."""


def write_report(
    results: dict[str, Any],
    out: Path,
    console: Console,
    pictures: dict[str, list[Image.Image]],
    records: Sequence[dict[str, Any]],
) -> None:
    """Print the table; write results.md and unseen.png.

    pictures: of each model, those of the unseen wordings, wording by wording; `records` say what the judge saw in them.
    """
    save_png(sheet(results, pictures, [r for r in records if r["wording"] == "unseen"]), out / "unseen.png")
    show(results, out, console)


def show(results: dict[str, Any], out: Path, console: Console) -> None:
    """Print the table, and keep it and more as results.md."""
    words = "\n" + "\n\n".join(explained(results)) + "\n"
    write_tables(out / "results.md", 160, summary_table(results), words, wording_table(results))
    console.print(summary_table(results))
    for line in explained(results)[:1]:
        console.print(line, highlight=False)
    console.print(f"every wording, its pictures and what the judge saw in them are in {out}")


def summary_table(results: dict[str, Any]) -> Table:
    """Each model, its shuffled control, chance, and the paired differences, for the first guess and the first five."""
    title = f"{results['wordings']} wordings, named among {results['concepts']} concepts by the judge, %"
    table = Table(title=title, box=box.MARKDOWN)
    table.add_column("model", overflow="fold")
    for name in ("guesses", *WORDINGS, "kept"):
        table.add_column(name, justify="right", no_wrap=True)

    def rows(name: str, found: dict[str, Any]) -> None:
        for k in (1, 5):
            shares = [(found.get(group) or {}).get(f"top{k}") for group in (*WORDINGS, "kept")]
            table.add_row(name if k == 1 else "", f"top-{k}", *("" if s is None else percent(s) for s in shares))

    for name, found in results["found"].items():
        rows(name, found)
    for name, found in results["found"].items():
        rows(f"{name}, shuffled", {group: found[group + SHUFFLED] for group in WORDINGS})
    rows("chance", dict.fromkeys(WORDINGS, results["chance"]))
    for name, found in results["differences"].items():
        rows(name, found)
    return table


def explained(results: dict[str, Any]) -> list[str]:
    """What the table means, in words; first what was dropped."""
    said, unknown = (results["dropped"][reason] for reason in ("said", "not shown"))
    return [
        f"{len(said)} wordings were dropped because a training caption says their word, {len(unknown)} because the "
        "data shows nothing of what they mean.",
        f"Each model painted each unseen wording ({results['settings']['pictures']} pictures) and, from the same "
        "noise, the seen caption of the concept that it should give. Kept is the share of the seen score that the "
        "unseen wording reaches. Scores are averaged by wording first; errors are standard errors over wordings, those "
        "of kept by bootstrap. Differences are paired by wording. Shuffled: scored as if another had been asked.",
        "The judge reads MiniLM's features as one of the models may. It is asked for the names of concepts only, which "
        "every model has seen, and never for the unseen words.",
        *(f"Dropped ({reason}): {', '.join(names)}." for reason, names in results["dropped"].items() if names),
    ]


def wording_table(results: dict[str, Any]) -> Table:
    """How often each model hit with each wording, unseen and seen."""
    names = list(results["found"])
    table = Table(title="Pictures with the concept among the first five, %: unseen (seen)", box=box.MARKDOWN)
    table.add_column("unseen wording", no_wrap=True)
    table.add_column("seen wording", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    for one in results["by_wording"]:
        shares = [f"{100 * one['top5'][name]['unseen']:.0f} ({100 * one['top5'][name]['seen']:.0f})" for name in names]
        table.add_row(one["prompt"], one["control"], *shares)
    return table


def sheet(
    results: dict[str, Any], pictures: dict[str, list[Image.Image]], records: Sequence[dict[str, Any]]
) -> Image.Image:
    """Every unseen wording with each model's first pictures side by side; a green border is a right first guess."""
    many = results["settings"]["pictures"]
    shown = min(SHOWN, many)
    told = {name: [r for r in records if r["model"] == name] for name in pictures}
    cells = []
    for i, one in enumerate(results["by_wording"]):
        places = [(name, i * many + j) for name in pictures for j in range(shown)]
        cells.append(
            Cell(
                prompt=f"{one['prompt']} ({one['concepts'][0]})",
                pictures=[pictures[name][place] for name, place in places],
                right=[told[name][place]["rank"] == 0 for name, place in places],
                notes=[told[name][place]["guess"] for name, place in places],
            )
        )
    page = contact_sheet(cells, columns=max(3, 16 // (shown * len(pictures))), side=64)
    head = (
        f"left to right, {shown} each: {', '.join(pictures)}. Beneath: the judge's first guess; the wording (concept)"
    )
    titled = Image.new("RGB", (page.width, page.height + 24), "white")
    ImageDraw.Draw(titled).text((8, 6), head, fill="black", font=ImageFont.load_default(size=12))
    titled.paste(page, (0, 24))
    return titled
