"""The prompts of studies: seen pairs of concept and style, held-out pairs, and held-out scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diptych.core.errors import UserError
from diptych.data.box_layouts import Sides, layout_of
from diptych.data.caption_text import concept_of, is_scene
from diptych.data.dataset import DataConfig, Example, Split, open_dataset
from diptych.data.quarantine import BrokenExample

SPLITS = ("seen", "held-out")


def prompt_of(captions: Sequence[str], scene: bool) -> str:
    """The prompt for an example: of a drawing the caption that names its style (the second), of a scene the first."""
    return captions[0 if scene or len(captions) < 2 else 1]


def draw_examples(
    data: Path | str, split: Split, size: int, images: int, seed: int, captions: bool = True
) -> tuple[list[int], list[Example]]:
    """`images` examples of a data set, two or more, drawn by `seed`, and their indices; with `captions` or not."""
    dataset = open_dataset(DataConfig(path=str(data), size=size, split=split), captions=captions)
    chosen = np.random.Generator(np.random.PCG64(seed)).permutation(len(dataset))[:images]
    if len(chosen) < 2:
        raise UserError(f"two images or more are needed; split {split!r} of {data} has {len(dataset)}")
    examples = [dataset[int(index)] for index in chosen]
    return [int(index) for index in chosen], examples


@dataclass
class PromptGroup:
    """Prompts of one kind, the images generated for them, and the real ones."""

    name: str
    indices: list[int]
    metas: list[dict[str, Any]]
    seeds: list[int]
    generated: list[Image.Image] = field(default_factory=list)
    real: list[Image.Image] = field(default_factory=list)
    named: bool = False
    """Whether prompts are concepts alone, for a class-conditional model."""

    @property
    def prompts(self) -> list[str]:
        if self.named:
            return [concept_of(m) for m in self.metas]
        return [prompt_of(m["captions"], is_scene(m)) for m in self.metas]


def choose_prompts(
    metas: Sequence[dict[str, Any]],
    images: int,
    scenes: int,
    seed: int,
    splits: Sequence[str] = SPLITS,
    classes: Sequence[str] = (),
) -> tuple[list[PromptGroup], list[PromptGroup]]:
    """Seen and held-out pairs, and held-out scenes by category. Image n of the study gets seed `seed` + n.

    splits: which of the pairs; the data must have some of each. The seen ones are the same with and without the others.
    classes: class names of a class-conditional model: its prompts are drawings of these concepts, and no scenes.
    """
    names = set(classes)
    pools: dict[str, list[int]] = {split: [] for split in SPLITS}
    categories: dict[str, list[int]] = {}
    for i, meta in enumerate(metas):
        if names and (is_scene(meta) or concept_of(meta) not in names):
            continue
        if is_scene(meta):
            if meta.get("split") == "held-out" and meta.get("foils"):
                categories.setdefault(meta.get("category", "scenes"), []).append(i)
        else:
            pools["held-out" if meta.get("split") == "held-out" else "seen"].append(i)
    for name in splits:
        if not pools[name]:
            what = f"{name} drawings of the model's classes" if names else f"{name} drawings"
            raise UserError(f"the data has no {what}: this needs some that are {' and some '.join(splits)}")
    draw = np.random.Generator(np.random.PCG64(seed))
    count = 0

    def group(name: str, pool: list[int], size: int) -> PromptGroup:
        nonlocal count
        indices = [pool[i] for i in draw.permutation(len(pool))[:size]]
        count += len(indices)
        seeds = list(range(seed + count - len(indices), seed + count))
        return PromptGroup(name, indices, [metas[i] for i in indices], seeds, named=bool(names))

    pairs = [group(name, pools[name], images) for name in splits]
    return pairs, [group(name, categories[name], scenes) for name in sorted(categories) if scenes]


@dataclass(frozen=True)
class BoxedScene:
    """A held-out scene with its objects."""

    index: int
    """In the data."""
    layout: str
    caption: str
    objects: tuple[tuple[str, Sides], ...]
    """Concepts and their boxes; a written word is in the layout and is not judged."""


def choose_boxed_scenes(
    data: Path | str, metas: Sequence[dict[str, Any]], count: int | None, seed: int
) -> list[BoxedScene]:
    """Held-out scenes that have objects, in an order drawn by `seed`."""
    pool = [i for i, meta in enumerate(metas) if meta.get("split") == "held-out" and meta.get("objects")]
    if not pool:
        raise UserError(f"{data} has no held-out scenes with objects in boxes: make some with `diptych data emoji`")
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(pool))[:count]

    def scene(index: int) -> BoxedScene:
        meta = metas[index]
        try:
            layout = layout_of(meta, lambda: np.empty((0, 0, 3)))  # with objects no image is measured
        except BrokenExample as error:
            raise UserError(f"{data}: a held-out scene cannot be read: {error}") from None
        objects = tuple((one["concept"], tuple(one["box"])) for one in meta["objects"])
        return BoxedScene(index, layout, meta["captions"][0], objects)

    return [scene(pool[place]) for place in order]
