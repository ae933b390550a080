"""The images of a study: copies without metadata under names that say nothing, all of one size; degraded ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from diptych.core.errors import UserError
from diptych.core.image_files import fit_image, read_image
from diptych.data.image_sides import image_size
from diptych.data.paths import read_start
from diptych.data.quarantine import BrokenExample

COARSE, NOISE = 12, 0.15
"""How a control's image is degraded: pixels that are left of its longer side, and the standard deviation of noise."""


class StudyImages:
    """Writes images into a folder. A name is a hash of seed and pixels: it says neither model nor prompt."""

    def __init__(self, folder: Path, size: tuple[int, int], seed: int) -> None:
        """size: width and height of each image; those of another shape are cropped around their centre."""
        self.folder, self.size, self.seed = folder, size, seed
        self.names: dict[str, None] = {}
        self._known: dict[tuple[Path, bool], str] = {}
        folder.mkdir()

    def add(self, path: Path, degraded: bool = False) -> str:
        """The name of an image file's copy, or of its degraded copy."""
        if (path, degraded) not in self._known:
            image = fit_image(read_image(path), self.size)
            self._known[path, degraded] = self._write(degrade(image, self.seed) if degraded else image)
        return self._known[path, degraded]

    def _write(self, image: Image.Image) -> str:
        pixels = np.asarray(image.convert("RGB"))
        name = hashlib.sha256(f"{self.seed} {pixels.shape} ".encode() + pixels.tobytes()).hexdigest()[:32]
        if name not in self.names:
            self.names[name] = None
            Image.fromarray(pixels).save(self.folder / f"{name}.png")
        return name


def degrade(image: Image.Image, seed: int) -> Image.Image:
    """An image that is plainly worse: scaled to 12 pixels and back, with Gaussian noise of 0.15 of the range."""
    scale = COARSE / max(image.size)
    small = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.BOX)
    values = np.asarray(small.resize(image.size, Image.Resampling.BICUBIC).convert("RGB"), dtype=np.float64)
    noise = np.random.Generator(np.random.PCG64(seed)).normal(0, 255 * NOISE, values.shape)
    return Image.fromarray(np.clip(np.round(values + noise), 0, 255).astype(np.uint8))


def common_size(paths: Iterable[Path]) -> tuple[int, int]:
    """The size of the largest of some image files."""
    return max((size_of(path) for path in paths), key=lambda size: (size[0] * size[1], size))


def size_of(path: Path) -> tuple[int, int]:
    """Width and height as it is shown, turned as its EXIF says."""
    try:
        return image_size(partial(read_start, path))
    except (OSError, BrokenExample) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path} cannot be read as an image ({reason}): remove it, or make it again") from None
