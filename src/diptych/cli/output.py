"""Images from the command line: generated in batches, and written as PNG files that hold their metadata."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image

from diptych.core.disk import write_new
from diptych.core.progress import bar
from diptych.core.steady import looks_on
from diptych.core.terminal import print_out
from diptych.models.metadata import png_texts
from diptych.models.provenance import png_bytes

SIDE = 256
"""Pixels of each image on the sheet of both default models."""


def generate_images(
    model: Any, wanted: Sequence[tuple[str, int]], batch: int, description: str = "generating", **options: Any
) -> Iterator[tuple[Image, dict[str, Any], list[Image]]]:
    """The image of each (prompt, seed), its metadata, and the images of the earlier stages where they are kept."""
    with bar() as progress:
        task = progress.add_task(description, total=None)
        for start in range(0, len(wanted), batch):
            part = wanted[start : start + batch]
            done, batches = start // batch, -(-len(wanted) // batch)

            @looks_on
            def advance(step: int, steps: int, x0: Any, done: int = done, batches: int = batches) -> None:
                progress.update(task, completed=done * steps + step + 1, total=batches * steps)

            prompts, seeds = [prompt for prompt, _ in part], [seed for _, seed in part]
            result = model.generate(prompts, seeds=seeds, callback=advance, **options)
            earlier = getattr(result, "stages", [])[:-1]
            for i, (image, metadata) in enumerate(zip(result.images, result.metadata, strict=True)):
                yield image, metadata, [images[i] for images in earlier]


def save_image(image: Image, folder: Path, stem: str, metadata: dict[str, Any], signer: Any = None) -> Path:
    """Write a PNG with its metadata inside under a name that is not taken yet, and print the name."""
    path = write_png(image, folder, stem, png_texts(metadata), signer)
    print_out(str(path))
    return path


def write_png(image: Image, folder: Path, stem: str, texts: Mapping[str, str], signer: Any = None) -> Path:
    """Write a PNG with texts inside, under the first name with this stem that is not taken yet: whole or not at all."""
    return write_new(folder, stem, ".png", lambda path: path.write_bytes(png_bytes(image, texts, signer)))


def file_stem(metadata: Mapping[str, Any]) -> str:
    """An image's file name without its ending: prompt and seed."""
    return f"{slug(metadata['prompt'])}-s{metadata['seed']}"


def slug(text: str) -> str:
    """`"A red apple!"` -> `"a-red-apple"`, at most 48 characters, letters of any script kept."""
    words = re.sub(r"[\W_]+", "-", unicodedata.normalize("NFKC", text).lower()).strip("-")
    return words[:48].strip("-") or "image"


def comparison_sheet(wanted: Sequence[tuple[str, int]], models: Mapping[str, Sequence[Image]]) -> Image:
    """One sheet: for each (prompt, seed) the image of each model at one size, with its true size beneath."""
    from diptych.evaluation.report import SheetCell, contact_sheet

    cells = [
        SheetCell(
            prompt=f"{prompt} (seed {seed})",
            images=images,
            correct=[None] * len(images),
            notes=[f"{model}, {image.width} px" for model, image in zip(models, images, strict=True)],
        )
        for (prompt, seed), *images in zip(wanted, *models.values(), strict=True)
    ]
    return contact_sheet(cells, columns=2, side=SIDE)
