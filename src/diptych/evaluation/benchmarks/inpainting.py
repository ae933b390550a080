"""Inpainting: masked images filled by models and by fills that need no training, under the same masks.

The layout is that of table 7 in Rombach et al. 2022: all masks, and hard ones that hide 40 to 50 % of the pixels.
Masked pixels are hidden before a model sees the image, and the unmasked pixels are put back into every fill.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from diptych.conditioning.concat_config import MaskConfig
from diptych.conditioning.masks import sample_masks, shares
from diptych.core.disk import write_text
from diptych.core.errors import UserError
from diptych.core.images import to_images, to_tensor
from diptych.data.caption_text import is_scene
from diptych.data.dataset import Split
from diptych.evaluation.classical_fills import FILLS, mean_fill
from diptych.evaluation.inception_measures import FOLDER, MEASURED, InceptionMeasures
from diptych.evaluation.measured_cells import MeasuredCells
from diptych.evaluation.prompt_sets import draw_examples, prompt_of
from diptych.evaluation.published_results import comparison
from diptych.evaluation.report import image_table, number, short_name
from diptych.evaluation.runner import (
    MeasuredStudy,
    StudyCell,
    describe_data,
    describe_model,
    open_judge,
    run_study,
)
from diptych.evaluation.scores import Fidelity, fidelity
from diptych.metrics.feature_rows import FeatureRowsFile
from diptych.metrics.pixel_measures import WINDOW
from diptych.models.judge import Judge
from diptych.models.provenance import save_generated
from diptych.models.retrieval import Mean

SHARES = {"40-50 %": (0.4, 0.5), "all": (0.0, 0.5)}
"""The share of pixels that masks hide. LaMa leaves out masks of its own that hide more than half, as here."""
MEASURES = {
    "frechet": ("Fréchet", 2),
    "perceptual": ("perceptual", 3),
    "psnr": ("PSNR, dB", 2),
    "ssim": ("SSIM", 3),
    "fid": ("FID", 2),
    "is": ("IS", 2),
    "precision": ("precision", 3),
    "recall": ("recall", 3),
}
"""Their names in tables, and decimal places. Of the first two and FID less is better, of the others more."""
COLOURS = 96
"""Of the contact sheet, to keep it small."""
HOW = {True: "trained to repaint", False: "repaints without training"}
Fill = Callable[[Tensor, Tensor, list[str], list[int]], Tensor]
"""(masked images (B, 3, H, W), masks (B, 1, H, W), captions, seeds) -> images (B, 3, H, W)."""


def evaluate_inpainting(
    models: Sequence[tuple[str, Any]],
    data: Path | str,
    out: Path | str,
    *,
    split: Split = "held-out",
    images: int = 100,
    seeds: int = 3,
    masks: MaskConfig | None = None,
    perceptual: Any = None,
    judge: Judge | Path | str | None = None,
    seed: int = 0,
    batch: int = 16,
    sheet: int = 8,
    steps: int | None = None,
    inception: InceptionMeasures | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Fill the same masks in every way; write results.json, results.md, inpainting.png. A rerun goes on.

    Args:
        models: names and latent models of one size, on one device. Those that were not trained to inpaint do so by
            RePaint, with each image's caption as the prompt.
        images: how many of the data's `split`, drawn by `seed`.
        seeds: how many times over; each time has its own masks and noise. Standard errors are over these.
        masks: how masks are drawn; LaMa's kinds alike if none.
        perceptual: a distance forward(first, second (B, 3, H, W) in [-1, 1]) -> (B,) with a `name`, or none.
        judge: whose features the Fréchet distance is of: one, its folder, or the one that ships with diptych.
        sheet: images on the contact sheet, the first ones, under hard masks of the first seed.
        steps: of sampling; the models' own if none.
        inception: measures FID, Inception Score, precision and recall too, as in the paper's table 7.

    Returns:
        The content of results.json: settings, a cell for each share, row and seed, and means over seeds.

    Raises:
        UserError: a model that takes no mask, models of different sizes, too few images or seeds, or other results in
            `out`.
    """
    size, factor = common_size(models)
    if seeds < 2:
        raise UserError(f"seeds must be at least 2, not {seeds}: standard errors are over them")
    judge, kinds = open_judge(judge), masks or MaskConfig()
    indices, examples = draw_examples(data, split, size, images, seed)
    device = models[0][1].device
    if inception is not None:
        inception.require(len(examples), len(examples))
    measured = {} if inception is None else {"inception": inception.describe()}

    def seeds_of(number: int) -> Tensor:
        return torch.arange(len(indices)) + (seed + number) * 1_000_003

    @cache
    def masks_of(share: str, number: int) -> Tensor:
        return sample_masks(kinds, (size, size), seeds_of(number), every=factor, share=SHARES[share])

    study = Inpainting(
        head={
            "data": describe_data(data, split=split),
            "settings": {"pictures": len(examples), "size": size, "seeds": seeds, "seed": seed, "steps": steps}
            | measured,
            "masks": kinds.to_dict(),
            "frechet": {"features": "judge", "judge": judge.fingerprint()},
            "perceptual": None if perceptual is None else perceptual.name,
            "models": {name: {**describe_model(model), "how": HOW[model.repaints]} for name, model in models},
        },
        batch=batch,
        sheet=sheet,
        truth=to_tensor([Image.fromarray(example.image) for example in examples]),
        captions=[prompt_of(example.captions, is_scene(example.meta)) for example in examples],
        fills={name: untrained(fill) for name, fill in FILLS.items()}
        | {name: by_inpainting(model, steps) for name, model in models},
        seeds=seeds,
        seeds_of=seeds_of,
        masks=masks_of,
        fidelity=fidelity(judge, None if perceptual is None else perceptual.to(device), batch, device),
        inception=inception,
    )
    return run_study(study, out, console)


