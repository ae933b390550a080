"""The plots of a sweep. matplotlib is imported when one is drawn: nothing else needs it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from diptych.core.disk import replacing
from diptych.core.errors import UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's colours, distinct for the colour-blind too; markers and dashes distinguish lines in grey.
LINE_STYLES = (("#D55E00", "o", "-"), ("#0072B2", "s", "--"), ("#009E73", "^", "-."), ("#CC79A7", "D", ":"))
OFFSETS = ((-6, 6), (6, -12), (6, 6), (-12, -12))  # of a line's labels in points: each line writes to its own side
GREY = "#555555"
FONT, LETTER, MARK = 8, 5.2, 4.0
"""In points: size of the text at a point, width of one of its letters, half the side of a point's mark."""
Box = tuple[float, float, float, float]
"""Left, low, right, up, in points."""


class PointName(NamedTuple):
    """The text at a point of a line."""

    x: float
    y: float
    text: str
    line: int
    """Number of the line, which says on which side its texts are."""
    colour: str


def require() -> None:
    """Raise a `UserError` when there is no matplotlib: better before hours of sampling than after."""
    page_of(1.0)


def plot(results: dict[str, Any], path: Path) -> None:
    """The plot of a sweep, as a PNG."""
    figure = plot_guidance(results) if results["sweep"] == "guidance" else plot_augmentation(results)
    with replacing(path) as partial:
        figure.savefig(partial, format="png", dpi=130)


def plot_guidance(results: dict[str, Any]) -> Figure:
    """Alignment against Fréchet distance, a line for each threshold and a point for each weight (Imagen, figure 4b);
    on the right the share of saturated values by weight.
    """
    figure, (trade, ends) = page_of(1.5, 1)
    cells, real = results["cells"], results["references"]["real"]
    names = list[PointName]()
    for i, bound in enumerate(dict.fromkeys(cell["threshold"] for cell in cells)):
        colour, marker, dashes = LINE_STYLES[i % len(LINE_STYLES)]
        points = [cell for cell in cells if cell["threshold"] == bound]
        style: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": dashes, "label": bound}
        x, y = [cell["alignment"]["value"] for cell in points], [cell["frechet"] for cell in points]
        trade.plot(x, y, **style)
        names += [PointName(a, b, f"{cell['guidance']:g}", i, colour) for cell, a, b in zip(points, x, y, strict=True)]
        ends.plot([cell["guidance"] for cell in points], [100 * cell["saturated"] for cell in points], **style)
    aligned = f"alignment: cosine of image and concept (real: {real['alignment']['value']:.3f})"
    label_axis(trade, aligned, "Fréchet distance on the judge's features", "points: guidance weight")
    spread_axis(trade, [cell["frechet"] for cell in cells])
    name_points(trade, names)
    level_line(ends, 100 * real["saturated"], "real images")
    mark_weights(ends, sorted({cell["guidance"] for cell in cells}))
    label_axis(ends, "guidance weight", "values at 0 or 255, %", "saturation")
    figure.suptitle(_title(results))
    return figure


def plot_augmentation(results: dict[str, Any]) -> Figure:
    """Alignment, Fréchet distance and, where there are real images to compare with, PSNR by augmentation level."""
    cells, references = results["cells"], results["references"]
    measures = [("alignment", "alignment: cosine of image and concept"), ("frechet", "Fréchet distance")]
    if "psnr" in cells[0]:
        measures.append(("psnr", "PSNR against the truth, dB"))
    figure, axes = page_of(*[1.0] * len(measures))
    colour, marker, _ = LINE_STYLES[1]
    for i, (axis, (measure, label)) in enumerate(zip(axes, measures, strict=True)):
        means = [cell[measure] if isinstance(cell[measure], dict) else {"value": cell[measure]} for cell in cells]
        axis.errorbar(
            [cell["level"] for cell in cells],
            [mean["value"] for mean in means],
            yerr=[mean.get("error", 0) for mean in means],
            color=colour,
            marker=marker,
            capsize=3,
            label="generated",
        )
        for name, words, (line, _, dashes) in (
            ("bicubic", "its input, bicubic", LINE_STYLES[0]),
            ("real", "real images", (GREY, "", ":")),
        ):
            reference = references.get(name, {}).get(measure)
            if reference is not None:
                value = reference["value"] if isinstance(reference, dict) else reference
                level_line(axis, value, words, line, dashes)
        label_axis(axis, "augmentation level", label, "bars: one standard error" if "error" in means[0] else "")
        axis.legend().set_visible(i == 0)
    figure.suptitle(_title(results))
    return figure


