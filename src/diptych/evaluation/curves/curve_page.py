"""What all figures from stored results share: points, their files, what is said under them, and how lines are drawn."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from diptych.evaluation.curves.curve_lines import BOOTSTRAP, NAMES, OVER_IMAGES, Line
from diptych.evaluation.curves.stored_results import StoredResult
from diptych.evaluation.plots import (
    GREY,
    LINE_STYLES,
    PointName,
    label_axis,
    level_line,
    literal,
    name_points,
    spread_axis,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = (*(colour for colour, _, _ in LINE_STYLES), "#E69F00", "#56B4E9", "#000000")  # Okabe & Ito
MARKERS, DASHES = "os^Dv<>", ("-", "--", "-.", ":")
BARS: dict[str, Any] = {"capsize": 3, "elinewidth": 1, "markersize": 5}
SHOWN = 6
"""Files named under a plot; the JSON names all."""


@dataclass
class Curve:
    """One figure: its points, where they are from, and how it is drawn."""

    name: str
    title: str
    points: list[dict[str, Any]]
    """Flat, for CSV."""
    sources: list[StoredResult]
    said: list[str]
    """Sentences under the plot: images a point, what bars are, what was left out."""
    draw: Callable[[], Figure]
    notes: list[str] = field(default_factory=list)
    """What was left out of the results."""

    @property
    def caption(self) -> str:
        """What stands under the plot."""
        names = [one.name for one in self.sources]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        parts = [f"Drawn from {', '.join(names[:SHOWN])}{more}.", *(f"{one[0].upper()}{one[1:]}." for one in self.said)]
        return " ".join(parts + [f"Left out: {'; '.join(self.notes)}."] * bool(self.notes))

    def figure(self) -> Figure:
        """The figure with its caption."""
        figure = self.draw()
        figure.suptitle(literal(self.title), fontsize=11)
        width = int(figure.get_figwidth() * 17)
        text = "\n".join(textwrap.wrap(self.caption, width, break_long_words=True))
        figure.supxlabel(literal(text), fontsize=7, color=GREY)
        return figure


def points_of(lines: Sequence[Line], labels: Sequence[str], axis: str) -> list[dict[str, Any]]:
    """A row for each point of each line."""
    return [
        {
            "line": label,
            axis: x,
            **{key: number for name, value in point.items() for key, number in _columns(name, value)},
            "images": line.images,
            "seeds": line.repeats,
        }
        for line, label in zip(lines, labels, strict=True)
        for x, point in line.points.items()
    ]


def _columns(name: str, value: Mapping[str, Any]) -> list[tuple[str, Any]]:
    return [(name, value["value"]), (f"{name}_error", value.get("error"))]


def sources_of(lines: Sequence[Line]) -> list[StoredResult]:
    """Each file once."""
    return list({source.path: source for line in lines for source in line.sources}.values())


def said_of(lines: Sequence[Line], measures: Sequence[str]) -> list[str]:
    """Images of a point, and what the bars of each measure are."""
    counts = sorted({line.images * line.repeats for line in lines})
    said = [f"{' or '.join(map(str, counts))} images a point"]
    kinds: dict[str, list[str]] = {}
    for line in lines:
        for name in measures:
            if name not in line.measures:
                continue
            given = any(point.get(name, {}).get("error") is not None for point in line.points.values())
            over = line.errors.get(name) if given else None
            words = {
                None: "no error was stored",
                OVER_IMAGES: "one standard error over images",
                BOOTSTRAP: "one standard error, by bootstrap over images",
            }.get(over, f"one standard error over {line.repeats} seeds")
            kinds.setdefault(words, []).append(NAMES[name].partition(":")[0].partition(" on ")[0])
    return said + [f"Bars of {' and '.join(dict.fromkeys(names))}: {words}" for words, names in kinds.items()]


def notes_of(lines: Sequence[Line]) -> list[str]:
    return [note for line in lines for note in line.left_out]


def style_of(number: int) -> dict[str, Any]:
    """Colour, marker and dashes of a line."""
    marker = MARKERS[number % len(MARKERS)]
    return {"color": COLOURS[number % len(COLOURS)], "marker": marker, "linestyle": DASHES[number % len(DASHES)]}


def errors_of(values: Sequence[Mapping[str, Any]]) -> list[float] | None:
    """Half the length of each bar; none where no point has an error."""
    errors = [value.get("error") for value in values]
    return None if all(error is None for error in errors) else [error or 0.0 for error in errors]


def pareto(
    axis: Axes,
    lines: Sequence[Line],
    labels: Sequence[str],
    x: str,
    y: str,
    title: str,
    styles: Sequence[int] | None = None,
) -> None:
    """A line for each model, `x` against `y`, each point with its guidance weight. styles: numbers of the lines'
    styles, in their order if none."""
    names = list[PointName]()
    for number, line, label in zip(styles or range(len(lines)), lines, labels, strict=True):
        rows = [point for point in line.points.values() if x in point and y in point]
        style = style_of(number)
        xs, ys = [row[x] for row in rows], [row[y] for row in rows]
        axis.errorbar(
            [value["value"] for value in xs],
            [value["value"] for value in ys],
            yerr=errors_of(ys),
            xerr=errors_of(xs),
            label=literal(label),
            **style,
            **BARS,
        )
        weights = [weight for weight, point in line.points.items() if x in point and y in point]
        for weight, left, up in zip(weights, xs, ys, strict=True):
            names.append(PointName(left["value"], up["value"], f"{weight:g}", number, style["color"]))
    spread_axis(axis, [point[y]["value"] for line in lines for point in line.points.values() if y in point], 4)
    label_axis(axis, NAMES[x], NAMES[y], title)
    name_points(axis, names)


def by_setting(axis: Axes, lines: Sequence[Line], labels: Sequence[str], measure: str, label: str) -> None:
    """A measure over the setting that was swept; of a line with one point also a level."""
    for number, (line, name) in enumerate(zip(lines, labels, strict=True)):
        found = {x: point[measure] for x, point in line.points.items() if measure in point}
        if not found:
            continue
        style = style_of(number)
        values = list(found.values())
        axis.errorbar(
            list(found),
            [value["value"] for value in values],
            yerr=errors_of(values),
            label=literal(name),
            **style,
            **BARS,
        )
        if len(found) == 1 and len(lines) > 1:
            axis.axhline(values[0]["value"], color=style["color"], linestyle=":", linewidth=1)
    label_axis(axis, label, NAMES[measure], "")


def reference_levels(axis: Axes, references: Mapping[str, Mapping[str, Any]], measure: str) -> None:
    """The scores of real and of bicubic images as levels."""
    for name, words, dashes in (("bicubic", "its input, bicubic", "--"), ("real", "real images", ":")):
        if (value := references.get(name, {}).get(measure)) is not None:
            level_line(axis, value["value"], words, GREY, dashes)
    axis.legend(fontsize=8)


def bars(axis: Axes, names: Sequence[str], values: Sequence[float], label: str, title: str = "") -> None:
    """A bar for each name, with its value on it."""
    drawn = axis.bar(
        [literal(name) for name in names], list(values), color=[COLOURS[n % len(COLOURS)] for n in range(len(names))]
    )
    axis.bar_label(drawn, [f"{value:.3g}" for value in values], fontsize=8, padding=2)
    axis.margins(y=0.15)
    axis.set_ylabel(label)
    axis.set_title(title, fontsize=9, color=GREY)
