"""Sweeps: guidance weights under each threshold, and augmentation levels (Imagen, sections 2.3 and 2.4, figure 4b).

Every cell of a sweep paints the same prompts from the same seeds, so that what differs between two cells is what was
swept. A cell is written as soon as it is measured; the same command again goes on behind it.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console

from diptych import terminal
from diptych.checks import wholes
from diptych.diffusion.thresholding import ThresholdConfig
from diptych.errors import UserError
from diptych.evaluation import plots, report
from diptych.evaluation.folder import write_tables
from diptych.evaluation.judge import Judge
from diptych.evaluation.runner import Cells, Key, batches, opened
from diptych.generation import one_each, read_number
from diptych.pictures import save_png
from diptych.progress import track


def sweep_guidance(
    model: Any,
    data: Path | str,
    out: Path | str,
    *,
    guidances: Sequence[float] = (1, 2, 4, 7, 10, 15, 30),
    thresholds: Sequence[str] = ("none", "static", "dynamic"),
    pictures: int = 100,
    seed: int = 0,
    batch: int = 32,
    judge: Judge | Path | str | None = None,
    steps: Any = None,
    stop: int | None = None,
    sheet: int = 4,
    name: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Paint at every guidance weight under every threshold; print a table, and write results.json, results.md, plot.png
    and sheet.png into `out`.

    Args:
        model: anything with `generate`, or what `diptych.load` takes. Of a cascade the first stage is swept, the others
            keep their own settings; a stage that enlarges is given real pictures made small.
        data: the data set; its seen drawings are the prompts, and the real pictures of the Fréchet distance.
        guidances: the weights; 1 is no guidance.
        thresholds: "none", "static", "dynamic", "dynamic:0.95" or "dynamic:0.95:1.5"; for latents "none" alone.
        pictures: prompts, drawn by `seed`, which fixes each picture's seed too.
        batch: pictures painted at a time; they do not depend on it.
        judge: another judge than the one that ships with diptych, or its folder.
        steps: sampling steps, as `generate` takes them; the model's own if none.
        stop: for a cascade, how many of its stages to run; all if none.
        sheet: prompts on the contact sheet.
        name: what the report calls the model; its path or class if none.

    Returns:
        What results.json holds: the settings, and a cell for each pair with the judge's alignment and retrieval, the
        Fréchet distance on its features, and the share of pixel values at the ends of their range.

    Raises:
        UserError: a value is wrong, `out` holds another sweep, the data lacks what is asked, or matplotlib is missing.
    """
    plots.require()
    model, judge, name = opened(model, judge, name)
    weights = numbers("guidances", guidances)
    bounds = list(dict.fromkeys(str(ThresholdConfig.parse(one)) for one in thresholds))
    bounded = takes(model, "threshold")
    if not bounds:
        raise UserError("thresholds is empty: name at least one of none, static and dynamic")
    if not bounded and bounds != ["none"]:
        raise UserError("this model paints latents, which have no bounds to hold them to: sweep with thresholds none")
    chain = Chain.of(model, stop)
    cells = Cells(
        "guidance",
        model,
        data,
        out,
        judge=judge,
        name=name,
        pictures=pictures,
        seed=seed,
        sheet=sheet,
        size=chain.size,
        settings={"steps": steps, "stop": stop},
    )
    enlarged = chain.configs[0].low_size if chain.configs else None
    common = known(steps=steps, stop=stop)

    def options(key: Key) -> dict[str, Any]:
        swept = ("guidance", "threshold") if bounded else ("guidance",)
        return {name: chain.settings(key[name], first=0, others=False) for name in swept} | common

    # Every threshold at the first weight comes first: whatever the model refuses is refused soon.
    keys: list[Key] = [{"threshold": bound, "guidance": weight} for weight in weights for bound in bounds]
    if todo := cells.missing(keys):
        cells.refer_to_real()
        low = cells.reduced(enlarged) if enlarged else None
        cells.paint(todo, model, batch, options, low, truth=low is not None)
    return finish(cells, console)