@dataclass(kw_only=True, eq=False)
class Inpainting(MeasuredStudy):
    """A cell for each share of masked pixels, seed and way of filling."""

    writes = ("results.json", "results.md", "strips", "inpainting.png", FOLDER)
    strips = "strips"
    grows = ("models",)
    description = "filling"
    width = 200
    closing = "the tables, every seed's numbers and a contact sheet are in {out}"
    truth: Tensor
    """(N, 3, H, W) in [-1, 1]."""
    captions: list[str]
    fills: dict[str, Fill]
    """By row of the table, the baselines first."""
    seeds: int
    seeds_of: Callable[[int], Tensor]
    """The seeds (N,) of a repetition."""
    masks: Callable[[str, int], Tensor]
    """The masks (N, 1, H, W) of a share and a repetition."""
    fidelity: Fidelity
    inception: InceptionMeasures | None = None

    @cached_property
    def real(self) -> list[Image.Image]:
        """The originals."""
        return to_images(self.truth)

    @cached_property
    def real_features(self) -> FeatureRowsFile:
        assert self.inception is not None
        return self.inception.features(self.real)

    def cells(self) -> list[StudyCell]:
        return [
            StudyCell(
                name=row,
                key={"share": share, "row": row, "seed": number},
                count=len(self.truth),
                generate=lambda part, key=(share, row, number): (self.filled(*key, part), {}),
                strip=row if not number and share == next(iter(SHARES)) else None,
            )
            for number in range(self.seeds)
            for share in SHARES
            for row in self.fills
        ]

    def filled(self, share: str, row: str, number: int, part: Sequence[int]) -> list[Image.Image]:
        """Some images with their masks filled in one way, and every unmasked pixel as it was."""
        truth, masks, seeds = self.truth[part], self.masks(share, number)[part], self.seeds_of(number)[part]
        captions = [self.captions[i] for i in part]
        made = self.fills[row](mean_fill(truth, masks), masks, captions, seeds.tolist())
        return to_images(torch.where(masks.bool(), made, truth))

    def prepare(self, cells: MeasuredCells) -> None:
        holes = self.masks(next(iter(SHARES)), 0)
        cells.save_strip("masked", to_images(self.truth * (1 - holes)))
        cells.save_strip("truth", to_images(self.truth))

    def measure(self, cell: StudyCell, images: list[Image.Image], metadata: dict[str, Any]) -> dict[str, Any]:
        means, _ = self.fidelity(self.real, images)
        values = {name: value["value"] if isinstance(value, dict) else value for name, value in means.items()}
        masks = self.masks(cell.key["share"], cell.key["seed"])
        if self.inception is not None:
            values |= self.inception(self.real_features, images)
        return {"hidden": float(shares(masks).mean()), **values}

    def identity(self, head: dict[str, Any]) -> dict[str, Any]:
        settings = {name: value for name, value in head["settings"].items() if name != "seeds"}
        return {**{name: head[name] for name in self.head}, "settings": settings}

    def rows(self, results: dict[str, Any]) -> list[str]:
        """The rows that have all cells: this run's, and those of other models in the folder."""
        cells = {(cell["row"], cell["share"], cell["seed"]) for cell in results["cells"]}
        every = [(share, number) for share in SHARES for number in range(self.seeds)]
        names = [*FILLS, *results["models"]]
        return [row for row in names if all((row, *one) in cells for one in every)]

    def summary(self, results: dict[str, Any]) -> dict[str, Any]:
        return {"rows": means_and_margins(results["cells"], self.rows(results), self.seeds)}

    def tables(self, results: dict[str, Any]) -> list[Table | str]:
        """The paper's table, the measures of pixels, and the margins."""
        settings, lines = results["settings"], results["rows"]
        about = f"{settings['pictures']} images, {results['data']['split']}, {settings['seeds']} seeds"
        base, first = lines[0]["row"], [name for name in ("frechet", "perceptual") if name in lines[0]]
        others = [line for line in lines if line["row"] != base]
        papers = [comparison(f"InceptionV3, {about}", self.papers_rows(results), [])] if "fid" in lines[0] else []
        return [
            *papers,
            share_table(f"Holes filled, {about}", lines, first),
            share_table("The same by pixels", lines, ["psnr", "ssim"]),
            share_table(f"What is added to {base}", others, first, "_margin"),
            share_table(f"What is added to {base}, by pixels", others, ["psnr", "ssim"], "_margin"),
        ]

    def papers_rows(self, results: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """Row -> the columns of the paper's table 7: all masks, and hard ones."""
        lpips = {"lpips": "perceptual"} if str(results["perceptual"]).startswith("LPIPS") else {}
        columns = {name: name for name in MEASURED} | lpips
        rows: dict[str, dict[str, Any]] = {}
        for line in results["rows"]:
            end = "" if line["share"] == "all" else "_hard"
            own = {f"{measure}{end}": line[name] for measure, name in columns.items() if name in line}
            rows.setdefault(line["row"], {}).update(own)
        return rows

    def report(self, cells: MeasuredCells) -> None:
        """The sheet, and with Inception measures a file of each row for `diptych evaluate published`."""
        self.write_sheet(cells)
        if self.inception is None:
            return
        results, images = cells.results, (len(self.truth), len(self.truth))
        for share, end in (("all", ""), (next(iter(SHARES)), "-hard")):
            rows = {f"{line['row']}{end}": line for line in results["rows"] if line["share"] == share}
            about = {"name": "inpainting", "masks": results["masks"], "share": share, "seeds": self.seeds}
            of, distance = results["data"], results["perceptual"]
            files = self.inception.files(rows, images, results["settings"]["size"], of, about, distance)
            for name, text in files.items():
                write_text(cells.out / name, text)

    def write_sheet(self, cells: MeasuredCells) -> None:
        """A contact sheet with a row of images for each way of filling, with few colours."""
        titles = ["masked", *self.rows(cells.results), "truth"]
        rows = [(short_name(title), [cells.strip(title)]) for title in titles]
        first = rows[0][1][0]
        notes = [f"{i}  {caption}" for i, caption in enumerate(self.captions[: len(first)], 1)]
        side = first[0].width
        page = image_table([""], rows, notes, side * max(1, 96 // side))
        page = page.quantize(COLOURS, dither=Image.Dither.NONE)
        save_generated(page, cells.out / "inpainting.png", optimize=True)


def means_and_margins(cells: Sequence[dict[str, Any]], rows: Sequence[str], seeds: int) -> list[dict[str, Any]]:
    """For each row and share the means over seeds, and the margins against the first row, seed by seed."""
    by = {(cell["row"], cell["share"], cell["seed"]): cell for cell in cells if cell["seed"] < seeds}
    lines = []
    for row in rows:
        for share in dict.fromkeys(cell["share"] for cell in cells):
            scores, first = ([by[name, share, k] for k in range(seeds)] for name in (row, rows[0]))
            line: dict[str, Any] = {"row": row, "share": share, "hidden": sum(c["hidden"] for c in scores) / seeds}
            for name in (name for name in MEASURES if name in scores[0]):
                values, base = (
                    torch.tensor([cell[name] for cell in these], dtype=torch.float64) for these in (scores, first)
                )
                line[name] = Mean.of(values)._asdict()
                line[f"{name}_margin"] = Mean.of(values - base)._asdict()
            lines.append(line)
    return lines


def share_table(title: str, lines: Sequence[dict[str, Any]], measures: Sequence[str], what: str = "") -> Table:
    """A row for each fill, columns for each share of masked pixels."""
    table = Table(title=title, box=box.MARKDOWN)
    table.add_column("", overflow="fold")
    names = list(dict.fromkeys(line["share"] for line in lines))
    for share in names:
        for name in measures:
            table.add_column(f"{share}: {MEASURES[name][0]}", justify="right", min_width=13)
    for row in dict.fromkeys(line["row"] for line in lines):
        by_share = {line["share"]: line for line in lines if line["row"] == row}
        table.add_row(row, *(number(by_share[s][name + what], MEASURES[name][1]) for s in names for name in measures))
    return table


def common_size(models: Sequence[tuple[str, Any]]) -> tuple[int, int]:
    """The side of the models' images, and the largest number of pixels a side that share one place of a latent."""
    for name, model in models:
        if getattr(model, "repaints", None) is None:
            raise UserError(f"{name} cannot inpaint: give latent models that were not trained for super-resolution")
    names, sizes = [name for name, _ in models], {model.size for _, model in models}
    if len(set(names) | set(FILLS)) < len(names) + len(FILLS):
        raise UserError(f"two rows have one name: name each model once, and none {' or '.join(FILLS)}")
    if len(sizes) != 1 or min(sizes) < WINDOW:
        raise UserError(f"the models must be of one size, at least {WINDOW} pixels, not {sorted(sizes)}")
    return min(sizes), max(model.factor for _, model in models)


def untrained(fill: Callable[[Tensor, Tensor], Tensor]) -> Fill:
    """A fill that needs neither captions nor seeds."""
    return lambda masked, masks, captions, seeds: fill(masked, masks)


def by_inpainting(model: Any, steps: int | None) -> Fill:
    """A model as a fill. One that was not trained to inpaint takes what surrounds the mask from the image's latent:
    each place of the latent with any masked pixel is masked, so that nothing of the hidden pixels is left.
    """

    def fill(masked: Tensor, masks: Tensor, captions: list[str], seeds: list[int]) -> Tensor:
        if not model.repaints:
            masks = F.interpolate(F.max_pool2d(masks, model.factor), scale_factor=model.factor)  # whole places
        return to_tensor(model.generate(captions, seeds=seeds, steps=steps, image=masked, mask=masks).images)

    return fill
