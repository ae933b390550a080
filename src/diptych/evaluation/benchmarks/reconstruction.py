"""First stages by themselves: original images against what encoder and decoder make of them.

A KL autoencoder decodes the mean of its posterior, a VQ the entries of its codebook that are nearest. Images of 8 bits
are compared, as files hold them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from diptych.core.errors import UserError
from diptych.core.images import to_images, to_tensor
from diptych.data.dataset import DataConfig, Example, ImageDataset, Split, open_dataset
from diptych.evaluation.prompt_sets import draw_examples
from diptych.evaluation.report import SheetCell, comparison_table, contact_sheet, number, short_name
from diptych.evaluation.runner import ImageStudy, StudyCell, describe_data, open_judge, parameter_count, run_study
from diptych.evaluation.scores import Fidelity, fidelity
from diptych.metrics.pixel_measures import WINDOW
from diptych.models.judge import Judge
from diptych.weights.fingerprint import fingerprint

LARGEST = 256
"""Pixels a side at which images are compared where no size is chosen and theirs are larger."""


def evaluate_reconstruction(
    models: Sequence[tuple[str, Any]],
    data: Path | str,
    out: Path | str,
    *,
    split: Split = "held-out",
    images: int = 400,
    size: int | None = None,
    perceptual: Any = None,
    judge: Judge | Path | str | None = None,
    decoder: Any = None,
    seed: int = 0,
    batch: int = 16,
    sheet: int = 18,
    console: Console | None = None,
) -> dict[str, Any]:
    """Measure first stages on the same images; write results.json, results.md, pictures.jsonl, reconstructions.png.

    Args:
        models: names and autoencoders (`opening.open_autoencoder`), on one device.
        data: shards, or a folder of images; so many `images` of its `split`, drawn by `seed`.
        size: pixels a side; that of the first image, at most 256 and a multiple of all factors, if none.
        perceptual: a distance forward(first, second (B, 3, H, W) in [-1, 1]) -> (B,) with a `name`, or none.
        judge: whose features the Fréchet distance is of: one, its folder, or the one that ships with diptych.
        decoder: a tiny decoder, to be compared with that of the only model.
        batch: images at a time. sheet: images on the contact sheet.

    Returns:
        The content of results.json: settings, and a row for each model; means come with their standard errors.

    Raises:
        UserError: no such images, fewer than two, or of a size that a model cannot halve.
    """
    if decoder is not None and len(models) != 1:
        raise UserError("a tiny decoder is compared with that of one model: give one --model")
    if len({name for name, _ in models}) < len(models):
        raise UserError("a model is named twice: name each once")
    unit = math.lcm(*(model.config.factor for _, model in models))
    if size is None:
        size = side_of(open_dataset(DataConfig(path=str(data), split=split), captions=False)) // unit * unit
    if size % unit or size < WINDOW:
        raise UserError(f"the size must be a multiple of {unit} and at least {WINDOW}, not {size}: set --size")
    _, examples = draw_examples(data, split, size, images, seed, captions=False)
    arms = [FirstStageArm(name, model, model, describe_first_stage(model)) for name, model in models]
    if decoder is not None:
        teacher = arms[0]
        about = {"fingerprint": fingerprint(decoder), "parameters": parameter_count(decoder)}
        arms.append(
            FirstStageArm(
                f"{teacher.name}, tiny decoder", teacher.encoder, decoder, {**teacher.about, "decoder": about}
            )
        )
    judge, device = open_judge(judge), next(models[0][1].parameters()).device
    fingerprints = {} if decoder is None else {"tiny decoder": fingerprint(decoder)}
    study = Reconstruction(
        head={
            "evaluation": "reconstruction",
            "models": {arm.name: arm.about for arm in arms[: len(models)]} | fingerprints,
            "judge": judge.fingerprint(),
            "perceptual": None if perceptual is None else perceptual.name,
            "data": describe_data(data, split=split),
            "settings": {"pictures": [example.key for example in examples], "size": size, "seed": seed},
        },
        batch=batch,
        arms=arms,
        examples=examples,
        originals=[Image.fromarray(example.image) for example in examples],
        device=device,
        fidelity=fidelity(judge, None if perceptual is None else perceptual.to(device), batch, device),
        sheet=sheet,
    )
    return run_study(study, out, console)


@dataclass
class FirstStageArm:
    """An encoder and a decoder, and how long they took."""

    name: str
    encoder: Any
    decoder: Any
    about: dict[str, Any]
    """Which network it is, for the report."""
    uses: Tensor | None = None
    """Of each entry of a codebook, how many positions took it (N,) int64."""
    encoding: float = 0.0
    decoding: float = 0.0
    """Seconds in all."""

    @torch.inference_mode()
    def rebuild(self, images: list[Image.Image], warm: bool = True) -> list[Image.Image]:
        """Encode and decode some images; unless the networks are `warm`, once before the clock runs, too."""
        parameter = next(self.encoder.parameters())
        x = to_tensor(images).to(parameter)  # (B, 3, H, W)
        if not warm:
            self.encoder.moments(x)
        latents, seconds = timed(lambda: self.encoder.encode(x).mean, parameter.device)
        self.encoding += seconds
        if not warm:
            self.decoder.decode(latents)
        rebuilt, seconds = timed(lambda: self.decoder.decode(latents), parameter.device)
        self.decoding += seconds
        if self.decoder is self.encoder and (entries := self.encoder.config.codebook) is not None:
            counts = torch.bincount(self.encoder.quantise.indices(latents).flatten(), minlength=entries).cpu()
            self.uses = counts if self.uses is None else self.uses + counts
        return to_images(rebuilt)


@dataclass(kw_only=True, eq=False)
class Reconstruction(ImageStudy):
    """A cell for each first stage; a tiny decoder is one more."""

    writes = ("results.json", "results.md", "pictures.jsonl", "reconstructions.png")
    description = "reconstructing"
    width = 200
    closing = "the table, every image's numbers and a contact sheet are in {out}"

    arms: Sequence[FirstStageArm]
    examples: Sequence[Example]
    originals: list[Image.Image]
    device: torch.device
    fidelity: Fidelity
    sheet: int
    rebuilt: dict[str, list[Image.Image]] = field(default_factory=dict)
    each: dict[str, list[dict[str, float]]] = field(default_factory=dict)
    """For each arm the numbers of each image."""

    def store(self, out: Path, cell: StudyCell) -> None:
        """Reconstructions are quick, and timed: they are always made anew."""

    def cells(self) -> list[StudyCell]:
        def generate(arm: FirstStageArm) -> Callable[[Sequence[int]], tuple[list[Image.Image], dict[str, Any]]]:
            return lambda part: (arm.rebuild([self.originals[i] for i in part], warm=0 not in part), {})

        return [StudyCell(name=arm.name, count=len(self.originals), generate=generate(arm)) for arm in self.arms]

    def results(self, images: dict[str, list[Image.Image]], metadata: dict[str, dict[str, Any]]) -> dict[str, Any]:
        self.rebuilt, rows = images, []
        teacher = self.arms[0]
        for arm in self.arms:
            means, self.each[arm.name] = self.fidelity(self.originals, images[arm.name])
            row = {"name": arm.name, **arm.about, **means, **codebook(arm.uses)}
            seconds = {"encode": arm.encoding, "decode": arm.decoding}
            row["milliseconds"] = {part: 1000 * value / len(self.originals) for part, value in seconds.items()}
            if "decoder" in arm.about:
                row["of_teacher"], _ = self.fidelity(images[teacher.name], images[arm.name])
                row["times_as_fast"] = teacher.decoding / arm.decoding
            rows.append(row)
        head = self.head
        return {
            "data": head["data"],
            "settings": {**head["settings"], "pictures": len(self.originals), "batch": self.batch}
            | {"device": str(self.device), "threads": torch.get_num_threads()},
            "latents": "KL: the mean of the posterior; VQ: the nearest entries of the codebook",
            "frechet": {"features": "judge", "judge": head["judge"], "pictures": "originals and reconstructions"},
            "perceptual": head["perceptual"],
            "models": rows,
        }

    def records(self) -> list[dict[str, Any]]:
        return [
            {"model": name, "key": example.key, **values}
            for name, each in self.each.items()
            for example, values in zip(self.examples, each, strict=True)
        ]

    def sheets(self, results: dict[str, Any]) -> dict[str, Image.Image]:
        """The first images, each with its reconstruction by every model."""
        side = self.originals[0].width
        cells = [
            SheetCell(
                prompt=self.examples[i].captions[0],
                images=[self.originals[i], *(images[i] for images in self.rebuilt.values())],
                correct=[None] * (1 + len(self.each)),
                notes=["original", *(f"{each[i]['psnr']:.1f} dB {short_name(n)}" for n, each in self.each.items())],
            )
            for i in range(min(self.sheet, len(self.originals)))
        ]
        columns = max(1, 6 // (1 + len(self.each)))
        return {"reconstructions.png": contact_sheet(cells, columns, side=side * max(1, 128 // side))}

    def tables(self, results: dict[str, Any]) -> list[Table | str]:
        """The models side by side; a tiny decoder once more, against its teacher."""
        settings, rows = results["settings"], results["models"]
        about = f"{settings['pictures']} images of {settings['size']} px, {results['data']['split']}"
        tables: list[Table | str] = [
            comparison_table(f"Reconstructions of {about}", {row["name"]: model_lines(row) for row in rows})
        ]
        for row in rows:
            if "of_teacher" in row:
                title = f"The tiny decoder, {row['times_as_fast']:.1f} times as fast as its teacher"
                tables.append(comparison_table(title, {"from the teacher's images": fidelity_lines(row["of_teacher"])}))
        return tables


def model_lines(row: dict[str, Any]) -> dict[str, str]:
    """The lines of a first stage in the table."""
    lines = {"kind": row["kind"], "factor": str(row["factor"]), "channels": str(row["channels"])}
    lines |= fidelity_lines(row)
    if (book := row.get("codebook")) is not None:
        lines["codebook used"] = f"{100 * book['used']:.1f}% of {book['entries']:,}"
        lines["perplexity"] = f"{book['perplexity']:.1f}"
    return lines | {f"{part}, ms": f"{row['milliseconds'][part]:.2f}" for part in ("encode", "decode")}


def fidelity_lines(row: dict[str, Any]) -> dict[str, str]:
    lines = {"PSNR, dB": number(row["psnr"], 2), "SSIM": number(row["ssim"], 4)}
    if "perceptual" in row:
        lines["perceptual"] = number(row["perceptual"], 4)
    return lines | {"Fréchet (judge)": f"{row['frechet']:.3f}"}


def side_of(dataset: ImageDataset) -> int:
    """The shorter side of the first image that can be read, at most `LARGEST`."""
    for index in range(min(len(dataset), 64)):
        try:
            return min(*dataset.sides(index), LARGEST)
        except Exception:  # a broken one is set aside when it is read
            continue
    raise UserError(f"{dataset.config.path}: none of the first images can be read")


def describe_first_stage(model: Any) -> dict[str, Any]:
    c = model.config
    about = {"fingerprint": fingerprint(model), "parameters": parameter_count(model)}
    return {**about, "kind": "KL" if c.codebook is None else "VQ", "factor": c.factor, "channels": c.latent_channels}


def timed(run: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, float]:
    """The result of `run`, and how many seconds it took."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    result = run()
    wait()
    return result, time.perf_counter() - began


def codebook(uses: Tensor | None) -> dict[str, Any]:
    """How a codebook is used: by how many positions, which share of its entries, and their perplexity.

    That is exp of the entropy of the shares that the entries have in all positions: as many as would be in use if all
    of these were so equally.
    """
    if uses is None:
        return {}
    shares = uses[uses > 0].double() / uses.sum()
    used = {"entries": len(uses), "positions": int(uses.sum()), "used": float((uses > 0).double().mean())}
    return {"codebook": {**used, "perplexity": float(torch.exp(-(shares * shares.log()).sum()))}}
