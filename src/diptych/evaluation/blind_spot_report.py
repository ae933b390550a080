"""Tables and plot of `evaluate blind-spots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich import box
from rich.table import Table

from diptych.core.disk import replacing
from diptych.evaluation.count_drawings import COUNTS, WAYS
from diptych.evaluation.plots import GREY, LINE_STYLES, page_of
from diptych.evaluation.report import number, percent
from diptych.evaluation.set_measures import DIRECTIONS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAMES = {name: name.upper() if name in ("fid", "kid", "cmmd") else name for name in DIRECTIONS}
PARTS = ("graded", "invisible", "visible", "size", "counts")
SIZED = ("fid", "cmmd", "coverage", "recall")
"""Measures whose dependence on the number of images is plotted: KID is near 0 for any."""


def tables(results: Mapping[str, Any]) -> list[Table | str]:
    """All four parts, and people's order where there are answers."""
    cells = {part: [cell for cell in results["cells"] if cell["part"] == part] for part in PARTS}
    settings = results["settings"]
    network, scorer = results["features"]["network"], results["scorer"]["source"]
    machine = " and ".join(dict.fromkeys(cell["processor"] for cell in results["cells"]))
    parts: list[Table | str] = [
        f"{settings['pictures']:,} drawings of {settings['size']} pixels against {settings['pictures']:,} others; "
        f"features of {network}, alignment by {scorer}; measured on {machine}.",
        order_table(cells["graded"]),
        "Kendall's tau of five levels, the first without the fault: 1 where a measure has their order, 0 where it does "
        f"not see them. Brackets: 95 % of {settings['resamples']} half samples.",
    ]
    parts += wrong_orders(cells["graded"])
    if "changes" in results:
        parts += [change_table(results["changes"]), *overtaken(results["overtaken"])]
    parts += [size_table(cells["size"])]
    for cell in cells["counts"]:
        parts += [count_table(cell), asked_table(cell)]
    if "people" in results:
        people = results["people"]
        taus = ", ".join(f"{NAMES[name]} {tau:.2f}" for name, tau in people["tau"].items())
        parts.append(
            f"People, in {people['ratings']} ratings, from best to worst: {', '.join(people['order'])}. "
            f"Kendall's tau with their order: {taus}."
        )
    return parts


def order_table(cells: Sequence[Mapping[str, Any]]) -> Table:
    table = table_of("Order of levels", "fault", *NAMES.values())
    for cell in cells:
        taus = [cell["tau"][name] for name in DIRECTIONS]
        table.add_row(cell["kind"], *(f"{tau['value']:.1f} [{tau['low']:.1f}, {tau['high']:.1f}]" for tau in taus))
    return table


