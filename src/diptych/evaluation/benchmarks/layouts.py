"""Layouts: held-out scenes are generated from their boxes, and the judge classifies the crop of each box.

The same boxes on the real scenes are the ceiling. Floors are the generated images seen through the boxes of other
scenes, and, where a scene has several objects, each looked for in another's box: a model that follows the words but not
the places scores there. A model whose prompts are the scenes' captions, without boxes, may be compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from diptych.core.config import read_json
from diptych.core.disk import write_text
from diptych.core.errors import UserError
from diptych.data.dataset import ImageDataset
from diptych.evaluation.folder import as_json, require_free
from diptych.evaluation.image_store import ImageFolder
from diptych.evaluation.inception_measures import FOLDER, InceptionMeasures, over_seeds
from diptych.evaluation.layout_places import FEW, MEASURES, Hits, Places, difference, other_scenes, shares, swapped
from diptych.evaluation.prompt_sets import BoxedScene, choose_boxed_scenes
from diptych.evaluation.published_results import comparison
from diptych.evaluation.report import SheetCell, contact_sheet, percent, with_boxes
from diptych.evaluation.runner import (
    ImageStudy,
    StudyCell,
    by_model,
    describe_data,
    describe_judge,
    model_fingerprint,
    open_data,
    open_judge,
    open_model,
    run_study,
)
from diptych.evaluation.scores import crop_box, real_images
from diptych.models.judge import Judge
from diptych.models.retrieval import concept_vectors, ranks

SIDE, COLOURS = 96, 128
"""Of the contact sheet: pixels of an image, and colours, to keep it small."""


def evaluate_layouts(
    model: Any,
    data: Path | str,
    out: Path | str,
    *,
    words: Any = None,
    scenes: int | None = None,
    seeds: int = 4,
    seed: int = 0,
    batch: int = 32,
    judge: Judge | Path | str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    sheet: int = 24,
    name: str | None = None,
    inception: InceptionMeasures | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Score a layout-to-image model, print tables, and write results.json, results.md, layouts.png and every generated
    image into `out`. The same call again goes on behind the last image that is there.

    Args:
        model: anything with `generate` whose prompts are layouts, or what `diptych.load` takes.
        data: the data set, with held-out scenes that have objects with boxes.
        words: a model whose prompts are the scenes' captions instead; none to leave it out.
        scenes: how many, drawn by `seed`; all if none.
        seeds: images of each scene; image j of scene i gets seed `seed` + i * seeds + j. batch: images at a time.
        judge: another judge than the one that ships with diptych, or its folder.
        steps, guidance, sampler: for the layout model; each model's own if none.
        sheet: scenes on the contact sheet, the first ones.
        name: the model's name in the report; its path or class if none.
        inception: measures FID, Inception Score, precision and recall of the images against the real scenes too.

    Returns:
        The content of results.json: `rows` has the shares of boxes whose concept the judge names, by `MEASURES`;
        `margins` their differences, scene by scene. Standard errors are over scenes, whose boxes and seeds are not
        independent; `over_seeds` are those over seeds alone.

    Raises:
        UserError: there are no such scenes, or `out` holds images of another model or with other settings.
    """
    if min(seeds, batch) < 1:
        raise UserError("seeds and batch must be at least 1")
    judge = open_judge(judge)
    model, name = open_model(model, name)
    dataset, metas, concepts = open_data(data, judge)
    chosen = choose_boxed_scenes(data, metas, scenes, seed)
    if inception is not None:
        inception.require(len(chosen), len(chosen))
    options = {"steps": steps, "guidance": guidance, "sampler": sampler}
    arms = {"painted": LayoutArm(model, [scene.layout for scene in chosen], options)}
    if words is not None:
        arms["from words"] = LayoutArm(open_model(words)[0], [scene.caption for scene in chosen], {})
    concepts = sorted({*concepts, *(concept for scene in chosen for concept, _ in scene.objects)})
    settings = {"scenes": len(chosen), "seeds": seeds, "seed": seed, **options}
    study = Layouts(
        head={
            "evaluation": "layouts",
            "models": {kind: model_fingerprint(arm.model) for kind, arm in arms.items()},
            "judge": describe_judge(judge),
            "data": describe_data(data),
            "settings": {**settings, "layouts": [scene.layout for scene in chosen]},
        },
        batch=batch,
        name=name,
        arms=arms,
        naming=BoxNaming(judge, concepts, chosen, seed),
        real=[Image.fromarray(dataset[scene.index].image) for scene in chosen],
        seeds=seeds,
        seed=seed,
        sheet=sheet,
        dataset=dataset,
        inception=inception,
    )
    return run_study(study, out, console)


@dataclass(frozen=True)
class LayoutArm:
    """A model, and its prompt for each scene."""

    model: Any
    prompts: list[str]
    options: dict[str, Any]


