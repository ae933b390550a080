"""The pictures that models which enlarge are compared on, and a file of what each made of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diptych.conditioning.degradations import DegradationConfig, degraded
from diptych.data.dataset import Split
from diptych.data.hashing import mix
from diptych.evaluation.prompt_sets import drawn
from diptych.pictures import grid, save_png, to_images, to_tensor

ACROSS = 16
"""Pictures in a row of such a file."""


@dataclass(frozen=True)
class Task:
    """The pictures that are to be enlarged, and what they should become."""

    truth: list[Image.Image]
    low: list[Image.Image]
    captions: list[str]
    seeds: list[int]
    """One for each picture; a second painting of it has another that follows from this."""
    factor: int

    def bicubic(self) -> list[Image.Image]:
        return [one.resize(real.size, Image.Resampling.BICUBIC) for one, real in zip(self.low, self.truth, strict=True)]


def read_task(
    data: Path | str, split: Split, size: int, factor: int, kind: DegradationConfig, pictures: int, seed: int
) -> Task:
    """So many pictures of a data set, drawn by `seed`, and these made small."""
    chosen, examples = drawn(data, split, size, pictures, seed)
    truth, own = [Image.fromarray(example.picture) for example in examples], [mix(seed, i) for i in chosen]
    low = to_images(degraded(to_tensor(truth), factor, kind, torch.tensor(own)))
    return Task(truth, low, [example.captions[0] for example in examples], own, factor)


def file_name(name: str) -> str:
    """A model's name as that of a file."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name).strip("-.") or "model"


def keep(path: Path, made: dict[str, Any], images: list[Image.Image]) -> None:
    """All that a model painted in one file, with what it was made from inside."""
    told = PngInfo()
    told.add_text("made", json.dumps(made, sort_keys=True))
    save_png(grid(images, ACROSS, gap=0), path, pnginfo=told)


def kept(path: Path, made: dict[str, Any], count: int) -> list[Image.Image] | None:
    """What `keep` wrote, if it was made from the same."""
    try:
        with Image.open(path) as sheet:
            sheet.load()
            if getattr(sheet, "text", {}).get("made") != json.dumps(made, sort_keys=True):
                return None
            side = made["settings"]["size"]
            places = [(i % ACROSS * side, i // ACROSS * side) for i in range(count)]
            return [sheet.crop((x, y, x + side, y + side)) for x, y in places]
    except (OSError, SyntaxError):  # none, or cut short
        return None
