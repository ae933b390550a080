"""The bar charts of a study, as the figures of the Imagen paper: bars with 95 % intervals, a line at 50 %."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.core.disk import replacing
from diptych.evaluation.human.questions import QUESTIONS, REFERENCE
from diptych.evaluation.human.study_results import ALL
from diptych.evaluation.plots import GREY, LINE_STYLES, literal, page_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")  # Okabe & Ito
ERROR = {"ecolor": "#222222", "capsize": 3, "elinewidth": 1.2}
MEASURES = (("set-alignment", "Alignment"), ("set-quality", "Fidelity"))


def draw_charts(results: dict[str, Any], out: Path) -> list[str]:
    """Write the charts that the results have something for; return the names of their files."""
    figures: dict[str, Figure] = {}
    if results["protocol"] == "coco":
        if results["photorealism"] or results["alignment"]:
            figures["coco.png"] = coco_chart(results)
    elif results["comparisons"]:
        pairs = dict.fromkeys(tuple(row["models"]) for row in results["comparisons"])
        figures["preference.png"] = preference_chart(results, list(pairs))
        for number, pair in enumerate(pairs, 1):
            rows = [row for row in results["comparisons"] if tuple(row["models"]) == pair]
            if len({row["category"] for row in rows}) > 2:
                figures[f"categories-{number}.png"] = category_chart(rows, pair, colour_of(results))
    found = {kind: one for kind, one in results.get("strengths", {}).items() if "players" in one}
    if found:
        figures["strengths.png"] = strength_chart(found, colour_of(results))
    for name, figure in figures.items():
        with replacing(out / name) as partial:
            figure.savefig(partial, format="png", dpi=130)
    return list(figures)


def colour_of(results: Mapping[str, Any]) -> dict[str, str]:
    colours = {name: COLOURS[n % len(COLOURS)] for n, name in enumerate(results["models"])}
    return {**colours, REFERENCE: "#8c8c8c"}


def coco_chart(results: dict[str, Any]) -> Figure:
    """Photorealism and alignment of each model, and the alignment of the reference (Saharia et al. 2022, table 2)."""
    bars = max(len(results["photorealism"]), len(results["alignment"]) - 1, 1)
    figure, (real, aligned) = page_of(0.62 + 0.12 * bars, 0.74 + 0.12 * bars, height=4.2)
    colours = colour_of(results)
    for axis, kind, label in (
        (real, "photorealism", "chosen over the reference, %"),
        (aligned, "alignment", "caption alignment, 0 to 100"),
    ):
        names = list(results[kind])
        for n, name in enumerate(names):
            bar(axis, n, results[kind][name], colours[name], 0.62)
        axis.set_xticks(range(len(names)), [short(name, 16) for name in names])
        axis.set_xlim(-0.6, max(len(names), 1) - 0.4)
        percent_axis(axis, label)
        axis.set_title(QUESTIONS[kind].measure.capitalize(), fontsize=11)
    half_line(real, "as often as the reference")
    return figure


def preference_chart(results: dict[str, Any], pairs: Sequence[tuple[str, ...]]) -> Figure:
    """For each pair of models the preference rates for alignment and fidelity (Saharia et al. 2022, figure 3)."""
    figure, axes = page_of(*[0.8] * len(pairs), height=4.4)
    colours = colour_of(results)
    for axis, pair in zip(axes, pairs, strict=True):
        for place, (kind, _) in enumerate(MEASURES):
            row = next(
                (
                    row
                    for row in results["comparisons"]
                    if (row["question"], tuple(row["models"]), row["category"]) == (kind, pair, ALL)
                ),
                None,
            )
            if row is not None:
                for side, name in enumerate(pair):
                    share = row["preference"] if side == 0 else opposite(row["preference"])
                    bar(axis, place + 0.36 * side - 0.18, share, colours[name], 0.34)
        axis.set_xticks(range(len(MEASURES)), [label for _, label in MEASURES])
        axis.set_xlim(-0.55, len(MEASURES) - 0.45)
        percent_axis(axis, "preferred, % (ties as half)" if axis is axes[0] else "")
        half_line(axis)
        columns = 2 if sum(map(len, pair)) <= 24 else 1
        style: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1), "ncols": columns}
        axis.legend(handles=handles(pair, colours, 32), fontsize=9, frameon=False, **style)
    return figure


def category_chart(rows: Sequence[dict[str, Any]], pair: Sequence[str], colours: Mapping[str, str]) -> Figure:
    """Preference rates by category, those of all at the bottom; alignment on the left, fidelity on the right."""
    categories = list(dict.fromkeys(row["category"] for row in rows))
    categories = [*(name for name in categories if name != ALL), ALL]
    figure, axes = page_of(0.95, 0.75, height=1.5 + 0.5 * len(categories))
    for axis, (kind, title) in zip(axes, MEASURES, strict=True):
        for row in rows:
            if row["question"] != kind:
                continue
            place = categories.index(row["category"])
            for side, name in enumerate(pair):
                share = row["preference"] if side == 0 else opposite(row["preference"])
                style: dict[str, Any] = {"color": colours[name], "height": 0.36, "error_kw": ERROR}
                axis.barh(place + 0.38 * side - 0.19, share["value"], xerr=errors(share), **style)
        names = [short(f"{name} ({count(rows, kind, name)})", 34) for name in categories]
        axis.set_yticks(range(len(categories)), names if axis is axes[0] else [""] * len(names))
        axis.set_ylim(len(categories) - 0.5, -0.5)
        axis.axhline(len(categories) - 1.5, color="#bbbbbb", linewidth=0.8)
        axis.set_xlim(0, 100)
        axis.axvline(50, color=GREY, linestyle="--", linewidth=1, zorder=0.5)
        axis.set_xlabel("preferred, % (ties as half)")
        axis.set_title(title, fontsize=11)
        plain_frame(axis)
    figure.legend(handles=handles(pair, colours, 40), loc="outside upper center", ncols=2, frameon=False)
    return figure


def handles(pair: Sequence[str], colours: Mapping[str, str], most: int) -> list[Patch]:
    """What a legend shows of two models."""
    from matplotlib.patches import Patch

    return [Patch(color=colours[name], label=short(name, most)) for name in pair]


def strength_chart(found: Mapping[str, dict[str, Any]], colours: Mapping[str, str]) -> Figure:
    """Bradley-Terry log strengths with intervals."""
    longest = max(len(one["players"]) for one in found.values())
    figure, axes = page_of(*[0.85] * len(found), height=1.6 + 0.45 * longest)
    for axis, (kind, one) in zip(axes, found.items(), strict=True):
        names = sorted(one["players"], key=lambda name: one["players"][name]["value"])
        for place, name in enumerate(names):
            strength = one["players"][name]
            style: dict[str, Any] = {"color": colours[name], "marker": LINE_STYLES[0][1], "markersize": 8, "capsize": 3}
            axis.errorbar(strength["value"], place, xerr=errors(strength), **style)
        axis.set_yticks(range(len(names)), [short(name, 24) for name in names])
        axis.set_ylim(-0.6, len(names) - 0.4)
        axis.axvline(0, color=GREY, linestyle="--", linewidth=1, zorder=0.5)
        axis.set_xlabel("Bradley-Terry log strength")
        axis.set_title(QUESTIONS[kind].measure.capitalize(), fontsize=11)
        plain_frame(axis)
        axis.grid(axis="x", alpha=0.3)
    return figure


def bar(axis: Axes, place: float, share: Mapping[str, Any], colour: str, width: float) -> None:
    """One bar with its interval, its value above that."""
    from matplotlib.patheffects import withStroke

    axis.bar(place, share["value"], width, color=colour, yerr=errors(share), error_kw=ERROR)
    top = share["value"] if share["high"] is None else share["high"]
    axis.annotate(
        f"{share['value']:.1f}",
        (place, top),
        xytext=(0, 4),
        textcoords="offset points",
        ha="center",
        fontsize=9,
        path_effects=[withStroke(linewidth=2.5, foreground="white")],  # readable on the line at 50 %
    )


def errors(share: Mapping[str, Any]) -> list[list[float]] | None:
    """Lengths of an interval below and above its value; none where there is no interval."""
    if share["low"] is None:
        return None
    value = share["value"]
    return [[max(value - share["low"], 0.0)], [max(share["high"] - value, 0.0)]]


def opposite(share: Mapping[str, Any]) -> dict[str, Any]:
    """The other side's share."""
    ends = {} if share["low"] is None else {"low": 100 - share["high"], "high": 100 - share["low"]}
    return {**share, "value": 100 - share["value"], **ends}


def count(rows: Sequence[dict[str, Any]], kind: str, category: str) -> int:
    """Prompts of a category."""
    found = [row for row in rows if row["category"] == category]
    return max((row["preference"]["prompts"] for row in found if row["question"] == kind), default=0)


def percent_axis(axis: Axes, label: str) -> None:
    axis.set_ylim(0, 108)
    axis.set_yticks(range(0, 101, 25))
    axis.set_ylabel(label)
    plain_frame(axis)
    axis.grid(axis="y", alpha=0.3)


def plain_frame(axis: Axes) -> None:
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)


def half_line(axis: Axes, label: str = "") -> None:
    axis.axhline(50, color=GREY, linestyle="--", linewidth=1, zorder=0.5)
    if label:
        axis.annotate(label, (1, 50), xycoords=("axes fraction", "data"), xytext=(-2, 3), textcoords="offset points",
                      ha="right", fontsize=8, color=GREY)  # fmt: skip


def short(name: str, most: int) -> str:
    """A name for a chart. A legend would leave out one that begins with "_"."""
    name = f" {name}" if name.startswith("_") else name
    return literal(name if len(name) <= most else f"{name[: most - 1]}…")