def sweep_augmentation(
    model: Any,
    data: Path | str,
    out: Path | str,
    *,
    levels: Sequence[float] = (0, 0.1, 0.2, 0.3, 0.4, 0.5),
    truth: bool = False,
    stage: int | None = None,
    pictures: int = 50,
    seed: int = 0,
    batch: int = 8,
    judge: Judge | Path | str | None = None,
    steps: Any = None,
    stop: int | None = None,
    sheet: int = 4,
    name: str | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Enlarge the same pictures at every augmentation level; print and write as `sweep_guidance` does.

    Args:
        model: a cascade or a stage that enlarges, or what `diptych.load` takes.
        levels: of each stage that enlarges, from 0 (the picture untouched) to 1.
        truth: enlarge real pictures made small, and compare with the real ones too (PSNR); if not, what the stages
            before have painted, once for all levels.
        stage: number (from 0) of the one stage whose level is swept, the ones behind it keeping their own; all that
            enlarge if none.
        The rest: as for `sweep_guidance`.

    Raises:
        UserError: as for `sweep_guidance`; or the model enlarges nothing; or nothing before it paints and `truth` is
            not asked for; or the data's pictures are smaller than the truth would be.
    """
    plots.require()
    model, judge, name = opened(model, judge, name)
    swept = numbers("levels", levels)
    if wrong := [level for level in swept if not 0 <= level <= 1]:
        raise UserError(f"augmentation levels must lie between 0 and 1, not {wrong[0]:g}")
    chain = Chain.of(model, stop)
    first = chain.enlarging(stage)
    if first == 0 and not truth:
        raise UserError("nothing before this stage paints what it enlarges: sweep with truth, real pictures made small")
    before = behind = steps
    if chain.cascade and isinstance(steps, (list, tuple)):  # of stages that are painted apart here
        each = list(one_each("steps", steps, range(len(chain.configs)), len(model.configs)).values())
        before, behind = each[:first], each[first:]
    cells = Cells(
        "augmentation",
        model,
        data,
        out,
        judge=judge,
        name=name,
        pictures=pictures,
        seed=seed,
        sheet=sheet,
        size=chain.size,
        settings={"steps": steps, "stop": stop, "stage": stage, "truth": truth},
    )
    common = known(steps=behind, stop=stop, start=first if chain.cascade else None)

    def options(key: Key) -> dict[str, Any]:
        return {"augmentation": chain.settings(key["level"], first=first, others=stage is None), **common}

    keys: list[Key] = [{"level": level} for level in swept]
    if todo := cells.missing(keys):
        cells.refer_to_real()
        if truth:
            low = cells.reduced(chain.configs[first].low_size)
        else:
            parts = batches(model, cells.group, batch, stop=first, **known(steps=before))
            count = -(-len(cells.group.seeds) // batch)
            low = [picture for part, _ in track(parts, "painting what is enlarged", count) for picture in part]
        plain = [picture.resize((cells.size, cells.size), Image.Resampling.BICUBIC) for picture in low]
        cells.refer("bicubic", plain, truth)
        cells.paint(todo, model, batch, options, low, truth)
    return finish(cells, console)


@dataclass(frozen=True)
class Chain:
    """The stages that run, as a sweep sees them: a cascade's, or a single one; none for a model of another kind."""

    configs: list[Any]
    cascade: bool
    size: int | None
    """Side of what they paint, where the model says it."""

    @classmethod
    def of(cls, model: Any, stop: int | None) -> Chain:
        config, stages = getattr(model, "config", None), getattr(model, "configs", None)
        if stages is None:
            if stop is not None:
                raise UserError("stop is for cascades: this model has no stages to stop after")
            return cls([config] if hasattr(config, "low_size") else [], False, getattr(config, "size", None))
        (count,) = wholes("stop", [len(stages) if stop is None else stop])
        if not 1 <= count <= len(stages):
            raise UserError(f"stop must lie between 1 and {len(stages)}, the stages of this cascade, not {count}")
        return cls(list(stages[:count]), True, stages[count - 1].size)

    def enlarging(self, stage: int | None) -> int:
        """The first stage whose level is swept."""
        found = [number for number, config in enumerate(self.configs) if config.low_size is not None]
        if not found:
            raise UserError("no stage that runs enlarges anything: augmentation is for cascades and their later stages")
        if stage is not None and stage not in found:
            raise UserError(f"stage {stage} enlarges nothing here: choose one of {', '.join(map(str, found))}")
        return found[0] if stage is None else stage

    def settings(self, value: Any, first: int, others: bool) -> Any:
        """`generate`'s argument that sets a value in stage `first`, and in the ones behind it too or not."""
        if not self.cascade:
            return value
        return [value] + [value if others else None] * (len(self.configs) - first - 1)


def numbers(name: str, values: Sequence[float]) -> list[float]:
    """Different finite numbers in order; a `UserError` for anything else."""
    found = sorted({read_number(name, value) for value in values})
    if not found:
        raise UserError(f"{name} is empty: give at least one number")
    return found


def takes(model: Any, argument: str) -> bool:
    """Whether `generate` has such an argument."""
    parameters = inspect.signature(model.generate).parameters
    return argument in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())


def known(**values: Any) -> dict[str, Any]:
    """What is not none."""
    return {key: value for key, value in values.items() if value is not None}


def finish(cells: Cells, console: Console | None) -> dict[str, Any]:
    """Print the table, and write it, the plot and the contact sheet from all cells that there are."""
    console, results = console or terminal.console(), cells.results
    table = report.sweep_table(results)
    console.print(table)
    write_tables(cells.out / "results.md", 160, table)
    plots.plot(results, cells.out / "plot.png")
    save_png(report.sweep_sheet(results, cells.strip, cells.group.prompts[: cells.sheet]), cells.out / "sheet.png")
    console.print(f"the table, the plot, a contact sheet and all numbers are in {cells.out}")
    return results
