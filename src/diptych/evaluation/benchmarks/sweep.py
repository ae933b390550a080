"""Sweeps: guidance weights under each threshold, and augmentation levels (Imagen, sections 2.3 and 2.4, figure 4b).

All cells of a sweep have the same prompts and seeds, so that two cells differ by the swept value alone. A cell is
written as soon as it is measured; the same command resumes.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

from diptych.core.errors import UserError
from diptych.core.values import Number, checked, integers
from diptych.diffusion.thresholding import ThresholdConfig
from diptych.evaluation import plots
from diptych.evaluation.condition_sweep import THRESHOLDS, ConditionSweep, seen_drawings, sweep_head
from diptych.evaluation.measured_cells import MeasuredCells
from diptych.evaluation.report import image_table, number, percent, plain
from diptych.evaluation.runner import (
    generate_group,
    open_model,
    run_study,
)
from diptych.models.judge import Judge
from diptych.models.pixel_request import one_each
from diptych.models.provenance import save_generated


def sweep_guidance(
    model: Any,
    data: Path | str,
    out: Path | str,
    *,
    guidances: Sequence[float] = (1, 2, 4, 7, 10, 15, 30),
    thresholds: Sequence[str] = THRESHOLDS,
    images: int = 100,
    seed: int = 0,
    batch: int = 32,
    judge: Judge | Path | str | None = None,
    steps: Any = None,
    stop: int | None = None,
    sheet: int = 4,
    name: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Generate at every guidance weight under every threshold; print a table, and write results.json, results.md,
    plot.png and sheet.png into `out`.

    Args:
        model: anything with `generate`, or what `diptych.load` takes. Of a cascade the first stage is swept, the others
            keep their own settings; a super-resolution stage gets real images, downsampled.
        data: the data set; its seen drawings give the prompts, and the real images of the Fréchet distance.
        guidances: the weights; 1 is no guidance.
        thresholds: "none", "static", "dynamic", "dynamic:0.95" or "dynamic:0.95:1.5"; for latents "none" alone.
        images: prompts, drawn by `seed`, which fixes each image's seed too.
        batch: images generated at a time; they do not depend on it.
        judge: another judge than the one that ships with diptych, or its folder.
        steps: sampling steps, as `generate` takes them; the model's own if none.
        stop: for a cascade, how many of its stages to run; all if none.
        sheet: prompts on the contact sheet.
        name: the model's name in the report; its path or class if none.

    Returns:
        The content of results.json: the settings, and a cell for each pair with the judge's alignment and retrieval,
        the Fréchet distance on its features, and the share of pixel values at the ends of their range.

    Raises:
        UserError: a value is wrong, `out` holds another sweep, the data lacks drawings, or matplotlib is missing.
    """
    plots.require()
    model, name = open_model(model, name)
    weights = numbers("guidances", guidances)
    bounds = list(dict.fromkeys(str(ThresholdConfig.parse(one)) for one in thresholds))
    thresholded = takes(model, "threshold")
    if not bounds:
        raise UserError("thresholds is empty: name at least one of none, static and dynamic")
    if not thresholded and bounds != ["none"]:
        raise UserError("this model generates latents, which have no bounds to threshold: sweep with thresholds none")
    stages = SweptStages.of(model, stop)
    swept = ("guidance", "threshold") if thresholded else ("guidance",)
    scores = seen_drawings(data, judge, images, seed, stages.sizes[-1][0])
    low = stages.sizes[0][1]
    study = Sweep(
        head=sweep_head("guidance", model, name, data, scores, {"seed": seed, "steps": steps, "stop": stop}),
        batch=batch,
        sheet=min(max(1, sheet), len(scores.group.seeds)),
        model=model,
        scores=scores,
        # Every threshold at the first weight comes first: whatever the model refuses is refused soon.
        points=[{"threshold": bound, "guidance": weight} for weight in weights for bound in bounds],
        options=lambda key: {
            **{setting: stages.settings(key[setting], first=0, others=False) for setting in swept},
            "steps": steps,
            "stop": stop,
        },
        low=None if low is None else lambda: scores.downsampled(low),
        paired=low is not None,
    )
    return run_study(study, out, console)


