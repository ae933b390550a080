"""Results that papers print, as data with their source, and the table that places ours beside them."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from diptych.metrics.records import unsaid

FILE = Path(__file__).resolve().parent.parent / "assets" / "published-results.json"
"""The only place where published figures are stated. Each group of rows has its paper, its table, and what the paper
says of how they were measured."""
COLUMNS = {
    "fid": ("FID", 2),
    "is": ("IS", 2),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
    "psnr": ("PSNR, dB", 2),
    "ssim": ("SSIM", 3),
    "lpips": ("LPIPS", 3),
    "fid_hard": ("FID, 40-50 %", 2),
    "lpips_hard": ("LPIPS, 40-50 %", 3),
}
"""Measure -> its heading, and decimal places of ours."""
CHOICES = {
    "number": "number of images",
    "per_image": "captions of an image that are drawn",
    "caption": "which caption of an image",
    "classes": "how classes are drawn",
    "seed": "seed",
    "reference": "reference",
    "manifold_reference": "reference images of precision and recall",
    "size": "size in pixels",
    "crop": "crop",
    "resize": "filter to that size",
    "format": "format of generated images",
    "reference_format": "format of reference images",
    "network": "network",
    "network resize": "filter to the network's size",
    "degradation": "degradation",
    "factor": "factor",
    "masks": "masks",
}
"""What a result depends on, in words; the keys of `states`."""

OF_NETWORK = ("fid", "is")
"""Measures whose network papers state."""


@dataclass(frozen=True, kw_only=True)
class PublishedGroup:
    """Rows of one table of a paper that were measured alike."""

    protocol: str
    dataset: str
    paper: str
    table: str
    others: bool = False
    """Whether that table quotes figures of other papers."""
    states: Mapping[str, Any] = field(default_factory=dict)
    """What the paper says of `CHOICES`; of others it says nothing."""
    rows: Sequence[Mapping[str, Any]] = ()
    """`model`, some of `COLUMNS`, and may be `note` and `quoted`: from which paper this one has the figures."""


@cache
def published_groups() -> tuple[PublishedGroup, ...]:
    """All that is known."""
    return tuple(PublishedGroup(**group) for group in json.loads(FILE.read_text(encoding="utf-8")))


def published(protocol: str, dataset: str | None) -> list[PublishedGroup]:
    """What papers print for a protocol and a data set; nothing where no data set is named."""
    return [group for group in published_groups() if (group.protocol, group.dataset) == (protocol, dataset)]


def datasets(protocol: str) -> list[str]:
    """Those for which there are published results."""
    return list(dict.fromkeys(group.dataset for group in published_groups() if group.protocol == protocol))


def comparison(
    title: str, ours: Mapping[str, Mapping[str, Any]], groups: Sequence[PublishedGroup], foreign: str | None = None
) -> Table:
    """Our rows, and below them the published ones with their source.

    Args:
        ours: name -> results by measure (`value`, and `deviation` or `error`).
        foreign: where ours are of other features than the papers', their name: those measures get columns of their own.
    """
    mine = [measure for measure in COLUMNS if any(measure in row for row in ours.values())]
    theirs = [measure for measure in COLUMNS if any(measure in row for group in groups for row in group.rows)]
    apart = [measure for measure in mine if foreign and measure in ("fid", "fid_hard", "precision", "recall")]
    columns = [measure for measure in COLUMNS if measure in theirs or (measure in mine and measure not in apart)]
    table = Table(title=title, box=box.MARKDOWN)
    table.add_column("", overflow="fold")
    for measure in apart:
        table.add_column(f"{COLUMNS[measure][0]}, {foreign}", justify="right")
    for measure in columns:
        table.add_column(COLUMNS[measure][0], justify="right")
    if groups:
        table.add_column("source", overflow="fold")
    for name, row in ours.items():
        cells = [_own(row.get(measure), measure) for measure in apart]
        cells += [_own(None if measure in apart else row.get(measure), measure) for measure in columns]
        table.add_row(name, *cells, *(["measured here"] if groups else []))
    for group in groups:
        for row in group.rows:
            quoted = ", quoting others" if group.others else ""
            quoted = f", quoting {row['quoted']}" if "quoted" in row else quoted
            note = f"; {row['note']}" if "note" in row else ""
            cells = [*("" for _ in apart), *(_printed(row, measure) for measure in columns)]
            table.add_row(row["model"], *cells, f"{group.paper}, {group.table}{quoted}{note}")
    return table


def differences(ours: Mapping[str, Any], groups: Sequence[PublishedGroup], without: Collection[str] = ()) -> list[str]:
    """For each published group, what it was measured with that ours was not, what is not said of ours, and what its
    paper leaves open.

    Args:
        ours: our value of each of `CHOICES` that the protocol has, as far as it is known.
        without: of `CHOICES`, what our values do not depend on.
    """
    lines = []
    for group in groups:
        if group.others:
            lines.append(f"{group.paper}, {group.table}, figures of others: how they were measured, their papers say.")
            continue
        other = [
            f"{CHOICES[key]} {_word(ours[key])}, theirs {_word(value)}"
            for key, value in group.states.items()
            if key in ours and ours[key] != value
        ]
        asked = [key for key in group.states if key not in ours and key not in without]
        unknown = [f"{CHOICES[key]} (theirs {_word(group.states[key])})" for key in asked]
        silent = [CHOICES[key] for key in ours if key not in group.states]
        parts = [f"differs: {'; '.join(other)}"] if other else []
        parts += [f"not said of ours: {', '.join(unknown)}"] if unknown else []
        parts = parts or ["nothing that the paper states differs"]
        parts += [f"not stated there: {', '.join(silent)}"] if silent else []
        lines.append(f"{group.paper}, {group.table}: {'. '.join(parts)}.")
    return lines


def choices_of(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What results of `diptych evaluate images` say of `CHOICES`."""
    ours: dict[str, Any] = {}
    for one in results:
        made, features = one.get("generated", {}), one.get("features", {})
        study = one.get("protocol", {})
        ours |= {key: study[key] for key in ("degradation", "factor", "masks") if key in study}
        how = made.get("processing", {})
        ours |= {"number": made["images"]} if "images" in made else {}
        ours |= {key: how[key] or "as it is" for key in ("size", "crop", "resize") if key in how}
        if one["metric"] in OF_NETWORK and "network" in features:
            name = features["network"].partition(" 2015")[0]  # of InceptionV3 the date is part of its title
            ours |= {"network": name, "network resize": features.get("resize")}
    return ours


