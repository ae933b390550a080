"""`diptych evaluate curves`: the papers' ablations as figures, drawn from stored results."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from rich.console import Console

from diptych.core import terminal
from diptych.core.disk import replacing, write_text
from diptych.core.errors import UserError, pick
from diptych.evaluation.curves import sweep_figures, training_figures
from diptych.evaluation.curves.curve_page import Curve
from diptych.evaluation.curves.stored_results import MADE_BY, StoredResult, read_stored
from diptych.evaluation.folder import require_folder
from diptych.evaluation.plots import require

COLOURS, DPI = 64, 110
"""Of the PNGs, which are small enough to be kept beside a text."""


class CurveFigure(NamedTuple):
    """A figure that can be asked for."""

    draw: Callable[[Sequence[StoredResult]], Curve | None]
    needs: str
    """Results that it is drawn from, in words, with the command that makes them."""


GUIDANCE = f"`{MADE_BY['guidance']}`"
FIGURES: dict[str, CurveFigure] = {
    "guidance": CurveFigure(
        sweep_figures.guidance_figure,
        f"guidance sweeps: {GUIDANCE} for each model, or measured sets of several weights: `{MADE_BY['measured']}`",
    ),
    "thresholding": CurveFigure(
        sweep_figures.thresholding_figure,
        f"a guidance sweep of a pixel model with two thresholds or more: {GUIDANCE}",
    ),
    "text-encoder": CurveFigure(
        sweep_figures.text_encoder_figure,
        f"guidance sweeps of models that differ in the size of the text encoder alone: {GUIDANCE} for each",
    ),
    "unet": CurveFigure(
        sweep_figures.unet_figure,
        f"guidance sweeps of models that differ in the size of the U-Net alone: {GUIDANCE} for each",
    ),
    "augmentation": CurveFigure(
        sweep_figures.augmentation_figure,
        f"augmentation sweeps: `{MADE_BY['augmentation']}`, with --levels 0 for a model trained without",
    ),
    "guides": CurveFigure(sweep_figures.guides_figure, f"a study of guides: `{MADE_BY['guides']}`"),
    "efficient-unet": CurveFigure(
        training_figures.efficient_unet_figure, f"the benchmark of both networks: `{MADE_BY['efficient-unet']}`"
    ),
    "training": CurveFigure(training_figures.training_figure, f"folders of trainings: `{MADE_BY['training']}`"),
    "compression": CurveFigure(training_figures.compression_figure, f"its benchmark: `{MADE_BY['compression']}`"),
    "unseen": CurveFigure(training_figures.unseen_figure, f"the study of unseen words: `{MADE_BY['unseen']}`"),
}
"""By name, in the order in which they are drawn."""


def draw_curves(
    paths: Sequence[Path | str],
    out: Path | str,
    figures: Sequence[str] = (),
    console: Console | None = None,
) -> dict[str, dict[str, Any]]:
    """Draw figures from stored results into `out`: for each a PNG, and its points as JSON and CSV.

    Args:
        paths: folders and files of results.
        figures: names from `FIGURES`; all that the results suffice for, if none.

    Returns:
        What the JSON files hold, by name of the figure.

    Raises:
        UserError: results that are missing, damaged or may not be compared (nothing is written then), no matplotlib, or
            nothing to draw.
    """
    require()
    out, names = Path(out), [pick("figure", name, tuple(FIGURES)) for name in dict.fromkeys(figures)]
    require_folder(out)
    results = read_stored([Path(path) for path in paths])
    curves: list[Curve] = []
    for name in names or FIGURES:
        curve = _drawn(FIGURES[name], results)
        if curve is not None:
            curves.append(curve)
        elif names:
            why = sweep_figures.size_refusal(results, name) if name in ("text-encoder", "unet") else ""
            raise UserError(f"{name} needs {FIGURES[name].needs}" + (f" ({why})" if why else ""))
    if not curves:
        raise UserError(
            f"no figure can be drawn from these results: guidance, for one, needs {FIGURES['guidance'].needs}"
        )
    written = {curve.name: _write(curve, out) for curve in curves}
    console = console or terminal.console()
    for curve in curves:
        console.print(f"{out / curve.name}.png: {curve.caption}", highlight=False, soft_wrap=True)
    return written


def _drawn(figure: CurveFigure, results: Sequence[StoredResult]) -> Curve | None:
    """A figure; a `UserError` where a file has not what its kind has."""
    try:
        return figure.draw(results)
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, ZeroDivisionError) as error:
        if isinstance(error, UserError):
            raise
        names = ", ".join(one.name for one in results)
        raise UserError(f"one of {names} lacks what its kind has ({error}): make it again, or leave it out") from None


def _write(curve: Curve, out: Path) -> dict[str, Any]:
    """PNG, JSON and CSV of a figure."""
    drawn = io.BytesIO()
    curve.figure().savefig(drawn, format="png", dpi=DPI)
    with Image.open(drawn) as image:
        page = image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    with replacing(out / f"{curve.name}.png") as partial:
        page.save(partial, format="PNG", optimize=True)
    content = {
        "figure": curve.name,
        "title": curve.title,
        "caption": curve.caption,
        "points": curve.points,
        "left_out": curve.notes,
        "sources": [{"file": one.name, "kind": one.kind, "sha256": one.sha256} for one in curve.sources],
    }
    write_text(out / f"{curve.name}.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    table = io.StringIO()
    columns = list(dict.fromkeys(column for point in curve.points for column in point))
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(curve.points)
    write_text(out / f"{curve.name}.csv", table.getvalue())
    return content
