"""Which prompts a study asks for: seen pairs of concept and style, held-out pairs, and held-out scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diptych.data.dataset import DataConfig, Example, Split, open_dataset
from diptych.errors import UserError

SPLITS = ("seen", "held-out")


def is_scene(meta: dict[str, Any]) -> bool:
    """Whether an example is a composed scene, not a single drawing."""
    return meta.get("kind", "single") != "single"


def concept_of(meta: dict[str, Any]) -> str:
    """What a picture shows, in words: its concept, or its first caption where the data names none (and for scenes)."""
    return meta["captions"][0] if is_scene(meta) or not meta.get("concept") else meta["concept"]


def asked(captions: Sequence[str], scene: bool) -> str:
    """Drawings are asked for by the caption that names the style (the second), scenes by their plain one."""
    return captions[0 if scene or len(captions) < 2 else 1]


def drawn(
    data: Path | str, split: Split, size: int, pictures: int, seed: int, captions: bool = True
) -> tuple[list[int], list[Example]]:
    """So many examples of a data set, two or more, drawn by `seed`, and their places in it; with `captions` or not."""
    dataset = open_dataset(DataConfig(path=str(data), size=size, split=split), captions=captions)
    chosen = np.random.Generator(np.random.PCG64(seed)).permutation(len(dataset))[:pictures]
    if len(chosen) < 2:
        raise UserError(f"two pictures or more are needed; split {split!r} of {data} has {len(dataset)}")
    examples = [dataset[int(index)] for index in chosen]
    return [int(index) for index in chosen], examples


@dataclass
class Group:
    """Prompts of one sort with what was made of them."""

    name: str
    indices: list[int]
    metas: list[dict[str, Any]]
    seeds: list[int]
    generated: list[Image.Image] = field(default_factory=list)
    real: list[Image.Image] = field(default_factory=list)
    named: bool = False
    """Whether the concept alone is asked for, of a model that is told classes."""

    @property
    def prompts(self) -> list[str]:
        """What is asked for."""
        if self.named:
            return [concept_of(m) for m in self.metas]
        return [asked(m["captions"], is_scene(m)) for m in self.metas]


def choose(
    metas: Sequence[dict[str, Any]],
    pictures: int,
    scenes: int,
    seed: int,
    splits: Sequence[str] = SPLITS,
    classes: Sequence[str] = (),
) -> tuple[list[Group], list[Group]]:
    """Seen and held-out pairs, and held-out scenes by category. Picture number n of the study gets seed `seed` + n.

    splits: which of the pairs; the data must have some of each. The seen ones are the same with and without the others.
    classes: of a model that is told classes, their names: it is asked for drawings of these concepts, and no scenes.
    """
    known = set(classes)
    pools: dict[str, list[int]] = {split: [] for split in SPLITS}
    categories: dict[str, list[int]] = {}
    for i, meta in enumerate(metas):
        if known and (is_scene(meta) or concept_of(meta) not in known):
            continue
        if is_scene(meta):
            if meta.get("split") == "held-out" and meta.get("foils"):
                categories.setdefault(meta.get("category", "scenes"), []).append(i)
        else:
            pools["held-out" if meta.get("split") == "held-out" else "seen"].append(i)
    for name in splits:
        if not pools[name]:
            what = f"{name} drawings of the model's classes" if known else f"{name} drawings"
            raise UserError(f"the data has no {what}: this needs some that are {' and some '.join(splits)}")
    draw = np.random.Generator(np.random.PCG64(seed))
    count = 0

    def group(name: str, pool: list[int], size: int) -> Group:
        nonlocal count
        indices = [pool[i] for i in draw.permutation(len(pool))[:size]]
        count += len(indices)
        seeds = list(range(seed + count - len(indices), seed + count))
        return Group(name, indices, [metas[i] for i in indices], seeds, named=bool(known))

    pairs = [group(name, pools[name], pictures) for name in splits]
    return pairs, [group(name, categories[name], scenes) for name in sorted(categories) if scenes]
