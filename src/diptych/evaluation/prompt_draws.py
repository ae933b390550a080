"""Prompts for benchmarks: draws from COCO's captions, and 200 prompts in the categories of DrawBench."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diptych.core.disk import values_of, write_text
from diptych.core.errors import UserError, pick
from diptych.core.values import MOST, Integer, checked
from diptych.data.prompt_files import PromptRow, read_prompts
from diptych.weights.file_hash import file_sha256

OWN_PROMPTS = Path(__file__).resolve().parent.parent / "assets" / "prompts-200.csv"
"""200 prompts of diptych's own in the categories of DrawBench."""
CATEGORIES = {
    "Colors": 25,
    "Conflicting": 10,
    "Counting": 19,
    "DALL-E": 20,
    "Descriptions": 20,
    "Gary Marcus et al.": 10,
    "Misspellings": 10,
    "Positional": 20,
    "Rare Words": 7,
    "Reddit": 38,
    "Text": 21,
}
"""Of DrawBench (Saharia et al. 2022, appendix C), and how many prompts each has in the table that was published."""
CAPTIONS = ("random", "first")
"""Which captions of an image are drawn."""


def draw_captions(
    annotations: Path, number: int | None = None, per_image: int | None = 1, caption: str = "random", seed: int = 0
) -> tuple[list[PromptRow], dict[str, Any]]:
    """Captions drawn from COCO's `captions_*.json`, and a record of all that decided the draw.

    The images, by id, are brought into an order that `seed` draws, and their captions taken in this order: the first
    n prompts of a draw are those of a smaller one.

    Args:
        number: of prompts; none for all.
        per_image: captions of each image, as many as it has if it has fewer. None draws among all captions, whatever
            image they are of.
        caption: which of an image's captions: "random" ones, or the "first" by id.

    Raises a `UserError` for a file without images, or with fewer prompts than asked.
    """
    number = None if number is None else checked("number", Integer(1, MOST).check, number)
    per_image = None if per_image is None else checked("per_image", Integer(1, 1000).check, per_image)
    pick("way to choose captions", caption, CAPTIONS)
    rows = read_prompts(annotations)
    if (lost := next((n for n, row in enumerate(rows, 1) if "image_id" not in row.fields), None)) is not None:
        raise UserError(f"{annotations}, row {lost}: it has no image_id: give COCO's captions_*.json")
    require_own_files(rows, annotations)
    rows.sort(key=lambda row: (str(row.fields["image_id"]).zfill(20), str(row.id).zfill(20)))
    images: dict[Any, list[PromptRow]] = {}
    for row in rows:
        images.setdefault(row.fields["image_id"], []).append(row)
    draw = np.random.Generator(np.random.PCG64(seed))
    if per_image is None:
        drawn = [rows[place] for place in draw.permutation(len(rows))]
    else:
        groups, drawn = list(images.values()), list[PromptRow]()
        for place in draw.permutation(len(groups)):
            order = draw.permutation(len(groups[place]))  # also where it is not used: images stay the same
            chosen = order[:per_image] if caption == "random" else range(per_image)
            drawn += [groups[place][i] for i in chosen if i < len(groups[place])]
    if number is not None and number > len(drawn):
        how = "in all" if per_image is None else f"with {per_image} of each of {len(images):,} images"
        raise UserError(f"{annotations} has {len(drawn):,} captions {how}, fewer than {number:,}")
    drawn = drawn[:number]
    record = {"annotations": annotations.name, "sha256": file_sha256(annotations), "captions": len(rows)}
    record |= {"images": len(images), "number": len(drawn), "per_image": "all" if per_image is None else per_image}
    return drawn, record | {"caption": None if per_image is None else caption, "seed": seed}


def require_own_files(rows: Sequence[PromptRow], source: Path) -> None:
    """Raise a `UserError` where two images of the prompts have one file name: one of them would be left out."""
    images: dict[Any, Any] = {}
    for row in rows:
        name, image = row.fields.get("file_name"), row.fields.get("image_id")
        if name is not None and images.setdefault(name, image) != image:
            raise UserError(
                f"{source} has one file name, {name}, for two images, {images[name]} and {image}: mend its `images`"
            )


def write_prompts(rows: Sequence[PromptRow], out: Path, record: Mapping[str, Any]) -> None:
    """Write prompts as JSON lines, and how they were drawn beside them, `record_path`.

    A `UserError` where there is another file."""
    text = "".join(json.dumps(row.to_dict(), ensure_ascii=False) + "\n" for row in rows)
    digest = hashlib.sha256(text.encode()).hexdigest()
    if out.suffix != ".jsonl":
        raise UserError(f"{out}: prompts are written as JSON lines, to a file that ends in .jsonl")
    if out.exists() and (out.is_dir() or file_sha256(out) != digest):
        raise UserError(f"{out} is there already and holds something else: name another file")
    write_text(out, text)
    write_text(record_path(out), json.dumps({**record, "prompts_sha256": digest}, indent=2) + "\n")


def record_path(prompts: Path) -> Path:
    """Beside `coco.jsonl`, `coco.draw.json`."""
    return prompts.with_suffix(".draw.json")


def draw_record(prompts: Path) -> dict[str, Any]:
    """How a file of prompts was drawn; empty where nothing beside it says so of this very file."""
    record = values_of(record_path(prompts))
    return record if record and record.get("prompts_sha256") == file_sha256(prompts) else {}


def category_counts(rows: Sequence[PromptRow]) -> dict[str, int]:
    """Prompts of each category, DrawBench's first."""
    counts = Counter(row.fields.get("category", "") for row in rows)
    return {name: counts.pop(name) for name in CATEGORIES if name in counts} | dict(sorted(counts.items()))


def against_drawbench(rows: Sequence[PromptRow]) -> str | None:
    """How the categories of prompts differ from those of DrawBench, in words; none where they do not."""
    counts = category_counts(rows)
    wrong = [
        f"{name}: {counts.get(name, 0)}, not {right}" for name, right in CATEGORIES.items() if counts.get(name) != right
    ]
    wrong += [f"{name or 'no category'}: {count}, not 0" for name, count in counts.items() if name not in CATEGORIES]
    return "; ".join(wrong) or None
