"""What the boxes of a picture show: each is cut out, laid on white, and named by the judge among all concepts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diptych.data.layouts import Sides
from diptych.evaluation.judge import Judge
from diptych.evaluation.retrieval import concept_vectors, ranks

FEW = 20
"""Names of which the judge chooses one: the right one, what else is in the scene, and others that scenes show."""
MEASURES = {"top1": "top-1", "top5": "top-5", "of_few": f"first of {FEW}"}
"""The right concept is named first, or among five, of all concepts; or it is the first of `FEW`. What is cut from a
small picture is coarse, so that even the real one is seldom named first of thousands: the last tells more."""
MARGIN = 0.06
"""White around what is cut out, as drawings have it, in sides of the square."""
Places = list[list[Sides | None]]
"""Of each scene and thing, where it is looked for; none where there is no such place."""
Hits = list[np.ndarray]
"""Of each scene (seeds, things, measures): 1 where the concept was named, 0 where not, NaN where it was not sought."""


@dataclass(frozen=True)
class Scene:
    """A held-out scene that is painted again."""

    index: int
    """In the data."""
    layout: str
    caption: str
    things: tuple[tuple[str, Sides], ...]
    """Concepts and their boxes; a written word is in the layout and is not judged."""


class Boxes:
    """The boxes of scenes, and what the judge sees in them."""

    def __init__(self, judge: Judge, concepts: list[str], scenes: Sequence[Scene], seed: int) -> None:
        self.judge, self.scenes = judge, scenes
        self.vectors: Tensor = concept_vectors(judge, concepts)
        self.numbers = {concept: number for number, concept in enumerate(concepts)}
        self.own: Places = [[box for _, box in scene.things] for scene in scenes]
        self.elsewhere: Places = other_scenes(self.own, seed)
        self.swapped: Places = [swapped(scene.things) for scene in scenes]
        self.few = [torch.tensor(row) for row in self.choices(seed)]

    def choices(self, seed: int) -> Iterator[list[list[int]]]:
        """Of each scene, and each of its things, the numbers of `FEW` concepts, the thing's own first."""
        draw = np.random.Generator(np.random.PCG64(seed))
        shown = sorted({concept for scene in self.scenes for concept, _ in scene.things})
        for scene in self.scenes:
            present = {concept for concept, _ in scene.things}
            others = [shown[n] for n in draw.permutation(len(shown)) if shown[n] not in present]
            names = [[own, *sorted(present - {own}), *others][:FEW] for own, _ in scene.things]
            yield [[self.numbers[name] for name in row] for row in names]

    def chance(self) -> dict[str, float]:
        """What a judge that cannot see would score."""
        few = [len(row) for rows in self.few for row in rows]
        return {
            "top1": 1 / len(self.numbers),
            "top5": min(5 / len(self.numbers), 1.0),
            "of_few": float(np.mean([1 / count for count in few])),
        }

    def hits(self, pictures: Sequence[Sequence[Image.Image]], places: Places) -> Hits:
        """Whether each thing is named in its place, in each of the pictures of its scene."""
        rows = zip(pictures, places, strict=True)
        found = [np.full((len(row), len(place), len(MEASURES)), np.nan) for row, place in rows]
        keys, cut, truth = [], [], []
        for i, (row, scene) in enumerate(zip(pictures, self.scenes, strict=True)):
            for j, picture in enumerate(row):
                for k, ((concept, _), sides) in enumerate(zip(scene.things, places[i], strict=True)):
                    if sides is not None:
                        keys.append((i, j, k))
                        cut.append(cut_out(picture, sides, self.judge.config.size))
                        truth.append(self.numbers[concept])
        if keys:
            vectors = self.judge.pictures(cut)  # (N, D)
            rank = ranks(vectors, self.vectors, torch.tensor(truth)).tolist()
            for (i, j, k), vector, place in zip(keys, vectors, rank, strict=True):
                own, *others = (self.vectors[self.few[i][k]] @ vector).tolist()
                found[i][j, k] = place < 1, place < 5, all(own > other for other in others)
        return found


def cut_out(picture: Image.Image, sides: Sides, size: int) -> Image.Image:
    """What a box shows, in the middle of a white square of `size` pixels; at least one pixel."""
    left, top, right, bottom = (round(side * of) for side, of in zip(sides, 2 * picture.size, strict=True))
    part = picture.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
    scale = size * (1 - 2 * MARGIN) / max(part.size)
    width, height = (max(1, round(side * scale)) for side in part.size)
    part = part.resize((width, height), Image.Resampling.BICUBIC)
    page = Image.new("RGB", (size, size), "white")
    page.paste(part, ((size - part.width) // 2, (size - part.height) // 2))
    return page


def other_scenes(own: Places, seed: int) -> Places:
    """In the place of each box, one of another scene: all boxes in an order drawn by `seed`, each taken by the box that
    stands half the boxes further on, or by the next one where that is of the same scene."""
    boxes = [(i, sides) for i, row in enumerate(own) for sides in row]
    boxes = [boxes[n] for n in np.random.Generator(np.random.PCG64(seed)).permutation(len(boxes))]
    found: Places = []
    number = len(boxes) // 2
    for i, row in enumerate(own):
        found.append([])
        for _ in row:
            foreign = (boxes[(number + step) % len(boxes)] for step in range(len(boxes)))
            found[-1].append(next((sides for scene, sides in foreign if scene != i), None))
            number += 1
    return found


def swapped(things: Sequence[tuple[str, Sides]]) -> list[Sides | None]:
    """Of each thing, the box of the next one in its scene that is something else; none where there is none."""
    found: list[Sides | None] = []
    for k, (concept, _) in enumerate(things):
        others = [*things[k + 1 :], *things[:k]]
        found.append(next((sides for other, sides in others if other != concept), None))
    return found


def shares(hits: Hits) -> dict[str, Any]:
    """Of all boxes looked at, the share that was named, in each measure."""
    found: dict[str, Any] = {}
    for n, name in enumerate(MEASURES):
        value, error, count = ratio([row[..., n] for row in hits])
        found[name] = {"value": value, "error": error, "over_seeds": over_seeds([row[..., n] for row in hits])}
        found["boxes"] = count
    return found


def difference(one: Hits, other: Hits) -> dict[str, Any]:
    """How much greater the first share is than the second, on the boxes that both looked at, with its error over
    scenes: both are of the same scenes. Seeds need not be as many."""
    found: dict[str, Any] = {}
    for n, name in enumerate(MEASURES):
        both = [
            np.mean(a[..., n], 0, keepdims=True) - np.mean(b[..., n], 0, keepdims=True)
            for a, b in zip(one, other, strict=True)
        ]
        value, error, count = ratio(both)
        found[name] = {"value": value, "error": error}
        found["boxes"] = count
    return found


def ratio(values: Sequence[np.ndarray]) -> tuple[float, float, int]:
    """Mean over all boxes, each averaged over its seeds, its standard error with scenes as clusters (of a ratio of
    sums: Cochran 1977, section 2.11), and how many boxes.

    values: of each scene (seeds, things); a thing that was not looked at is NaN in all seeds.
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


def over_seeds(values: Sequence[np.ndarray]) -> float | None:
    """Standard error over seeds of the mean over all boxes; none where there is one seed."""
    flat = np.concatenate(values, axis=1)  # (seeds, boxes)
    flat = flat[:, ~np.isnan(flat).any(0)]
    if len(flat) < 2 or not flat.shape[1]:
        return None
    return float(flat.mean(1).std(ddof=1)) / math.sqrt(len(flat))
