"""Super-resolution: models against bicubic upsampling, the originals, and the bound that a first stage sets.

The layout is that of LDM's table 5 (Rombach et al. 2022, section 4.4). A latent model generates no image that its first
stage cannot decode: the reconstruction of the original itself is in the table, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from diptych.conditioning.concat_config import DegradationConfig
from diptych.conditioning.degradations import degrade
from diptych.core.errors import UserError
from diptych.core.hashing import mix
from diptych.core.images import grid, to_images, to_tensor
from diptych.data.dataset import Split
from diptych.evaluation.benchmarks.reconstruction import FirstStageArm
from diptych.evaluation.image_store import ImageSheet
from diptych.evaluation.inception_measures import FOLDER, InceptionMeasures, over_seeds
from diptych.evaluation.prompt_sets import draw_examples
from diptych.evaluation.published_results import comparison
from diptych.evaluation.report import SheetCell, comparison_table, contact_sheet, enlarged_sheet, short_name
from diptych.evaluation.runner import (
    ImageStudy,
    StudyCell,
    by_model,
    describe_data,
    describe_model,
    open_judge,
    parameter_count,
    run_study,
    safe_letters,
)
from diptych.evaluation.scores import Fidelity, fidelity
from diptych.evaluation.super_resolution_table import MEASURES, arm_lines, shortened
from diptych.metrics.feature_rows import FeatureRowsFile
from diptych.metrics.pixel_measures import image_psnr
from diptych.models.judge import Judge
from diptych.models.retrieval import Mean
from diptych.weights.fingerprint import fingerprint

COLOURS, SIDE = 128, 128  # of the contact sheet: colours, side of an image


def evaluate_super_resolution(
    models: Sequence[tuple[str, Any]],
    data: Path | str,
    out: Path | str,
    *,
    split: Split = "held-out",
    images: int = 200,
    seeds: int = 2,
    degradation: Literal["bicubic", "bsr", "bsr-light"] = "bicubic",
    perceptual: Any = None,
    judge: Judge | Path | str | None = None,
    steps: int | None = None,
    sampler: str | None = None,
    seed: int = 0,
    batch: int = 16,
    sheet: int = 8,
    inception: InceptionMeasures | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Upsample the same images by all models; write results.json, results.md, sheet.png, larger.png and painted/.

    Images in `painted/`, of an earlier run with these models and settings, are not generated again.

    Args:
        models: names and super-resolution models (latent models, stages), all of one factor and size, on one device.
        data: shards, or a folder of images; so many `images` of its `split`, drawn by `seed`.
        seeds: how often each model upsamples each image.
        degradation: how the low-resolution images are made.
        perceptual, judge: as for `evaluate_reconstruction`.
        steps, sampler: for `generate`; each model's own if none. sheet: images on the contact sheet.
        inception: measures FID, Inception Score, precision and recall too, as in the paper's table 5.

    Returns:
        The content of results.json. Means over images have standard errors over images, of the mean over seeds; the
        Fréchet distance, which is one number a seed, has one over seeds. `margin` is the mean difference to bicubic,
        image by image.

    Raises:
        UserError: a model is not for super-resolution, or of another size or factor; fewer than two images; no seed.
    """
    factor, size = common_sizes(models)
    if seeds < 1 or images < 2:
        raise UserError("at least one seed and two images are needed: raise --seeds and --images")
    judge, device = open_judge(judge), models[0][1].device
    indices, examples = draw_examples(data, split, size, images, seed)
    if inception is not None:
        inception.require(len(examples), len(examples))
    options = {key: value for key, value in (("steps", steps), ("sampler", sampler)) if value is not None}
    settings = {"pictures": len(examples), "seeds": seeds, "seed": seed, "factor": factor, "size": size}
    study = SuperResolution(
        head={
            "evaluation": "super-resolution",
            "data": describe_data(data, split=split),
            "settings": {**settings, **options, "degradation": degradation},
            "judge": judge.fingerprint(),
            "perceptual": None if perceptual is None else perceptual.name,
            "models": {name: describe_model(model) for name, model in models},
        },
        batch=batch,
        models=dict(models),
        truth=[Image.fromarray(example.image) for example in examples],
        captions=[example.captions[0] for example in examples],
        image_seeds=[mix(seed, i) for i in indices],
        seeds=seeds,
        degradation=DegradationConfig(kind=degradation),
        factor=factor,
        options=options,
        fidelity=fidelity(judge, None if perceptual is None else perceptual.to(device), batch, device),
        sheet=sheet,
        inception=inception,
    )
    return run_study(study, out, console)


@dataclass(frozen=True)
class SuperResolutionArm:
    """A model, bicubic upsampling, or a first stage's reconstruction of the originals."""

    name: str
    images: list[list[Image.Image]]
    """For each seed, all images."""
    about: dict[str, Any]
    """Which network it is."""


