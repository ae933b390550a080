"""Files that keep the generated images of a cell, so that a study that was interrupted goes on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from diptych.core.disk import values_of, write_text
from diptych.core.images import grid
from diptych.models.provenance import save_generated

ACROSS = 16
"""Images in a row of an `ImageSheet`."""


class ImageFolder:
    """A PNG for each image, written batch by batch, and some entries of the first one's metadata."""

    def __init__(self, folder: Path, names: Sequence[str], entries: Sequence[str] = ()) -> None:
        self.folder, self.names, self.entries = folder, names, entries

    def load(self) -> list[Image.Image | None]:
        """Each image, or none where it is missing or damaged."""
        return [read_image(self.folder / name) for name in self.names]

    def metadata(self) -> dict[str, Any]:
        return values_of(self.folder / "metadata.json")

    def save(self, numbers: Sequence[int], images: Sequence[Image.Image], metadata: dict[str, Any]) -> None:
        stated = {name: metadata[name] for name in self.entries if name in metadata}
        if stated and not (self.folder / "metadata.json").exists():
            write_text(self.folder / "metadata.json", json.dumps(stated, indent=1) + "\n")
        for number, image in zip(numbers, images, strict=True):
            save_generated(image, self.folder / self.names[number])

    def remove(self) -> None:
        """Delete these files, and the folder unless it holds others."""
        for name in (*self.names, "metadata.json"):
            (self.folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # there is no folder, or it holds something else
            self.folder.rmdir()


class ImageSheet:
    """All images of a cell in one PNG, written when the cell is complete."""

    def __init__(self, path: Path, count: int, size: int, made: dict[str, Any]) -> None:
        """size: side of an image. made: what the images were made from, written into the file and compared."""
        self.path, self.count, self.size, self.made = path, count, size, json.dumps(made, sort_keys=True)
        self.images: list[Image.Image] = []

    def load(self) -> list[Image.Image | None]:
        """All images, or none of them."""
        sheet = read_image(self.path)
        if (
            sheet is None
            or sheet.info.get("made") != self.made
            or sheet.size != (ACROSS * self.size, -(-self.count // ACROSS) * self.size)
        ):
            return [None] * self.count
        places = [(i % ACROSS * self.size, i // ACROSS * self.size) for i in range(self.count)]
        return [sheet.crop((x, y, x + self.size, y + self.size)) for x, y in places]

    def metadata(self) -> dict[str, Any]:
        return {}

    def save(self, numbers: Sequence[int], images: Sequence[Image.Image], metadata: dict[str, Any]) -> None:
        self.images += images
        if len(self.images) == self.count:
            save_generated(grid(self.images, ACROSS, gap=0), self.path, {"made": self.made})


def read_image(path: Path) -> Image.Image | None:
    """An RGB image; none where there is no such file, or it is damaged."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError):
        return None
