"""Results of `diptych evaluate images` as JSON and as tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from diptych.core.disk import write_text
from diptych.core.errors import UserError
from diptych.core.json_files import read_named_json
from diptych.core.terminal import console
from diptych.metrics.records import differing, is_result, may_differ, unsaid

Results = list[dict[str, Any]]


def write_results(path: Path, results: Results) -> None:
    """Write results as JSON, in one step."""
    write_text(path, json.dumps(results, indent=2, ensure_ascii=False) + "\n")


def read_results(path: Path) -> Results:
    """The results in a file. Raises a `UserError` where it holds something else."""
    values = read_named_json(path, "results")
    if not isinstance(values, list) or not values or not all(map(is_result, values)):
        raise UserError(f"{path} holds no results of `diptych evaluate images`")
    return values


def print_results(results: Results) -> None:
    """A line for each number, and below what they depend on."""
    out = console()
    table = Table(box=box.MARKDOWN)
    for heading in ("measure", "value", "images", "features"):
        table.add_column(heading, justify="right" if heading in ("value", "images") else "left", overflow="fold")
    for result in results:
        sides = (result.get(side, {}) for side in ("generated", "reference"))
        counts = " / ".join(str(side["images"]) for side in sides if "images" in side)
        table.add_row(result["metric"], value_text(result), counts, features_text(result))
    out.print(table)
    for result in results:
        if result.get("fewer_images_than_dimensions"):
            out.print(
                f"{result['metric']}: fewer images than the features have dimensions ({result['features']['width']}): "
                "the estimate is biased upwards",
                soft_wrap=True,
            )
        if result.get("unknown"):
            out.print(f"{result['metric']}: not known: {', '.join(result['unknown'])}", soft_wrap=True)


def value_text(result: dict[str, Any]) -> str:
    """The number, with its deviation or standard error if there is one."""
    spread = result.get("deviation") if result.get("deviation") is not None else result.get("error")
    return f"{result['value']:.6g}" + ("" if spread is None else f" ± {spread:.2g}")


def features_text(result: dict[str, Any]) -> str:
    features = result.get("features", {})
    return ", ".join(str(features[name]) for name in ("network", "weights", "resize") if name in features)


def print_comparison(files: Sequence[tuple[Path, Results]]) -> None:
    """A table of the first file's measures in all files, and below it which do not compare, or may not, and why.

    Raises a `UserError` where nothing compares.
    """
    table = Table(box=box.MARKDOWN)
    table.add_column("measure")
    for path, _ in files:
        table.add_column(str(path), justify="right", overflow="fold")
    lines, compared = [], 0
    for base in files[0][1]:
        metric = base["metric"]
        cells = [value_text(base)]
        for path, results in files[1:]:
            other = next((result for result in results if result["metric"] == metric), None)
            reasons = ["has none"] if other is None else differing(base, other) + unsaid(base, other)
            if reasons or other is None:
                lines.append(f"{metric}: {path} does not compare: {'; '.join(reasons)}")
            elif unknown := may_differ(base, other):
                lines.append(f"{metric}: {path} may differ, for it is not known {' and '.join(unknown)}")
            cells.append("–" if reasons or other is None else value_text(other))
            compared += not reasons
        table.add_row(metric, *cells)
    if not compared:
        raise UserError(f"these results do not compare: {' | '.join(lines)}")
    out = console()
    out.print(table)
    for line in lines:
        out.print(line, soft_wrap=True, highlight=False)