@dataclass(kw_only=True, eq=False)
class SuperResolution(ImageStudy):
    """A cell for each model and seed."""

    writes = ("results.json", "results.md", "sheet.png", "larger.png", "painted", FOLDER)
    saves_images = True
    grows = "models"
    description = "upsampling"
    width = 200
    closing = "the table, all images and contact sheets are in {out}"
    models: dict[str, Any]
    truth: list[Image.Image]
    captions: list[str]
    image_seeds: list[int]
    """One for each image, from which its seeds follow."""
    seeds: int
    degradation: DegradationConfig
    factor: int
    options: dict[str, Any]
    fidelity: Fidelity
    sheet: int
    inception: InceptionMeasures | None = None
    arms: list[SuperResolutionArm] = field(default_factory=list)
    ratios: list[Tensor] = field(default_factory=list)
    """For each arm the PSNR of each image (N,)."""
    larger: list[tuple[str, Image.Image]] = field(default_factory=list)

    @cached_property
    def low(self) -> list[Image.Image]:
        """The low-resolution images."""
        return self.downsampled(self.truth, self.image_seeds)

    @cached_property
    def real_features(self) -> FeatureRowsFile:
        assert self.inception is not None
        return self.inception.features(self.truth)

    def cells(self) -> list[StudyCell]:
        return [
            StudyCell(
                name=f"{name}-{number}",
                key={"model": name, "seed": number},
                count=len(self.truth),
                generate=by_model(
                    model,
                    self.captions,
                    [mix(one, number) for one in self.image_seeds],
                    {"low": self.low},
                    **self.options,
                ),
            )
            for name, model in self.models.items()
            for number in range(self.seeds)
        ]

    def store(self, out: Path, cell: StudyCell) -> ImageSheet:
        made = {"data": self.head["data"], "settings": self.head["settings"], "number": cell.key["seed"]}
        made |= self.head["models"][cell.key["model"]]
        path = out / "painted" / f"{safe_letters(cell.key['model'])}-{cell.key['seed']}.png"
        return ImageSheet(path, cell.count, self.truth[0].width, made)

    def downsampled(self, images: list[Image.Image], seeds: Sequence[int]) -> list[Image.Image]:
        return to_images(degrade(to_tensor(images), self.factor, self.degradation, torch.tensor(seeds)))

    def results(self, images: dict[str, list[Image.Image]], metadata: dict[str, dict[str, Any]]) -> dict[str, Any]:
        bicubic = [image.resize(self.truth[0].size, Image.Resampling.BICUBIC) for image in self.low]
        self.arms = [SuperResolutionArm("bicubic", [bicubic], {})]
        for name, about in self.head["models"].items():
            outputs = [images[f"{name}-{number}"] for number in range(self.seeds)]
            self.arms.append(SuperResolutionArm(name, outputs, about))
        self.arms += self.first_stages()
        rows, each = zip(*(self.measured(arm) for arm in self.arms), strict=True)
        for row, values in zip(rows[1:], each[1:], strict=True):
            row["margin"] = {name: Mean.of(values[name] - outputs)._asdict() for name, outputs in each[0].items()}
        self.ratios = [values["psnr"] for values in each]
        results = {
            "data": self.head["data"],
            "settings": self.head["settings"],
            "frechet": {"features": "judge", "judge": self.head["judge"]},
            "perceptual": self.head["perceptual"],
            "models": list(rows),
        }
        if self.inception is not None:
            results["inception"] = self.inception.describe()
        if larger := self.larger_images():
            self.larger, (low, *made, (_, truth)) = larger, larger
            ratios = {name: image_psnr(one, truth) for name, one in made}
            results["larger"] = {"low": list(low[1].size), "size": list(truth.size), "psnr": ratios}
        return results

    def first_stages(self) -> list[SuperResolutionArm]:
        """The originals, reconstructed by each first stage."""
        stages: dict[str, tuple[str, Any]] = {}
        for name, model in self.models.items():
            if (stage := getattr(model, "autoencoder", None)) is not None:
                stages.setdefault(fingerprint(stage), (name, stage))
        arms = []
        for name, stage in stages.values():
            title = f"first stage{f' of {name}' if len(stages) > 1 else ''}, of the truth"
            arm, about = FirstStageArm(title, stage, stage, {}), {"parameters": parameter_count(stage)}
            parts = range(0, len(self.truth), self.batch)
            rebuilt = [one for start in parts for one in arm.rebuild(self.truth[start : start + self.batch])]
            arms.append(SuperResolutionArm(title, [rebuilt], about))
        return arms

    def measured(self, arm: SuperResolutionArm) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """A row of the table, and each measure of each image (N,), the mean over seeds."""
        each, distances = [], []
        for images in arm.images:
            means, values = self.fidelity(self.truth, images)
            distances.append(means["frechet"])
            if self.degradation.kind == "bicubic":  # the only degradation without random draws
                again = self.downsampled(images, [0] * len(images))
                for value, one, low in zip(values, again, self.low, strict=True):
                    value["consistency"] = image_psnr(one, low)
            each.append(values)
        scores: dict[str, Tensor] = {}
        for name in MEASURES:
            if name in each[0][0]:
                values = [[value[name] for value in seed] for seed in each]
                scores[name] = torch.tensor(values, dtype=torch.float64).mean(0)
        frechet = torch.tensor(distances)
        spread = Mean.of(frechet)._asdict() if len(frechet) > 1 else {"value": distances[0], "error": None, "count": 1}
        means = {name: Mean.of(values)._asdict() for name, values in scores.items()}
        row = {"name": arm.name, **arm.about, **means, "frechet": spread}
        if self.inception is not None:
            row |= over_seeds(self.inception(self.real_features, images) for images in arm.images)
        return row, scores

    def files(self, results: dict[str, Any]) -> dict[str, str]:
        """The measures of each row for `diptych evaluate published`."""
        if self.inception is None:
            return {}
        settings, rows = self.head["settings"], {row["name"]: row for row in results["models"]}
        about = {"name": "super-resolution", **{name: settings[name] for name in ("degradation", "factor", "seeds")}}
        images = (len(self.truth), len(self.truth))
        return self.inception.files(rows, images, settings["size"], self.head["data"], about, self.head["perceptual"])

    def larger_images(self) -> list[tuple[str, Image.Image]]:
        """An image larger than those of training, of another shape, by bicubic and all latent models; before them the
        low-resolution one, and after them the original. Empty where no model is latent.

        Four low-resolution images form a square, of which the middle is cut out, three quarters high: the result is
        twice as wide as in training.
        """
        latent = {name: model for name, model in self.models.items() if getattr(model, "autoencoder", None) is not None}
        if not latent or len(self.low) < 4:
            return []
        side = self.low[0].width
        cut, wide = (0, side // 4, 2 * side, 2 * side - side // 4), self.factor
        low, truth = (grid(images[:4], 2, gap=0) for images in (self.low, self.truth))
        low, truth = low.crop(cut), truth.crop((0, wide * cut[1], wide * cut[2], wide * cut[3]))
        made = [("bicubic", low.resize(truth.size, Image.Resampling.BICUBIC))]
        for name, model in latent.items():
            made.append((name, model.generate("a larger image", seeds=[0], low=low, **self.options).images[0]))
        return [("low", low), *made, ("truth", truth)]

    def sheets(self, results: dict[str, Any]) -> dict[str, Image.Image]:
        """The first images: low-resolution, by each arm at its first seed, and the original; and the larger image."""
        cells = []
        for i in range(min(self.sheet, len(self.low))):
            images = [self.low[i], *(arm.images[0][i] for arm in self.arms), self.truth[i]]
            notes = [
                f"{ratios[i]:.1f} dB {shortened(arm.name)}" for ratios, arm in zip(self.ratios, self.arms, strict=True)
            ]
            cells.append(
                SheetCell(
                    prompt=self.captions[i],
                    images=images,
                    correct=[None] * len(images),
                    notes=[f"{self.low[i].width} px", *notes, "truth"],
                )
            )
        pages = {"sheet.png": contact_sheet(cells, columns=1 if len(self.arms) > 1 else 2, side=SIDE)}
        if self.larger:
            pages["larger.png"] = enlarged_sheet([image for _, image in self.larger])
        return {name: page.quantize(COLOURS) for name, page in pages.items()}

    def tables(self, results: dict[str, Any]) -> list[Table | str]:
        """The measures of the paper's table 5: the judge's Fréchet distance stands for FID."""
        settings = results["settings"]
        low, about = (
            settings["size"] // settings["factor"],
            f"{settings['pictures']} {results['data']['split']} images",
        )
        title = f"{low} -> {settings['size']} px, {settings['degradation']}: {about}, {settings['seeds']} seeds"
        table = comparison_table(title, {short_name(row["name"]): arm_lines(row) for row in results["models"]})
        if "inception" not in results:
            return [table]
        return [table, comparison(f"{title}, InceptionV3", {row["name"]: row for row in results["models"]}, [])]


def common_sizes(models: Sequence[tuple[str, Any]]) -> tuple[int, int]:
    """The factor, and the side of the images, of all models."""
    if len({name for name, _ in models}) < len(models) or not models:
        raise UserError("name each model once, and at least one")
    sizes = {}
    for name, model in models:
        low = getattr(model, "low_size", None)
        if low is None or not hasattr(model, "device"):
            raise UserError(f"{name} is no super-resolution model: give latent models and stages that are")
        sizes[name] = (model.size // low, model.size)
    first, *others = sizes.items()
    for name, other in others:
        if other != first[1]:
            both = [f"{who} upsamples by {by} to {to} px" for who, (by, to) in (first, (name, other))]
            raise UserError(f"models of one size and factor are compared, and {', '.join(both)}")
    return first[1]