@dataclass(kw_only=True, eq=False)
class Layouts(ImageStudy):
    """A cell for each model, all scenes and seeds."""

    writes = ("results.json", "results.md", "layouts.png", FOLDER)
    saves_images = True
    closing = "tables, a contact sheet and every image are in {out}"
    name: str
    """Of the layout model, for the report."""
    arms: dict[str, LayoutArm]
    naming: BoxNaming
    real: list[Image.Image]
    """Of each scene."""
    seeds: int
    seed: int
    sheet: int
    dataset: ImageDataset
    inception: InceptionMeasures | None = None
    images: dict[str, list[list[Image.Image]]] = field(default_factory=dict)
    """For each arm and scene, the images of all seeds."""
    hits: dict[str, Hits] = field(default_factory=dict)

    def cells(self) -> list[StudyCell]:
        count = len(self.naming.scenes) * self.seeds
        seeds = [self.seed + number for number in range(count)]
        return [
            StudyCell(
                name=kind,
                count=count,
                generate=by_model(
                    arm.model, [prompt for prompt in arm.prompts for _ in range(self.seeds)], seeds, **arm.options
                ),
            )
            for kind, arm in self.arms.items()
        ]

    def store(self, out: Path, cell: StudyCell) -> ImageFolder:
        """A folder for each model, which also holds what its images were made from.

        Raises a `UserError` where it holds images of another model or with other settings.
        """
        folder, arm = out / cell.name.replace(" ", "-"), self.arms[cell.name]
        settings = {"model": model_fingerprint(arm.model), "seed": self.seed, "seeds": self.seeds}
        settings |= {"prompts": arm.prompts} | {key: one for key, one in arm.options.items() if one is not None}
        if (path := folder / "settings.json").exists() and read_json(path) != as_json(settings):
            raise UserError(f"{folder} holds images of another model or with other settings: name another folder")
        if not path.exists():
            require_free(folder, ("*.png",))
        write_text(path, json.dumps(settings, indent=1, ensure_ascii=False) + "\n")
        return ImageFolder(
            folder, [f"{i:04d}-{j}.png" for i in range(len(self.naming.scenes)) for j in range(self.seeds)]
        )

    def results(self, images: dict[str, list[Image.Image]], metadata: dict[str, dict[str, Any]]) -> dict[str, Any]:
        self.images = {
            kind: [made[start : start + self.seeds] for start in range(0, len(made), self.seeds)]
            for kind, made in images.items()
        }
        self.images["real"] = [[image] for image in self.real]
        naming = self.naming
        hits = self.hits = {kind: naming.hits(made, naming.own) for kind, made in self.images.items()}
        for kind in self.arms:
            hits[f"{kind}, boxes of other scenes"] = naming.hits(self.images[kind], naming.elsewhere)
            hits[f"{kind}, box of another thing in it"] = naming.hits(self.images[kind], naming.swapped)
        hits["real, boxes of other scenes"] = naming.hits(self.images["real"], naming.elsewhere)
        others = [kind for kind in hits if kind != "painted"]
        measured = {} if self.inception is None else {"inception": self.measured(self.inception)}
        return {
            "model": {"name": self.name, "fingerprint": self.head["models"]["painted"]},
            "judge": self.head["judge"],
            "data": self.head["data"],
            "settings": {key: value for key, value in self.head["settings"].items() if key != "layouts"},
            "concepts": len(naming.numbers),
            "boxes": sum(len(scene.objects) for scene in naming.scenes),
            "scenes_of_several": sum(any(places) for places in naming.swapped),
            "rows": {kind: shares(scenes) for kind, scenes in hits.items()},
            "chance": {name: {"value": value} for name, value in naming.chance().items()},
            "margins": {f"painted - {other}": difference(hits["painted"], hits[other]) for other in others},
            **measured,
        }

    def measured(self, inception: InceptionMeasures) -> dict[str, Any]:
        """The measures of each model's images of one seed against the real scenes at the images' size."""
        rows, sizes = {}, {}
        for kind in self.arms:
            size = sizes[kind] = self.images[kind][0][0].width
            places = [scene.index for scene in self.naming.scenes]
            real = inception.features(real_images(self.dataset, places, size))
            seeds = ([row[number] for row in self.images[kind]] for number in range(self.seeds))
            rows[kind] = over_seeds(inception(real, images) for images in seeds)
        return {"measures": inception.describe(), "sizes": sizes, "rows": rows}

    def files(self, results: dict[str, Any]) -> dict[str, str]:
        """The measures of each model for `diptych evaluate published`."""
        if self.inception is None:
            return {}
        files, counts = {}, (len(self.naming.scenes), len(self.naming.scenes))
        for kind, row in results["inception"]["rows"].items():
            size, about = results["inception"]["sizes"][kind], {"name": "layout", "seeds": self.seeds}
            files |= self.inception.files({kind: row}, counts, size, results["data"], about)
        return files

    def sheets(self, results: dict[str, Any]) -> dict[str, Image.Image]:
        """Each scene by every model, and the real one; a green box is one whose concept the judge named of few."""
        cells = []
        for i, scene in enumerate(self.naming.scenes[: self.sheet]):
            boxes = [sides for _, sides in scene.objects]
            images = [
                with_boxes(made[i][0], boxes, self.hits[kind][i][0][:, -1], SIDE) for kind, made in self.images.items()
            ]
            prompt = ", ".join(name for name, _ in scene.objects)
            cells.append(SheetCell(prompt=prompt, images=images, correct=[None] * len(images), notes=list(self.images)))
        sheet = contact_sheet(cells, columns=max(1, 9 // len(self.images)), side=SIDE)
        return {"layouts.png": sheet.quantize(COLOURS, dither=Image.Dither.NONE)}

    def tables(self, results: dict[str, Any]) -> list[Table | str]:
        """Shares of boxes, and their margins."""
        settings = results["settings"]
        about = f"{results['boxes']} boxes of {settings['scenes']} held-out scenes, {settings['seeds']} seeds"
        rows = Table(title=f"{about}: named among {results['concepts']} concepts, %", box=box.MARKDOWN)
        for name in ("images, boxes", "boxes", *MEASURES.values(), "over seeds"):
            rows.add_column(name, justify="left" if name == "images, boxes" else "right")
        for name, row in results["rows"].items():
            seeds = row[list(MEASURES)[-1]]["over_seeds"]
            error = "" if seeds is None else f"±{100 * seeds:.1f}"
            rows.add_row(name, str(row["boxes"]), *(percent(row[measure]) for measure in MEASURES), error)
        rows.add_row("chance", "", *(percent(results["chance"][measure]) for measure in MEASURES), "")
        margins = Table(title="Margins, scene by scene, in percentage points; errors over scenes", box=box.MARKDOWN)
        for name in ("difference", "boxes", *MEASURES.values()):
            margins.add_column(name, justify="left" if name == "difference" else "right")
        for name, row in results["margins"].items():
            margins.add_row(name, str(row["boxes"]), *(percent(row[measure]) for measure in MEASURES))
        if "inception" not in results:
            return [rows, margins]
        measured = results["inception"]["rows"].items()
        of_papers = {self.name if kind == "painted" else kind: row for kind, row in measured}
        return [comparison(f"InceptionV3, {settings['scenes']} scenes", of_papers, []), rows, margins]


class BoxNaming:
    """The boxes of scenes, and the judge's names for their content."""

    def __init__(self, judge: Judge, concepts: list[str], scenes: Sequence[BoxedScene], seed: int) -> None:
        self.judge, self.scenes = judge, scenes
        self.vectors: Tensor = concept_vectors(judge, concepts)
        self.numbers = {concept: number for number, concept in enumerate(concepts)}
        self.own: Places = [[sides for _, sides in scene.objects] for scene in scenes]
        self.elsewhere: Places = other_scenes(self.own, seed)
        self.swapped: Places = [swapped(scene.objects) for scene in scenes]
        self.few = [torch.tensor(row) for row in self.choices(seed)]

    def choices(self, seed: int) -> Iterator[list[list[int]]]:
        """For each scene, and each of its objects, the numbers of `FEW` concepts, the object's own first."""
        draw = np.random.Generator(np.random.PCG64(seed))
        every = sorted({concept for scene in self.scenes for concept, _ in scene.objects})
        for scene in self.scenes:
            present = {concept for concept, _ in scene.objects}
            others = [every[n] for n in draw.permutation(len(every)) if every[n] not in present]
            names = [[true, *sorted(present - {true}), *others][:FEW] for true, _ in scene.objects]
            yield [[self.numbers[name] for name in row] for row in names]

    def chance(self) -> dict[str, float]:
        """The scores of a judge that guesses."""
        few = [len(row) for rows in self.few for row in rows]
        return {
            "top1": 1 / len(self.numbers),
            "top5": min(5 / len(self.numbers), 1.0),
            "of_few": float(np.mean([1 / count for count in few])),
        }

    def hits(self, images: Sequence[Sequence[Image.Image]], places: Places) -> Hits:
        """Whether each object is named in its place, in each of the images of its scene."""
        rows = zip(images, places, strict=True)
        hits = [np.full((len(row), len(place), len(MEASURES)), np.nan) for row, place in rows]
        keys, crops, truth = [], [], []
        for i, (row, scene) in enumerate(zip(images, self.scenes, strict=True)):
            for j, image in enumerate(row):
                for k, ((concept, _), sides) in enumerate(zip(scene.objects, places[i], strict=True)):
                    if sides is not None:
                        keys.append((i, j, k))
                        crops.append(crop_box(image, sides, self.judge.config.size))
                        truth.append(self.numbers[concept])
        if keys:
            vectors = self.judge.encode_images(crops)  # (N, D)
            rank = ranks(vectors, self.vectors, torch.tensor(truth)).tolist()
            for (i, j, k), vector, place in zip(keys, vectors, rank, strict=True):
                true, *others = (self.vectors[self.few[i][k]] @ vector).tolist()
                hits[i][j, k] = place < 1, place < 5, all(true > other for other in others)
        return hits