def network_of(results: Sequence[Mapping[str, Any]]) -> str | None:
    """On whose features results of a network are, "a network that is not said" among them; none without such."""
    if not any(one["metric"] in OF_NETWORK for one in results):
        return None
    return choices_of(results).get("network", "a network that is not said")


def unsaid_of(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """Measure by measure, what results must say to be compared with others and do not, in words."""
    lines = [(one["metric"], ", ".join(unsaid(one, one))) for one in results]
    return [f"{metric} may not compare with published figures: {reasons}" for metric, reasons in lines if reasons]


def _own(result: Mapping[str, Any] | None, measure: str) -> str:
    if result is None:
        return ""
    places = COLUMNS[measure][1]
    spread = result.get("deviation") if result.get("deviation") is not None else result.get("error")
    return f"{result['value']:.{places}f}" + ("" if spread is None else f" ± {spread:.2g}")


def _printed(row: Mapping[str, Any], measure: str) -> str:
    if measure not in row:
        return ""
    spread = row.get(f"{measure}_deviation")
    return f"{row[measure]:g}" + ("" if spread is None else f" ± {spread:g}")


def _word(value: Any) -> str:
    if value is None:
        return "all"
    return f"{value:,}" if isinstance(value, int) and value >= 10_000 else str(value)