def page_of(*widths: float, height: float = 4.6) -> tuple[Figure, list[Axes]]:
    """A page of empty panels side by side; made without pyplot, whose state belongs to whoever calls us."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("plots need matplotlib: `make install` adds it, or `pip install matplotlib`") from None
    figure = Figure(figsize=(5.2 * sum(widths), height), layout="constrained")
    places = figure.add_gridspec(1, len(widths), width_ratios=widths)
    return figure, [figure.add_subplot(place) for place in places]


def _title(results: dict[str, Any]) -> str:
    return f"{literal(results['model']['name'])}: {results['settings']['pictures']} images a point"


def literal(text: str) -> str:
    """A name as matplotlib is to show it: between two "$" it would read mathematics."""
    return text.replace("$", "\\$")


def label_axis(axis: Axes, x: str, y: str, title: str) -> None:
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.set_title(title, fontsize=9, color=GREY)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def name_points(axis: Axes, names: Sequence[PointName]) -> None:
    """Write at each point on its line's own side, or where that lies on a point or on a text that is there already, at
    the first place around it that is free, else at the one that covers least. Axes have their scales before."""
    from matplotlib.patheffects import withStroke

    axis.autoscale_view()
    dpi = axis.figure.get_figure(root=True).dpi
    points = axis.transData.transform([(one.x, one.y) for one in names]) * 72 / dpi
    taken = [(x - MARK, y - MARK, x + MARK, y + MARK) for x, y in points]
    for one, (left, low) in zip(names, points, strict=True):
        width, first = LETTER * len(one.text), one.line % len(OFFSETS)
        near = (*OFFSETS[first:], *OFFSETS[:first], (9, -3), (-9 - width, -3))
        around = (*near, *((2 * across, 2 * up) for across, up in near))
        boxes = [(left + across, low + up, left + across + width, low + up + FONT) for across, up in around]
        covered = [sum(shared(box, other) for other in taken) for box in boxes]
        best = covered.index(min(covered))
        taken.append(boxes[best])
        axis.annotate(
            one.text,
            (one.x, one.y),
            xytext=around[best],
            textcoords="offset points",
            color=one.colour,
            fontsize=FONT,
            zorder=5,  # above all points
            path_effects=[withStroke(linewidth=2.5, foreground="white")],  # readable where lines cross
        )


def shared(one: Box, other: Box) -> float:
    """The area that two boxes have in common."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0) * max(height, 0)


def level_line(axis: Axes, value: float, label: str, colour: str = GREY, dashes: str = ":") -> None:
    axis.axhline(value, color=colour, linestyle=dashes, label=label)


def spread_axis(axis: Axes, values: list[float], ratio: float = 10) -> None:
    """A logarithmic axis where one line would flatten the others: where values differ by more than `ratio`."""
    if min(values) > 0 and max(values) > ratio * min(values):
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")


def mark_weights(axis: Axes, weights: list[float]) -> None:
    """Weights from 1 to 30 in equal proportions, each one named."""
    if weights[0] > 0:
        axis.set_xscale("log")
    axis.minorticks_off()
    axis.set_xticks(weights, [f"{weight:g}" for weight in weights])
