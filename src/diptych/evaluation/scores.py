"""Scores of generated and of real images under one judge, with the controls that show that a measure can fail."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diptych.core.errors import UserError
from diptych.core.image_files import square
from diptych.core.images import to_tensor
from diptych.data.box_layouts import Sides
from diptych.data.caption_text import concept_of
from diptych.data.dataset import DataConfig, ImageDataset, open_dataset
from diptych.evaluation.prompt_sets import PromptGroup
from diptych.metrics.frechet import frechet_distance, frechet_error
from diptych.metrics.pixel_measures import image_psnr, saturated, ssim
from diptych.models.judge import Judge
from diptych.models.retrieval import Mean, Share, concept_vectors, ranks, share_of_right_captions

RESAMPLES = 2000
"""Of a bootstrap."""
MARGIN = 0.06
"""White around the crop of a box, as drawings have it, in sides of the square."""
ROWS = ("generated", "real", "shuffled", "chance")


def score_pairs(
    judge: Judge, group: PromptGroup, concepts: list[str], vectors: Tensor, records: list[dict[str, Any]]
) -> dict[str, Any]:
    """Retrieval of drawings among all concepts (C, D): generated, real, shuffled and by chance."""
    place = {concept: i for i, concept in enumerate(concepts)}
    truth = torch.tensor([place[concept_of(m)] for m in group.metas])
    generated, real = judge.encode_images(group.generated), judge.encode_images(group.real)  # (N, D)
    rank, real_rank = ranks(generated, vectors, truth), ranks(real, vectors, truth)
    guesses, real_guesses = _guesses(generated, vectors, concepts), _guesses(real, vectors, concepts)
    for i, meta in enumerate(group.metas):
        records.append(
            {"group": group.name, "prompt": group.prompts[i], "seed": group.seeds[i], "concept": concept_of(meta)}
            | {"style": meta.get("style"), "rank": int(rank[i]), "guesses": guesses[i]}
            | {"real_rank": int(real_rank[i]), "real_guesses": real_guesses[i]}
        )
    return {
        "pictures": len(truth),
        "generated": _placed(rank, len(concepts)),
        "real": _placed(real_rank, len(concepts)),
        "shuffled": _placed(ranks(generated, vectors, truth.roll(1)), len(concepts)),
        "chance": {f"top{k}": {"value": min(k / len(concepts), 1.0)} for k in (1, 5)} | {"place": {"value": 0.5}},
        "frechet": _frechet(judge, group),
    }


def score_scenes(judge: Judge, group: PromptGroup, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Share of scenes whose true caption the judge ranks before its foils: generated, real, shuffled and by chance."""
    trials = [(m["captions"][0], list(m["foils"])) for m in group.metas]
    generated = judge.encode_images(group.generated)
    right = share_of_right_captions(judge, generated, trials)
    real_right = share_of_right_captions(judge, judge.encode_images(group.real), trials)
    for i, (caption, foils) in enumerate(trials):
        records.append(
            {"group": "scenes", "category": group.name, "prompt": caption, "foils": foils, "seed": group.seeds[i]}
            | {"right": bool(right[i]), "real_right": bool(real_right[i])}
        )
    return {
        "pictures": len(trials),
        "generated": Share.of(right)._asdict(),
        "real": Share.of(real_right)._asdict(),
        "shuffled": Share.of(share_of_right_captions(judge, generated, [*trials[1:], trials[0]]))._asdict(),
        "chance": {"value": float(np.mean([1 / (1 + len(foils)) for _, foils in trials]))},
    }


def measure(
    judge: Judge, images: list[Image.Image], truth: Tensor, vectors: Tensor, real: Tensor | None = None
) -> dict[str, Any]:
    """Alignment, retrieval, Fréchet distance and saturation of one set of images; the judge sees each once.

    truth: index (N,) of each image's concept among vectors (C, D).
    real: features (M, F) of the real images, for the Fréchet distance and its bootstrap error; none without them.
    """
    features = judge.features(images)  # (N, F)
    vectors_of_images = judge.place(features)  # (N, D)
    pair = None if real is None else (features.numpy(), real.numpy())
    return {
        "pictures": len(images),
        "alignment": Mean.of((vectors_of_images * vectors[truth]).sum(1))._asdict(),
        **_top(ranks(vectors_of_images, vectors, truth)),
        "frechet": None if pair is None else frechet_distance(*pair),
        **({} if pair is None else {"frechet_error": frechet_error(*pair)}),
        "saturated": saturated(images),
    }


