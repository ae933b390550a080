"""What measures of images miss: drawings are degraded in known ways, and the measures asked for the order.

Four parts. Graded faults, whose levels have a known order: does a measure have it too? Changes that nobody notices
against faults that everyone sees: does one of the first move a measure more? Sets of one distribution and of different
sizes: does a measure say the same? Drawings of a known number of things (Saharia et al. 2022, section 4.3, on the
CLIP score): does a text-image score choose the caption with the right number as often as that with the right colour?
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from diptych.core.errors import UserError
from diptych.core.images import save_png
from diptych.core.processors import processor_name
from diptych.data.caption_text import is_scene
from diptych.data.dataset import DataConfig, ImageDataset, open_dataset
from diptych.data.emoji.scenes import SceneRenderer
from diptych.evaluation import blind_spot_report, graded_faults, plots
from diptych.evaluation.benchmarks.reconstruction import side_of
from diptych.evaluation.count_drawings import COUNTS, CountTrial, draw_trials, measure_counts, open_renderer
from diptych.evaluation.graded_faults import FAULTS, FEW, INVISIBLE, TURNED, WRONG, fault_seed
from diptych.evaluation.human.fault_study import agreement_with_people, folder_name, write_study_images
from diptych.evaluation.measured_cells import MeasuredCells
from diptych.evaluation.report import image_table
from diptych.evaluation.runner import MeasuredStudy, StudyCell, describe_data, run_study
from diptych.evaluation.set_measures import (
    DIRECTIONS,
    SetMeasures,
    half_samples,
    interval,
    kendall_tau,
    overtakers,
)
from diptych.evaluation.text_image_scorer import TextImageScorer
from diptych.metrics.feature_networks import FeatureNetwork
from diptych.metrics.pixel_measures import image_psnr

LEVELS = len(WRONG)
FEW_DIFFERENT, WRONG_OBJECT, UPSIDE_DOWN = "few different", "wrong object", "upside down"
KINDS = (*FAULTS, WRONG_OBJECT, FEW_DIFFERENT)
SEEN = {"one part missing": ("missing parts", 1), "one pair swapped": ("swapped parts", 1)}
SEEN |= {"wrong colour": ("wrong colour", LEVELS), UPSIDE_DOWN: (UPSIDE_DOWN, 1)}
"""Faults that everyone sees -> kind and level."""
SHOWN = 2
"""Level that people are shown; of objects the last, where all are wrong."""
PEOPLE, ORIGINAL = "people", "original"
DRAWS, SMALLEST = 10, 50
"""Of the part on sizes: draws of each size, and the smallest."""


def measure_blind_spots(
    data: Path | str,
    out: Path | str,
    network: FeatureNetwork,
    scorer: TextImageScorer,
    *,
    images: int = 1000,
    trials: int = 200,
    resamples: int = 40,
    k: int = 3,
    seed: int = 0,
    batch: int = 64,
    people: int = 12,
    answers: Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure all four parts; write results.json, results.md, plot.png, sheet.png and images for people into `out`.

    Args:
        data: single drawings with captions; emoji shards, for counts are drawn with them.
        network: whose features are compared. scorer: of alignment and of counts.
        images: that are degraded; as many others are the reference.
        trials: things that are drawn 1, 2, 3 and 4 times.
        resamples: half samples of each level, for intervals.
        people: prompts whose images are written for a human study.
        answers: a study that `diptych study make` made of these, with answers: each measure is held to its order.

    Raises:
        UserError: there are too few drawings, `out` holds something else, or matplotlib is missing.
    """
    plots.require()
    dataset = open_dataset(DataConfig(path=str(data), split="all"))
    dataset = open_dataset(DataConfig(path=str(data), size=side_of(dataset), split="all"))
    metas = [dataset.meta(index) for index in range(len(dataset))]
    singles = [index for index, meta in enumerate(metas) if not is_scene(meta)]
    if len(singles) < 2 * images:
        raise UserError(f"{data} has {len(singles):,} single drawings, and twice {images:,} are needed: give --images")
    if images <= 2 * k:
        raise UserError(f"half of {images} images are no more than k = {k} neighbours: give more --images")
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(singles))
    reference, pool = ([singles[n] for n in part] for part in (order[:images], order[images:]))
    renderer = open_renderer(dataset, metas, singles)
    study = BlindSpots(
        head={
            "evaluation": "blind-spots",
            "features": network.describe(),
            "scorer": scorer.facts,
            "data": describe_data(data),
            "settings": {"pictures": images, "size": dataset.config.size, "trials": trials, "resamples": resamples}
            | {"k": k, "seed": seed, "people": people},
        },
        batch=batch,
        sheet=2 * LEVELS,
        dataset=dataset,
        metas=metas,
        reference=reference,
        pool=pool,
        network=network,
        scorer=scorer,
        trials=draw_trials(renderer, trials, seed),
        renderer=renderer,
        answers=answers,
    )
    return run_study(study, out, console)


