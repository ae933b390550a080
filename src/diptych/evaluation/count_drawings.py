"""Drawings of a known number of things, and captions that are wrong in number, colour or object alone."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from diptych.core.errors import UserError
from diptych.core.hashing import mix
from diptych.data.dataset import ImageDataset
from diptych.data.emoji import scene_words
from diptych.data.emoji.scene_specs import Scene, ScenePart
from diptych.data.emoji.scenes import SceneRenderer
from diptych.evaluation.text_image_scorer import TextImageScorer
from diptych.models.retrieval import Mean

COUNTS = (1, 2, 3, 4)
"""As many as a scene has places for."""
WAYS = ("count", "colour", "object")
"""What captions of a trial differ in."""
TRIES = 200
"""Draws of a thing, until one is found that has a colour."""


@dataclass(frozen=True)
class CountTrial:
    """One thing in one colour and style, drawn 1, 2, 3 and 4 times."""

    style: str
    concept: str
    colour: str
    colours: tuple[str, ...]
    """Three others."""
    concepts: tuple[str, ...]
    """Three other things of the style."""
    seed: int

    def captions(self, count: int, way: str) -> list[str]:
        """The true caption of a drawing of `count`, at place 0, and three that are wrong in one way."""
        counts = (count, *(other for other in COUNTS if other != count))
        parts = {
            "count": [ScenePart(self.concept, number, self.colour) for number in counts],
            "colour": [ScenePart(self.concept, count, colour) for colour in (self.colour, *self.colours)],
            "object": [ScenePart(concept, count, self.colour) for concept in (self.concept, *self.concepts)],
        }
        return [str(part) for part in parts[way]]

    def draw(self, renderer: SceneRenderer, count: int) -> Image.Image:
        scene = Scene("counting", (ScenePart(self.concept, count, self.colour),))
        return renderer.render(scene, self.style, random.Random(mix(self.seed, count)))[0]


class CutOut(Mapping[str, Image.Image]):
    """Concept -> drawing (RGBA) of one style, from images on a plain background, cut out when asked for."""

    def __init__(self, dataset: ImageDataset, places: Mapping[str, int]) -> None:
        self.dataset, self.places = dataset, places

    def __getitem__(self, concept: str) -> Image.Image:
        return cut_out(Image.fromarray(self.dataset[self.places[concept]].image))

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def cut_out(image: Image.Image, tolerance: int = 24) -> Image.Image:
    """A drawing on a plain background -> RGBA, transparent wherever the background reaches from a corner."""
    wide, high = image.width - 1, image.height - 1
    marked = image.convert("RGB")
    for corner in ((0, 0), (wide, 0), (0, high), (wide, high)):
        ImageDraw.floodfill(marked, corner, (255, 0, 255), thresh=tolerance)
    alpha = np.where((np.asarray(marked) == (255, 0, 255)).all(-1), 0, 255).astype(np.uint8)
    cut = image.convert("RGB")
    cut.putalpha(Image.fromarray(alpha))
    return cut


def open_renderer(dataset: ImageDataset, metas: Sequence[Mapping[str, Any]], singles: Sequence[int]) -> SceneRenderer:
    """Scenes of the single drawings of a data set.

    Raises a `UserError` where they have no styles and concepts, as images that are no emoji.
    """
    places: dict[str, dict[str, int]] = {}
    for index in singles:
        if {"style", "concept"} <= metas[index].keys():
            places.setdefault(metas[index]["style"], {}).setdefault(metas[index]["concept"], index)
    if not places:
        raise UserError("counts are drawn with emoji, and these images say no style: `diptych data emoji` makes some")
    return SceneRenderer({style: CutOut(dataset, own) for style, own in places.items()}, dataset.config.size)


def draw_trials(renderer: SceneRenderer, number: int, seed: int) -> list[CountTrial]:
    """So many trials; trial n depends on the seed and n alone."""
    styles = [style for style, one in renderer.vocabularies.items() if len(one.all) > 3]
    if not styles:
        raise UserError("no style has four drawings of everyday things: counts need them, take more of the data")
    return [_trial(renderer, styles, mix(seed, n, 17)) for n in range(number)]


def _trial(renderer: SceneRenderer, styles: list[str], seed: int) -> CountTrial:
    rng = random.Random(seed)
    for _ in range(TRIES):
        style = rng.choice(styles)
        words = renderer.vocabularies[style]
        concept, *others = words.pick(rng, 4)
        part = words.coloured(rng, concept, "white", ("white",))
        if part is None or len(others) < 3:
            continue
        colours = [colour for colour in scene_words.COLOURS if colour not in (part.colour, "white")]
        assert part.colour is not None
        return CountTrial(style, concept, part.colour, tuple(rng.sample(colours, 3)), tuple(others), seed)
    raise UserError("no drawing was found that can be drawn in another colour: take more of the data")


def measure_counts(
    scorer: TextImageScorer, trials: Sequence[CountTrial], images: Sequence[Image.Image]
) -> dict[str, Any]:
    """How well a scorer tells captions apart that differ in one way.

    Args:
        images: of each trial those of 1, 2, 3 and 4 things.

    Returns:
        "right": way -> mean share of drawings whose true caption scores highest of four; by "drawn" number too. "cost":
        way -> mean of the true caption's score minus that of the wrong ones, 100 x cosine. "asked": mean scores,
        (4, 4), of captions that ask for 1 to 4 (rows) and drawings of 1 to 4 (columns). Errors are over trials.
    """
    right, cost = ({way: torch.zeros(len(trials), len(COUNTS)) for way in WAYS} for _ in range(2))
    asked = torch.zeros(len(COUNTS), len(COUNTS))
    for place, trial in enumerate(trials):
        vectors = scorer.images(images[place * len(COUNTS) : (place + 1) * len(COUNTS)])  # (4, D)
        every = list(dict.fromkeys(text for n in COUNTS for way in WAYS for text in trial.captions(n, way)))
        table = 100 * scorer.texts(every) @ vectors.T  # (captions, 4)
        for column, count in enumerate(COUNTS):
            for way in WAYS:
                rows = [every.index(text) for text in trial.captions(count, way)]
                scores = table[rows, column]  # (4,), the true one first
                right[way][place, column] = float(scores[0] > scores[1:].max())
                cost[way][place, column] = scores[0] - scores[1:].mean()
                if way == "count":
                    order = [count, *(other for other in COUNTS if other != count)]
                    asked[[COUNTS.index(one) for one in order], column] += scores / len(trials)
    return {
        "drawings": len(images),
        "right": {way: Mean.of(hits.mean(1))._asdict() for way, hits in right.items()},
        "drawn": {way: hits.mean(0).tolist() for way, hits in right.items()},
        "cost": {way: Mean.of(gaps.mean(1))._asdict() for way, gaps in cost.items()},
        "asked": asked.tolist(),
    }
