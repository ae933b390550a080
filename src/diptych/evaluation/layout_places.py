"""Where the objects of layouts are looked for, and the shares that were found, with errors over scenes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diptych.data.box_layouts import Sides
from diptych.evaluation.scores import clustered_mean, error_over_seeds

FEW = 20
"""Concepts among which the judge chooses: the right one, the others in the scene, and others of other scenes."""
MEASURES = {"top1": "top-1", "top5": "top-5", "of_few": f"first of {FEW}"}
"""The right concept is named first, or among five, of all concepts; or it is the first of `FEW`. Crops of small images
are coarse: even the real one is seldom named first of thousands, so that the last measure distinguishes more."""
Places = list[list[Sides | None]]
"""For each scene and object, where it is looked for; none where there is no such place."""
Hits = list[np.ndarray]
"""For each scene (seeds, objects, measures): 1 where the concept was named, 0 where not, NaN where not looked for."""


def other_scenes(true_boxes: Sequence[Sequence[Sides | None]], seed: int) -> Places:
    """In the place of each box, one of another scene: all boxes in an order drawn by `seed`, each taken by the box that
    stands half the boxes further on, or by the next one where that is of the same scene."""
    boxes = [(i, sides) for i, row in enumerate(true_boxes) for sides in row]
    boxes = [boxes[n] for n in np.random.Generator(np.random.PCG64(seed)).permutation(len(boxes))]
    places: Places = []
    number = len(boxes) // 2
    for i, row in enumerate(true_boxes):
        places.append([])
        for _ in row:
            foreign = (boxes[(number + step) % len(boxes)] for step in range(len(boxes)))
            places[-1].append(next((sides for scene, sides in foreign if scene != i), None))
            number += 1
    return places


def swapped(objects: Sequence[tuple[str, Sides]]) -> list[Sides | None]:
    """For each object, the box of the next one in its scene that is something else; none where there is none."""
    places: list[Sides | None] = []
    for k, (concept, _) in enumerate(objects):
        others = [*objects[k + 1 :], *objects[:k]]
        places.append(next((sides for other, sides in others if other != concept), None))
    return places


def shares(hits: Hits) -> dict[str, Any]:
    """The share of all boxes looked at that was named, in each measure."""
    row: dict[str, Any] = {}
    for n, name in enumerate(MEASURES):
        values = [scene[..., n] for scene in hits]
        value, error, boxes = clustered_mean(values)
        row[name] = {"value": value, "error": error, "over_seeds": error_over_seeds(values)}
        row["boxes"] = boxes
    return row


def difference(one: Hits, other: Hits) -> dict[str, Any]:
    """By how much the first share exceeds the second, on the boxes that both looked at, with its error over scenes:
    both are of the same scenes. Seeds need not be as many."""
    row: dict[str, Any] = {}
    for n, name in enumerate(MEASURES):
        pairs = zip(one, other, strict=True)
        both = [np.mean(a[..., n], 0, keepdims=True) - np.mean(b[..., n], 0, keepdims=True) for a, b in pairs]
        value, error, boxes = clustered_mean(both)
        row[name] = {"value": value, "error": error}
        row["boxes"] = boxes
    return row
