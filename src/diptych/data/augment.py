"""What training sees of a picture each time: random crops, shifted centre crops, flips.

Everything is drawn from the example's seed, which its position in the stream fixes: the same on any number of workers
and processes, and after any resume.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from diptych.core.hashing import mix
from diptych.data.dataset_config import DataConfig

TOP, LEFT, FLIP, SIZE, SHIFT = 31, 32, 33, 34, 35
"""What is drawn: a number each, mixed with the example's seed."""
RANGE = 2**63
"""`mix` draws whole numbers below this."""


def view(picture: np.ndarray, config: DataConfig, seed: int) -> np.ndarray:
    """The square that is trained on, uint8 (S, S, 3) with S = `config.side`, of a picture (H, W, 3) as the dataset has
    it: its shorter side `config.resized`, or the square already where nothing is drawn."""
    if config.crop is not None:
        picture = random_crop(picture, config.crop, drawn_size(config, seed), seed)
    elif config.center_shift:
        picture = shifted_crop(picture, config.center_shift, seed)
    return picture[:, ::-1] if flipped(config.flip, seed) else picture


def flipped(probability: float, seed: int) -> bool:
    """Whether an example of this seed is mirrored."""
    return probability > 0 and mix(seed, FLIP) < probability * RANGE


def drawn_size(config: DataConfig, seed: int) -> int:
    """The length of the shorter side, from `size` to `max_size`, each as likely."""
    return config.size + mix(seed, SIZE) % (config.resized - config.size + 1)


def random_crop(picture: np.ndarray, side: int, size: int, seed: int) -> np.ndarray:
    """A square (side, side, 3) of a picture (H, W, 3) as if its shorter side were resized to `size`: the seed fixes
    where, every place is as likely."""
    height, width = picture.shape[:2]
    if size == min(height, width):
        top, left = mix(seed, TOP) % (height - side + 1), mix(seed, LEFT) % (width - side + 1)
        return picture[top : top + side, left : left + side]
    length = side * min(height, width) / size  # in pixels of the picture as it is
    top, left = (mix(seed, n) / RANGE * (whole - length) for n, whole in ((TOP, height), (LEFT, width)))
    box = left, top, min(left + length, width), min(top + length, height)
    return np.asarray(Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS, box=box))


def shifted_crop(picture: np.ndarray, most: float, seed: int) -> np.ndarray:
    """The square of the shorter side (S, S, 3) from the centre of a picture (H, W, 3), moved along the longer side by
    up to `most` of its own side, as far as the picture reaches."""
    height, width = picture.shape[:2]
    side = min(height, width)
    centre = (max(height, width) - side) // 2
    reach = min(int(most * side), centre)
    start = centre - reach + mix(seed, SHIFT) % (2 * reach + 1)
    return picture[start : start + side] if height > width else picture[:, start : start + side]