@dataclass(kw_only=True, eq=False)
class BlindSpots(MeasuredStudy):
    """A cell for each kind of fault, with all its levels; for each invisible change, each size, and the counts."""

    writes = ("results.md", "cells", "plot.png", "sheet.png", PEOPLE)
    description = "degrading and measuring"
    closing = "the numbers are in {out}; {out}/people/README.md says how to ask people for their order"
    dataset: ImageDataset
    metas: Sequence[Mapping[str, Any]]
    reference: Sequence[int]
    pool: Sequence[int]
    """All others: the first of them are degraded, and sets of all sizes are drawn from them."""
    network: FeatureNetwork
    scorer: TextImageScorer
    trials: Sequence[CountTrial]
    renderer: SceneRenderer
    answers: Path | None

    def __post_init__(self) -> None:
        self.measured = self.pool[: len(self.reference)]
        self.captions: list[str] = [self.metas[index]["captions"][0] for index in self.measured]
        self.setting: dict[str, Any] = self.head["settings"]

    # Images.

    def original(self, number: int) -> Image.Image:
        return Image.fromarray(self.dataset[self.measured[number]].image)

    def degraded(self, kind: str, level: int, number: int) -> Image.Image:
        """Image `number` of the set of this kind and level."""
        seed = fault_seed(self.setting["seed"], kind, number)
        if kind in self.places:
            return self.original(int(self.places[kind][level - 1][number]))
        fault = TURNED if kind == UPSIDE_DOWN else FAULTS.get(kind) or INVISIBLE[kind]
        return fault(self.original(number), fault.amounts[level - 1], seed)

    @cached_property
    def places(self) -> dict[str, list[np.ndarray]]:
        """Kinds that put one image in the place of another: its number, of each level and image."""
        styles = [str(self.metas[index].get("style")) for index in self.measured]
        return {
            WRONG_OBJECT: [graded_faults.wrong_objects(styles, share) for share in WRONG],
            FEW_DIFFERENT: [graded_faults.few_kept(len(styles), share) for share in FEW],
        }

    # Cells.

    def cells(self) -> list[StudyCell]:
        count = len(self.measured)

        def cell(part: str, kind: str, levels: int) -> StudyCell:
            def generate(numbers: Sequence[int]) -> tuple[list[Image.Image], dict[str, Any]]:
                return [self.degraded(kind, 1 + n % levels, n // levels) for n in numbers], {}

            key = {"part": part, "kind": kind}
            name = folder_name(kind)
            return StudyCell(name=name, count=count * levels, generate=generate, key=key, strip=name)

        cells = [cell("graded", kind, LEVELS) for kind in KINDS]
        cells += [cell("invisible", kind, 1) for kind in INVISIBLE]
        cells.append(cell("visible", UPSIDE_DOWN, 1))
        sizes = [SMALLEST * 2**n for n in range(32) if self.setting["k"] < SMALLEST * 2**n < len(self.pool)]
        for size in (*sizes, len(self.pool)):
            cells.append(StudyCell(name=f"size-{size}", count=0, generate=nothing, key={"part": "size", "kind": size}))

        def draw(numbers: Sequence[int]) -> tuple[list[Image.Image], dict[str, Any]]:
            return [self.trials[n // len(COUNTS)].draw(self.renderer, COUNTS[n % len(COUNTS)]) for n in numbers], {}

        drawings = len(self.trials) * len(COUNTS)
        cells.append(
            StudyCell(
                name="counts", count=drawings, generate=draw, key={"part": "counts", "kind": "counts"}, strip="counts"
            )
        )
        return cells

    def order(self, record: dict[str, Any]) -> Any:
        return blind_spot_report.PARTS.index(record["part"])

    def measure(self, cell: StudyCell, images: list[Image.Image], metadata: dict[str, Any]) -> dict[str, Any]:
        return {"processor": processor_name(), **self.numbers(cell, images)}

    def numbers(self, cell: StudyCell, images: list[Image.Image]) -> dict[str, Any]:
        if cell.key["part"] == "counts":
            return measure_counts(self.scorer, self.trials, images)
        if cell.key["part"] == "size":
            return self.of_size(cell.key["kind"])
        levels, every = len(images) // len(self.measured), range(0, len(self.measured), 10)
        sets = [self.halves(self.features(images[n::levels]), images[n::levels]) for n in range(levels)]
        psnr = [[image_psnr(self.original(n), images[n * levels + i]) for n in every] for i in range(levels)]
        numbers: dict[str, Any] = {"psnr": [float(np.mean(one)) for one in psnr], "values": {}, "deviation": {}}
        for name, way in DIRECTIONS.items():
            series = [one[name] for one in (self.clean, *sets)]
            numbers["values"][name] = [values[0] for values in series]
            numbers["deviation"][name] = [float(np.std(values[1:])) for values in series]
            if len(series) > 2:
                taus = [way * kendall_tau(values) + 0.0 for values in zip(*series, strict=True)]
                numbers.setdefault("tau", {})[name] = {"value": taus[0], **interval(taus[1:])}
        return numbers

    @cached_property
    def measures(self) -> SetMeasures:
        originals = [Image.fromarray(self.dataset[index].image) for index in self.reference]
        return SetMeasures(self.features(originals), self.setting["k"])

    @cached_property
    def clean(self) -> dict[str, list[float]]:
        """Of the images as they are."""
        return self.halves(
            self.pool_features[: len(self.measured)], [self.original(n) for n in range(len(self.measured))]
        )

    @cached_property
    def pool_features(self) -> np.ndarray:
        parts = (self.pool[n : n + self.batch] for n in range(0, len(self.pool), self.batch))
        return np.concatenate([self.features([Image.fromarray(self.dataset[n].image) for n in part]) for part in parts])

    @cached_property
    def texts(self) -> torch.Tensor:
        return self.scorer.texts(self.captions)

    def features(self, images: Sequence[Image.Image]) -> np.ndarray:
        """(N, D) float32."""
        prepare, parts = self.network.prepare, range(0, len(images), self.batch)
        return torch.cat(
            [self.network(torch.stack([prepare(one) for one in images[n : n + self.batch]])) for n in parts]
        ).numpy()

    def halves(self, features: np.ndarray, images: Sequence[Image.Image]) -> dict[str, list[float]]:
        """Measure -> its value of all images, then of each half sample; the same halves for every set."""
        vectors = [self.scorer.images(images[n : n + self.batch]) for n in range(0, len(images), self.batch)]
        aligned = 100 * (torch.cat(vectors) * self.texts).sum(1).numpy()
        parts = [slice(None), *half_samples(len(images), self.setting["resamples"], self.setting["seed"])]
        rows = [{**self.measures(features[part]), "alignment": float(aligned[part].mean())} for part in parts]
        return {name: [row[name] for row in rows] for name in DIRECTIONS}

    def of_size(self, size: int) -> dict[str, Any]:
        """Of so many images as they are, drawn some times: means and standard deviations."""
        draw = np.random.Generator(np.random.PCG64([self.setting["seed"], size]))
        count = len(self.pool)
        draws = [draw.permutation(count)[:size] for _ in range(DRAWS if size < count else 1)]
        rows = [self.measures(self.pool_features[part]) for part in draws]
        each = {name: [row[name] for row in rows] for name in rows[0]}
        return {
            "values": {name: float(np.mean(values)) for name, values in each.items()},
            "deviation": {name: float(np.std(values)) for name, values in each.items()},
        }

    # The report.

    def summary(self, results: dict[str, Any]) -> dict[str, Any]:
        cells = {(cell["part"], cell["kind"]): cell for cell in results["cells"]}
        if len(cells) < len(self.cells()):
            return {}
        unseen = {kind: changes(cells["invisible", kind], 1) for kind in INVISIBLE}
        seen = {
            name: changes(cells["visible" if kind == UPSIDE_DOWN else "graded", kind], level)
            for name, (kind, level) in SEEN.items()
        }
        found = {name: overtakers(unseen, seen, name) for name in DIRECTIONS}
        summary: dict[str, Any] = {"changes": {"invisible": unseen, "visible": seen}, "overtaken": found}
        if self.answers is not None:
            worse = {
                name: {kind: way * cells["graded", kind]["values"][name][shown_level(kind)] for kind in KINDS}
                for name, way in DIRECTIONS.items()
            }
            summary["people"] = agreement_with_people(self.answers, worse)
        return summary

    def report(self, cells: MeasuredCells) -> None:
        blind_spot_report.plot(cells.results, cells.out / "plot.png")
        kinds = (*KINDS, *INVISIBLE, UPSIDE_DOWN, "counts")
        rows = [(kind, [cells.strip(folder_name(kind))]) for kind in kinds]
        notes = [f"{kind}: {', '.join(f'{a:g}' for a in one.amounts)} ({one.unit})" for kind, one in FAULTS.items()]
        save_png(image_table(["levels 1 to 4 of two drawings"], rows, notes, 96), cells.out / "sheet.png")
        shown: dict[str, Callable[[int], Image.Image]] = {ORIGINAL: self.original}
        for kind in KINDS:
            if kind != FEW_DIFFERENT:  # it is a fault of a set, not of an image
                shown[kind] = partial(self.degraded, kind, shown_level(kind))
        numbers = {caption.casefold(): n for n, caption in reversed(list(enumerate(self.captions)))}
        chosen = sorted(numbers.values())[: self.setting["people"]]
        write_study_images(cells.out / PEOPLE, shown, {number: self.captions[number] for number in chosen})

    def tables(self, results: dict[str, Any]) -> list[Table | str]:
        return blind_spot_report.tables(results)


def shown_level(kind: str) -> int:
    """The level of a kind that people are shown."""
    return LEVELS if kind == WRONG_OBJECT else SHOWN


def changes(cell: Mapping[str, Any], level: int) -> dict[str, Any]:
    """What a fault changes of each measure, with the deviation of the images as they are; and its PSNR."""
    values, spread = cell["values"], cell["deviation"]
    return {name: values[name][level] - values[name][0] for name in DIRECTIONS} | {
        "psnr": cell["psnr"][level - 1],
        "deviation": {name: spread[name][0] for name in DIRECTIONS},
    }


def nothing(numbers: Sequence[int]) -> tuple[list[Image.Image], dict[str, Any]]:
    """The images of a cell that has none of its own."""
    return [], {}