def sweep_augmentation(
    model: Any,
    data: Path | str,
    out: Path | str,
    *,
    levels: Sequence[float] = (0, 0.1, 0.2, 0.3, 0.4, 0.5),
    truth: bool = False,
    stage: int | None = None,
    images: int = 50,
    seed: int = 0,
    batch: int = 8,
    judge: Judge | Path | str | None = None,
    steps: Any = None,
    stop: int | None = None,
    sheet: int = 4,
    name: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Upsample the same images at every augmentation level; print and write as `sweep_guidance` does.

    Args:
        model: a cascade or a super-resolution stage, or what `diptych.load` takes.
        levels: of each super-resolution stage, from 0 (no noise) to 1.
        truth: upsample real images that were downsampled, and compare with the real ones too (PSNR); if not, the
            output of the stages before, generated once for all levels.
        stage: number (from 0) of the one stage whose level is swept, the later ones keeping their own; all
            super-resolution stages if none.
        The rest: as for `sweep_guidance`.

    Raises:
        UserError: as for `sweep_guidance`; or there is no super-resolution stage; or no stage before it and no `truth`;
            or the data's images are smaller than the generated ones.
    """
    plots.require()
    model, name = open_model(model, name)
    swept = numbers("levels", levels)
    if wrong := [level for level in swept if not 0 <= level <= 1]:
        raise UserError(f"augmentation levels must lie between 0 and 1, not {wrong[0]:g}")
    stages = SweptStages.of(model, stop)
    first = stages.super_resolution(stage)
    if first == 0 and not truth:
        raise UserError("no stage before this one generates its input: sweep with truth, real images downsampled")
    before = behind = steps
    if stages.cascade and isinstance(steps, (list, tuple)):  # stages before the first swept one run apart
        each = list(one_each("steps", steps, range(len(stages.sizes)), len(model.stage_sizes)).values())
        before, behind = each[:first], each[first:]
    scores = seen_drawings(data, judge, images, seed, stages.sizes[-1][0])

    def low() -> list[Image.Image]:
        if truth:
            return scores.downsampled(stages.sizes[first][1] or 0)
        generate_group(model, scores.group, batch, stop=first, steps=before)
        return scores.group.generated

    settings = {"seed": seed, "steps": steps, "stop": stop, "stage": stage, "truth": truth}
    study = Sweep(
        head=sweep_head("augmentation", model, name, data, scores, settings),
        batch=batch,
        sheet=min(max(1, sheet), len(scores.group.seeds)),
        model=model,
        scores=scores,
        points=[{"level": level} for level in swept],
        options=lambda key: {
            "augmentation": stages.settings(key["level"], first=first, others=stage is None),
            "steps": behind,
            "stop": stop,
            "start": first if stages.cascade else None,
        },
        low=low,
        paired=truth,
        bicubic=True,
    )
    return run_study(study, out, console)


@dataclass(frozen=True)
class SweptStages:
    """The stages that run, a cascade's or a single model, with the sides of their images and low-resolution inputs."""

    sizes: list[tuple[int | None, int | None]]
    cascade: bool

    @classmethod
    def of(cls, model: Any, stop: int | None) -> SweptStages:
        sizes = getattr(model, "stage_sizes", None)
        if sizes is None:
            if stop is not None:
                raise UserError("stop is for cascades: this model has no stages to stop after")
            return cls([(getattr(model, "size", None), getattr(model, "low_size", None))], False)
        (count,) = integers("stop", [len(sizes) if stop is None else stop])
        if not 1 <= count <= len(sizes):
            raise UserError(f"stop must lie between 1 and {len(sizes)}, the stages of this cascade, not {count}")
        return cls(list(sizes[:count]), True)

    def super_resolution(self, stage: int | None) -> int:
        """The first stage whose level is swept."""
        stages = [number for number, (_, low) in enumerate(self.sizes) if low is not None]
        if not stages:
            raise UserError("no super-resolution stage runs: augmentation is for cascades and their later stages")
        if stage is not None and stage not in stages:
            raise UserError(
                f"stage {stage} is no super-resolution stage that runs: choose one of {', '.join(map(str, stages))}"
            )
        return stages[0] if stage is None else stage

    def settings(self, value: Any, first: int, others: bool) -> Any:
        """`generate`'s argument that sets a value in stage `first`, and in the later ones too or not."""
        if not self.cascade:
            return value
        return [value] + [value if others else None] * (len(self.sizes) - first - 1)


@dataclass(kw_only=True, eq=False)
class Sweep(ConditionSweep):
    """A sweep with its table, plot and contact sheet."""

    closing = "the table, the plot, a contact sheet and all numbers are in {out}"

    def tables(self, results: dict[str, Any]) -> list[Table | str]:
        return [sweep_table(results)]

    def report(self, cells: MeasuredCells) -> None:
        plots.plot(cells.results, cells.out / "plot.png")
        save_generated(sweep_sheet(cells, self.scores.group.prompts[: self.sheet]), cells.out / "sheet.png")


def sweep_table(results: dict[str, Any]) -> Table:
    """The cells of a sweep, and the references."""
    cells, references = results["cells"], results["references"]
    keys = ("threshold", "guidance") if results["sweep"] == "guidance" else ("level",)
    about = f"{results['model']['name']}: {results['settings']['pictures']} images a row"
    table = Table(title=f"{about}, named among {results['concepts']} concepts", box=box.MARKDOWN)
    # Top-1 is in results.json alone: the table fits a terminal of 80 columns.
    for name in (*keys, "alignment", "top-5 %", "Fréchet", "saturated %"):
        table.add_column(name, justify="left" if name == keys[0] else "right")
    if with_psnr := any("psnr" in cell for cell in cells):
        table.add_column("PSNR, dB", justify="right")

    def row(*titles: str, cell: dict[str, Any]) -> None:
        measures = [
            number(cell.get("alignment"), 3),
            percent(cell["top5"]),
            plain(cell.get("frechet"), 2),
            f"{100 * cell['saturated']:.1f}" if "saturated" in cell else "",
        ]
        table.add_row(*titles, *measures, *([number(cell.get("psnr"), 2)] if with_psnr else []))

    for cell in cells:
        row(*(f"{cell[key]:g}" if isinstance(cell[key], float) else cell[key] for key in keys), cell=cell)
    for name in ("bicubic", "real", "chance"):
        if name in references:
            row(name, *[""] * (len(keys) - 1), cell=references[name])
    return table


def sweep_sheet(cells: MeasuredCells, prompts: Sequence[str]) -> Image.Image:
    """The same prompts in every cell of a sweep: a row for each weight or level, a column for each threshold."""
    records, sweep = cells.results["cells"], cells.results["sweep"]
    bounds = list(dict.fromkeys(record.get("threshold", "") for record in records))
    value = "guidance" if sweep == "guidance" else "level"
    strips = {(record.get("threshold", ""), record[value]): record["strip"] for record in records}
    rows: list[tuple[str, list[list[Image.Image]]]] = [
        (
            f"{value} {one:g}",
            [cells.strip(strips[bound, one]) if (bound, one) in strips else [] for bound in bounds],
        )
        for one in sorted({record[value] for record in records})
    ]
    rows += [(name, [cells.strip(name) for _ in bounds]) for name in ("bicubic", "real") if cells.strip(name)]
    side = 96 if value == "guidance" else 256  # augmentation changes details
    return image_table(bounds, rows, [f"{i}  {prompt}" for i, prompt in enumerate(prompts, 1)], side)


def numbers(name: str, values: Sequence[float]) -> list[float]:
    """Different finite numbers in order; a `UserError` for anything else."""
    ordered = sorted({checked(name, Number().check, value) for value in values})
    if not ordered:
        raise UserError(f"{name} is empty: give at least one number")
    return ordered


def takes(model: Any, argument: str) -> bool:
    """Whether `generate` has such an argument."""
    parameters = inspect.signature(model.generate).parameters
    return argument in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())