def wrong_orders(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each measure that does not have the order of some kinds, with its values by level."""
    lines = []
    for name in DIRECTIONS:
        wrong = [cell for cell in cells if cell["tau"][name]["value"] < 1]
        series = [f"{cell['kind']} ({', '.join(f'{one:.3g}' for one in cell['values'][name])})" for cell in wrong]
        if series:
            lines.append(f"{NAMES[name]} is out of order in {len(wrong)} of {len(cells)} faults: {'; '.join(series)}.")
    return lines


def change_table(found: Mapping[str, Any]) -> Table:
    table = table_of("What a change moves", "change", "PSNR, dB", *NAMES.values())
    for part in ("invisible", "visible"):
        for kind, one in found[part].items():
            moved = [f"{one[name]:+.3g}" for name in DIRECTIONS]
            table.add_row(f"{part}: {kind}", f"{one['psnr']:.1f}", *moved)
    spread = next(iter(found["invisible"].values()))["deviation"]
    table.add_row("deviation of half samples", "", *(f"{spread[name]:.3g}" for name in DIRECTIONS))
    return table


def overtaken(pairs: Mapping[str, Sequence[Sequence[str]]]) -> list[str]:
    """A line for each measure that an invisible change moves more than a visible fault."""
    lines = []
    for name, own in pairs.items():
        by_fault = {large: [small for small, other in own if other == large] for _, large in own}
        each = [f"{large} less than {', '.join(small)}" for large, small in by_fault.items()]
        lines += [f"{NAMES[name]} is moved by {'; by '.join(each)}."] if each else []
    return lines or ["No invisible change moves a measure more than a visible fault."]


def size_table(cells: Sequence[Mapping[str, Any]]) -> Table:
    names = [name for name in DIRECTIONS if name != "alignment"]
    table = table_of("The same distribution, by number of images", "images", *(NAMES[name] for name in names))
    for cell in cells:
        values, spread = cell["values"], cell["deviation"]
        table.add_row(f"{cell['kind']:,}", *(f"{values[name]:.3g}±{spread[name]:.2g}" for name in names))
    return table


def count_table(cell: Mapping[str, Any]) -> Table:
    title = f"The true one of four captions, {cell['drawings']:,} drawings (chance 25 %)"
    table = table_of(title, "captions differ in", "right, %", *(f"of {n} drawn" for n in COUNTS), "costs, points")
    for way in WAYS:
        drawn = [f"{100 * share:.0f}" for share in cell["drawn"][way]]
        table.add_row(way, percent(cell["right"][way]), *drawn, number(cell["cost"][way], 1))
    return table


def asked_table(cell: Mapping[str, Any]) -> Table:
    table = table_of("Mean score (100 x cosine)", "asked for", *(f"{n} drawn" for n in COUNTS))
    for count, row in zip(COUNTS, cell["asked"], strict=True):
        table.add_row(str(count), *(f"{score:.1f}" for score in row))
    return table


def table_of(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, box=box.MARKDOWN)
    table.add_column(first)
    for name in columns:
        table.add_column(name, justify="right")
    return table


def plot(results: Mapping[str, Any], path: Path) -> None:
    """Taus as a map, measures by number of images, and scores by count; as a PNG."""
    cells = {part: [cell for cell in results["cells"] if cell["part"] == part] for part in PARTS}
    figure, (order, sizes, counts) = page_of(1.5, 1, 1, height=5.2)
    draw_order(order, cells["graded"])
    draw_sizes(sizes, cells["size"])
    draw_counts(counts, cells["counts"][0])
    figure.suptitle(f"features of {results['features']['network']}, scores of {results['scorer']['source']}")
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=100)


def draw_order(axis: Axes, cells: Sequence[Mapping[str, Any]]) -> None:
    taus = np.array([[cell["tau"][name]["value"] for name in DIRECTIONS] for cell in cells])
    axis.imshow(taus, cmap="PuOr", vmin=-1.3, vmax=1.3, aspect="auto")
    axis.set_xticks(range(len(NAMES)), list(NAMES.values()), rotation=30, ha="right")
    axis.set_yticks(range(len(cells)), [cell["kind"] for cell in cells])
    for row, column in np.ndindex(*taus.shape):
        colour = "white" if abs(taus[row, column]) > 0.7 else "black"
        axis.text(column, row, f"{taus[row, column]:.1f}", ha="center", va="center", fontsize=9, color=colour)
    axis.set_title("Kendall's tau of a measure with the levels of a fault: 1 is right", fontsize=9, color=GREY)


def draw_sizes(axis: Axes, cells: Sequence[Mapping[str, Any]]) -> None:
    counts = [cell["kind"] for cell in cells]
    for name, (colour, marker, dashes) in zip(SIZED, LINE_STYLES, strict=True):
        values = np.array([cell["values"][name] for cell in cells])
        spread = np.array([cell["deviation"][name] for cell in cells])
        axis.errorbar(
            counts, values, spread, color=colour, marker=marker, linestyle=dashes, capsize=3, label=NAMES[name]
        )
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.minorticks_off()
    axis.set_xticks(counts, [f"{count:,}" for count in counts], rotation=45)
    axis.set_xlabel("images")
    axis.set_title("drawings of the reference's own distribution", fontsize=9, color=GREY)
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)


def draw_counts(axis: Axes, cell: Mapping[str, Any]) -> None:
    for way, (colour, marker, dashes) in zip(WAYS, LINE_STYLES, strict=False):
        shares = [100 * share for share in cell["drawn"][way]]
        axis.plot(COUNTS, shares, color=colour, marker=marker, linestyle=dashes, label=f"wrong in {way}")
    axis.axhline(25, color=GREY, linestyle=":", label="chance")
    axis.set_ylim(0, 103)
    axis.set_xticks(COUNTS)
    axis.set_xlabel("things drawn")
    axis.set_ylabel("true caption first of four, %")
    axis.set_title("captions that differ in one way", fontsize=9, color=GREY)
    axis.legend(fontsize=8)
    axis.grid(alpha=0.3)
