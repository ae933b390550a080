"""The seen drawings of a data set, generated under each of many conditions from the same seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from rich.table import Table

from diptych.core.errors import UserError
from diptych.evaluation.measured_cells import MeasuredCells
from diptych.evaluation.prompt_sets import choose_prompts
from diptych.evaluation.runner import (
    MeasuredStudy,
    StudyCell,
    by_model,
    config_hash,
    describe_data,
    describe_judge,
    model_fingerprint,
    model_sizes,
    open_data,
    open_judge,
    prompts_hash,
)
from diptych.evaluation.scores import DrawingScores
from diptych.models.judge import Judge

Key = dict[str, Any]
"""A condition: {"guidance": 7.0, "threshold": "static"} or {"level": 0.1}."""
THRESHOLDS = ("none", "static", "dynamic")


@dataclass(kw_only=True, eq=False)
class ConditionSweep(MeasuredStudy):
    """The same prompts and seeds at every point of a sweep, and references: real images, chance, perhaps bicubic."""

    writes = ("results.md", "cells", "plot.png", "sheet.png")
    closing = "the numbers of all cells are in {out}"
    grows = ("references",)
    model: Any
    scores: DrawingScores
    points: Sequence[Key]
    options: Callable[[Key], dict[str, Any]]
    """Arguments of `generate` at a point."""
    low: Callable[[], list[Image.Image]] | None = None
    """Makes the low-resolution input, the same at each point."""
    paired: bool = False
    """Whether each generated image has a real one to compare with."""
    bicubic: bool = False
    """Whether the low-resolution input, upsampled, is a reference."""

    def tables(self, results: dict[str, Any]) -> list[Table | str]:
        return []

    def report(self, cells: MeasuredCells) -> None:
        """A sweep without plot and sheet."""

    def identity(self, head: dict[str, Any]) -> dict[str, Any]:
        return {
            "sweep": head["sweep"],
            "settings": {name: head["settings"].get(name) for name in self.head["settings"]},
            "model": [head["model"].get(name) for name in ("fingerprint", "config")],
            "judge": head["judge"].get("fingerprint"),
            "data": head["data"].get("prompts"),
        }

    def summary(self, results: dict[str, Any]) -> dict[str, Any]:
        """What is said of the model now, also in results that an earlier version began."""
        return {"model": self.head["model"]}

    def order(self, record: dict[str, Any]) -> Any:
        return [rank(record[name]) for name in self.points[0]]

    def cells(self) -> list[StudyCell]:
        return [
            StudyCell(
                name=(name := strip_name(key)),
                key=key,
                count=len(self.scores.group.seeds),
                strip=name,
                generate=lambda part, key=key: self.generated(key, part),
            )
            for key in self.points
        ]

    def generated(self, key: Key, part: Sequence[int]) -> tuple[list[Image.Image], dict[str, Any]]:
        each = None if self._low is None else {"low": self._low}
        return by_model(self.model, self.scores.group.prompts, self.scores.group.seeds, each, **self.options(key))(part)

    @cached_property
    def _low(self) -> list[Image.Image] | None:
        return None if self.low is None else self.low()

    def prepare(self, cells: MeasuredCells) -> None:
        """Measure the references."""
        cells.results["references"] |= self.scores.references()
        cells.save_strip("real", self.scores.real)
        if self.bicubic:
            side = self.scores.size
            upsampled = [image.resize((side, side), Image.Resampling.BICUBIC) for image in self._low or ()]
            cells.results["references"]["bicubic"] = self.scores.measure(upsampled, self.paired)
            cells.save_strip("bicubic", upsampled)

    def measure(self, cell: StudyCell, images: list[Image.Image], metadata: dict[str, Any]) -> dict[str, Any]:
        settings = {name: value for name, value in metadata.items() if name not in ("prompt", "negative", "seed")}
        return {**self.scores.measure(images, self.paired), "told": settings, "strip": cell.strip}


def strip_name(key: Key) -> str:
    """The file of a cell's first images."""
    words = [f"{name}-{value!r}" if isinstance(value, float) else str(value) for name, value in key.items()]
    return "-".join(words).replace(":", "-")


def rank(value: Any) -> tuple[int, Any]:
    """Thresholds from none to dynamic, other words behind them by the alphabet, numbers by their size."""
    if isinstance(value, str):
        kind = value.split(":")[0]
        return THRESHOLDS.index(kind) if kind in THRESHOLDS else len(THRESHOLDS), value
    return 0, value


def seen_drawings(
    data: Path | str, judge: Judge | Path | str | None, images: int, seed: int, size: int | None
) -> DrawingScores:
    """The prompts of a sweep, drawn by `seed`, with their real images at `size`, the judge's if none.

    Raises a `UserError` where the data has fewer than two seen drawings.
    """
    if images < 2:
        raise UserError(f"images must be at least 2, not {images}: a Fréchet distance needs two")
    judge = open_judge(judge)
    dataset, metas, concepts = open_data(data, judge)
    ((group,), _) = choose_prompts(metas, images, 0, seed, splits=("seen",))
    if len(group.seeds) < 2:
        raise UserError(f"{data} has a single seen drawing: a sweep needs at least two")
    return DrawingScores(judge, dataset, group, concepts, size or judge.config.size)


def sweep_head(
    sweep: str, model: Any, name: str, data: Path | str, scores: DrawingScores, settings: dict[str, Any]
) -> dict[str, Any]:
    """The head of a sweep's results."""
    return {
        "sweep": sweep,
        "model": {
            "name": name,
            "fingerprint": model_fingerprint(model),
            "config": config_hash(model),
            **model_sizes(model),
        },
        "judge": describe_judge(scores.judge),
        "data": describe_data(data, prompts=prompts_hash([scores.group])),
        "settings": {"pictures": len(scores.group.seeds), **settings},
        "concepts": len(scores.concepts),
        "references": {},
    }