def pooled(scenes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """All categories together, each image with the same weight."""
    counts = [s["pictures"] for s in scenes.values()]
    total: dict[str, Any] = {"pictures": sum(counts)}
    for row in ROWS:
        value = float(np.average([s[row]["value"] for s in scenes.values()], weights=counts))
        total[row] = {"value": value} if row == "chance" else Share.at(value, sum(counts))._asdict()
    return total


def _top(rank: Tensor) -> dict[str, Any]:
    return {f"top{k}": Share.of(rank < k)._asdict() for k in (1, 5)}


def _placed(rank: Tensor, concepts: int) -> dict[str, Any]:
    """Also the mean place of the true concept among all, 0 the first and 1 the last: it separates weak models from
    chance long before a concept is named."""
    if len(rank) < 2:  # no standard error
        return _top(rank)
    return {**_top(rank), "place": Mean.of(rank / max(concepts - 1, 1))._asdict()}


def _guesses(images: Tensor, vectors: Tensor, concepts: list[str], count: int = 5) -> list[list[str]]:
    best = (images @ vectors.T).topk(min(count, len(concepts)), dim=1).indices
    return [[concepts[i] for i in row] for row in best.tolist()]


def _frechet(judge: Judge, group: PromptGroup) -> float | None:
    if len(group.seeds) < 2:
        return None
    return frechet_distance(judge.features(group.generated).numpy(), judge.features(group.real).numpy())


def share_of(generated: dict[str, Any], real: dict[str, Any]) -> dict[str, float | None]:
    """Scores as shares of what real images score; none where that is zero."""
    return {k: generated[k]["value"] / real[k]["value"] if real[k]["value"] else None for k in ("top1", "top5")}


class DrawingScores:
    """Scores of images generated for the prompts of a group of drawings, which also has the real ones at `size`."""

    def __init__(
        self, judge: Judge, dataset: ImageDataset, group: PromptGroup, concepts: Sequence[str], size: int
    ) -> None:
        self.judge, self.dataset, self.group, self.size = judge, dataset, group, size
        self.concepts = list(concepts)

    def measure(self, images: list[Image.Image], paired: bool) -> dict[str, Any]:
        """`measure`, and where images and real ones are `paired` the mean PSNR."""
        scores = measure(self.judge, images, self._truth, self._vectors, self._features)
        if paired:
            ratios = [image_psnr(one, real) for one, real in zip(images, self.real, strict=True)]
            scores["psnr"] = Mean.of(torch.tensor(ratios))._asdict()
        return scores

    def references(self) -> dict[str, dict[str, Any]]:
        """The scores of the real images and of chance."""
        chance = {f"top{k}": {"value": min(k / len(self.concepts), 1.0)} for k in (1, 5)}
        return {"real": self.measure(self.real, False) | {"frechet": None, "frechet_error": None}, "chance": chance}

    @cached_property
    def real(self) -> list[Image.Image]:
        """The real image of each prompt."""
        return real_images(self.dataset, self.group.indices, self.size)

    def downsampled(self, side: int) -> list[Image.Image]:
        """The real images at `side` pixels, by averages over boxes; a `UserError` where the data's are too small."""
        sides: list[int] = []
        for index in self.group.indices:
            with contextlib.suppress(Exception):  # a broken one is set aside when it is read
                sides += self.dataset.sides(index)
        if sides and min(sides) < self.size:
            raise UserError(
                f"the data's images have {min(sides)} pixels, too few for a reference of {self.size}: "
                "give larger ones, or stop after an earlier stage"
            )
        return [square(image, side) for image in self.real]

    @cached_property
    def _features(self) -> Tensor:
        return self.judge.features(self.real)  # (N, F)

    @cached_property
    def _truth(self) -> Tensor:
        """The index (N,) of each prompt's concept."""
        return torch.tensor([self.concepts.index(concept_of(meta)) for meta in self.group.metas])

    @cached_property
    def _vectors(self) -> Tensor:
        return concept_vectors(self.judge, self.concepts)  # (C, D)


def real_images(dataset: ImageDataset, indices: Sequence[int], size: int) -> list[Image.Image]:
    """The real images of some examples at `size`: that of the generated ones, so that the judge resizes both alike."""
    if size != dataset.config.size:
        dataset = open_dataset(DataConfig.from_dict({**dataset.config.to_dict(), "size": size}))
    return [Image.fromarray(dataset[index].image) for index in indices]


Fidelity = Callable[[list[Image.Image], list[Image.Image]], tuple[dict[str, Any], list[dict[str, float]]]]


def fidelity(judge: Judge, perceptual: Any, batch: int, device: torch.device) -> Fidelity:
    """A measure of images against the originals: means over all with the Fréchet distance, and the numbers of each.

    perceptual: a distance forward(first, second (B, 3, H, W) in [-1, 1]) -> (B,), or none.
    """

    @torch.inference_mode()
    def measure(real: list[Image.Image], made: list[Image.Image]) -> tuple[dict[str, Any], list[dict[str, float]]]:
        each = [{"psnr": image_psnr(a, b), "ssim": ssim(a, b)} for a, b in zip(real, made, strict=True)]
        for start in range(0, len(real), batch):
            if perceptual is None:
                break
            part = slice(start, start + batch)
            pairs = (to_tensor(images[part]).to(device) for images in (real, made))
            for values, distance in zip(each[part], perceptual(*pairs).tolist(), strict=True):
                values["perceptual"] = distance
        means = {name: Mean.of(torch.tensor([values[name] for values in each]))._asdict() for name in each[0]}
        features = [judge.features(images).numpy() for images in (real, made)]
        return {**means, "frechet": frechet_distance(features[0], features[1])}, each

    return measure


def clustered_mean(values: Sequence[np.ndarray]) -> tuple[float, float, int]:
    """Mean over all items, each averaged over its seeds, its standard error with clusters (that of a ratio of sums:
    Cochran 1977, section 2.11), and how many items.

    values: for each cluster (seeds, items); an item that was not measured is NaN in all seeds.
    """
    means = [row.mean(0) for row in values]
    means = [row[~np.isnan(row)] for row in means]
    sums, counts = np.array([row.sum() for row in means]), np.array([len(row) for row in means])
    total = int(counts.sum())
    if not total:
        return math.nan, math.nan, 0
    value, clusters = float(sums.sum() / total), int((counts > 0).sum())
    if clusters < 2:
        return value, math.nan, total
    spread = float(((sums - value * counts) ** 2).sum()) * clusters / (clusters - 1)
    return value, math.sqrt(spread) / total, total


def error_over_seeds(values: Sequence[np.ndarray]) -> float | None:
    """Standard error over seeds of the mean over all items of `clustered_mean`; none where there is one seed."""
    flat = np.concatenate(values, axis=1)  # (seeds, items)
    flat = flat[:, ~np.isnan(flat).any(0)]
    if len(flat) < 2 or not flat.shape[1]:
        return None
    return float(flat.mean(1).std(ddof=1)) / math.sqrt(len(flat))


def bootstrap_ratio(trained: Tensor, unseen: Tensor) -> tuple[dict[str, float] | None, np.ndarray]:
    """The ratio of the means of (W,) unseen and seen, with its bootstrap error, and every resample's ratio: each of
    `RESAMPLES` draws the same items in every call.

    None where the mean of seen is 0.
    """
    draws = np.random.Generator(np.random.PCG64(0)).integers(0, len(trained), (RESAMPLES, len(trained)))
    below, above = trained.numpy()[draws].mean(1), unseen.numpy()[draws].mean(1)
    shares = np.divide(above, below, out=np.full(RESAMPLES, np.nan), where=below > 0)
    if not trained.any():
        return None, shares
    return {"value": float(unseen.mean() / trained.mean()), "error": float(np.nanstd(shares))}, shares


def crop_box(image: Image.Image, sides: Sides, size: int) -> Image.Image:
    """The content of a box in the middle of a white square of `size` pixels; at least one pixel."""
    left, top, right, bottom = (round(side * of) for side, of in zip(sides, 2 * image.size, strict=True))
    part = image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
    scale = size * (1 - 2 * MARGIN) / max(part.size)
    width, height = (max(1, round(side * scale)) for side in part.size)
    part = part.resize((width, height), Image.Resampling.BICUBIC)
    page = Image.new("RGB", (size, size), "white")
    page.paste(part, ((size - part.width) // 2, (size - part.height) // 2))
    return page
