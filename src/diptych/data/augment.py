"""Augmentation: random crops, shifted centre crops, flips.

Everything is drawn from the example's seed, which its position in the stream fixes: the same on any number of workers
and processes, and after any resume.
"""

from __future__ import annotations

import numpy as np

from diptych.core.hashing import mix
from diptych.data.dataset_config import DataConfig
from diptych.data.pixels import Pixels, array_of, cut, resized, sides, write

TOP, LEFT, FLIP, SIZE, SHIFT = 31, 32, 33, 34, 35
"""A number for each random choice, mixed with the example's seed."""
MIX_RANGE = 2**63
"""`mix` draws whole numbers below this."""


def augment_image(image: np.ndarray, config: DataConfig, seed: int) -> np.ndarray:
    """The training crop, uint8 (S, S, 3) with S = `config.side`, of an image (H, W, 3) of the dataset: its shorter
    side is `config.resized`, or it is the square already where the config crops at the centre."""
    crop = array_of(cropped(image, config, seed))
    return crop[:, ::-1] if flipped(config.flip, seed) else crop


def augment_into(out: np.ndarray, image: Pixels, config: DataConfig, seed: int) -> None:
    """Write the training crop of an image into `out`, uint8 (S, S, 3), contiguous."""
    write(out, cropped(image, config, seed), flipped(config.flip, seed))


def cropped(image: Pixels, config: DataConfig, seed: int) -> Pixels:
    """The training crop before it is mirrored."""
    if config.crop is not None:
        return random_crop(image, config.crop, random_size(config, seed), seed)
    return shifted_crop(image, config.center_shift, seed) if config.center_shift else image


def flipped(probability: float, seed: int) -> bool:
    """Whether an example of this seed is mirrored."""
    return probability > 0 and mix(seed, FLIP) < probability * MIX_RANGE


def random_size(config: DataConfig, seed: int) -> int:
    """The length of the shorter side, from `size` to `max_size`, uniformly at random."""
    return config.size + mix(seed, SIZE) % (config.resized - config.size + 1)


def random_crop(image: Pixels, side: int, size: int, seed: int) -> Pixels:
    """A square of `side` pixels of an image as if its shorter side were resized to `size`, at a uniformly random place
    that the seed fixes."""
    width, height = sides(image)
    if size == min(height, width):
        top, left = mix(seed, TOP) % (height - side + 1), mix(seed, LEFT) % (width - side + 1)
        return cut(image, (left, top), (side, side))
    length = side * min(height, width) / size  # in pixels of the image as it is
    top, left = (mix(seed, n) / MIX_RANGE * (whole - length) for n, whole in ((TOP, height), (LEFT, width)))
    box = left, top, min(left + length, width), min(top + length, height)
    return resized(image, (side, side), box)


def shifted_crop(image: Pixels, most: float, seed: int) -> Pixels:
    """The square of the shorter side from the centre of an image, moved along the longer side by up to `most` of its
    own side, as far as the image reaches."""
    width, height = sides(image)
    side = min(height, width)
    centre = (max(height, width) - side) // 2
    reach = min(int(most * side), centre)
    start = centre - reach + mix(seed, SHIFT) % (2 * reach + 1)
    return cut(image, (0, start) if height > width else (start, 0), (side, side))
