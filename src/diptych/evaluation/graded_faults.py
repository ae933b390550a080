"""Faults of images in levels whose order is known: each level of a fault adds to the one before.

Of one image the noise of every level is the same pattern, louder; the tiles that are missing or swapped at one level
are missing or swapped at the next. So whoever looks at two levels of one image sees which is worse, and a measure that
puts them in another order is wrong.
"""

from __future__ import annotations

import colorsys
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

from diptych.core.hashing import mix, stable_hash

SIDE = 128
"""Pixels a side that lengths are stated for; those of larger images grow with them."""
TILES = 4
"""A side of the drawing's box is cut into so many."""
Fault = Callable[[Image.Image, float, np.random.Generator], Image.Image]
"""(RGB image, amount, random numbers of this image) -> RGB image of the same size."""


@dataclass(frozen=True)
class GradedFault:
    """A fault of single images."""

    apply: Fault
    amounts: tuple[float, ...]
    """Of levels 1, 2, ..."""
    unit: str
    """What an amount is, for people."""

    def __call__(self, image: Image.Image, amount: float, seed: int) -> Image.Image:
        return self.apply(image, amount, np.random.Generator(np.random.PCG64(seed)))


def fault_seed(seed: int, name: str, number: int) -> int:
    """Of image `number` under a fault: the same at all of its levels."""
    return mix(seed, stable_hash("fault", name), number)


def add_noise(image: Image.Image, amount: float, draw: np.random.Generator) -> Image.Image:
    pixels = _values(image)
    return _image(pixels + amount * draw.standard_normal(pixels.shape))


def blur(image: Image.Image, amount: float, draw: np.random.Generator) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(amount * min(image.size) / SIDE))


def compress(image: Image.Image, amount: float, draw: np.random.Generator) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=round(amount))
    with Image.open(file) as encoded:
        return encoded.convert("RGB")


def remove_tiles(image: Image.Image, amount: float, draw: np.random.Generator) -> Image.Image:
    """Tiles of the drawing in the colour of the background."""
    pixels = _values(image)
    for rows, columns in tiles(pixels, draw)[: round(amount)]:
        pixels[rows, columns] = pixels[0, 0]
    return _image(pixels)


def swap_tiles(image: Image.Image, amount: float, draw: np.random.Generator) -> Image.Image:
    """Pairs of tiles of the drawing in each other's place."""
    pixels = _values(image)
    order = tiles(pixels, draw)
    for one, other in list(zip(order[::2], order[1::2], strict=False))[: round(amount)]:
        kept = pixels[one].copy()
        pixels[one] = pixels[other]
        pixels[other] = kept
    return _image(pixels)


def cast(image: Image.Image, amount: float, draw: np.random.Generator) -> Image.Image:
    """Less green, and still less blue: a red cast."""
    return _image(_values(image) * (1, 1 - amount / 2, 1 - amount))


def flatten(image: Image.Image, amount: float, draw: np.random.Generator) -> Image.Image:
    """All values nearer to the middle of their range."""
    return _image(127.5 + (_values(image) - 127.5) * amount)


def turn_hue(image: Image.Image, amount: float, draw: np.random.Generator) -> Image.Image:
    """Every colour so many degrees further; white, grey and black stay. A rotation about the grey axis of YIQ."""
    angle = np.deg2rad(amount)
    basis = np.array([colorsys.rgb_to_yiq(*unit) for unit in np.eye(3)]).T  # (3, 3): RGB to YIQ
    turn = np.array([[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]])
    return _image(_values(image) @ (np.linalg.inv(basis) @ turn @ basis).T)


def shift(image: Image.Image, amount: float, draw: np.random.Generator) -> Image.Image:
    """Moved to the right by so many pixels; the first column fills the gap."""
    pixels, columns = _values(image), round(amount)
    return _image(np.concatenate([pixels[:, :1].repeat(columns, 1), pixels[:, : pixels.shape[1] - columns]], 1))


def resize_and_back(image: Image.Image, amount: float, draw: np.random.Generator) -> Image.Image:
    """Enlarged so many times by one filter and brought back by another."""
    large = [round(side * amount) for side in image.size]
    return image.resize(large, Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BOX)


def turn_over(image: Image.Image, amount: float, draw: np.random.Generator) -> Image.Image:
    return image.transpose(Image.Transpose.ROTATE_180)


FAULTS = {
    "noise": GradedFault(add_noise, (6, 16, 40, 90), "standard deviation, of 255"),
    "blur": GradedFault(blur, (0.7, 1.5, 3, 6), "standard deviation in pixels, of 128"),
    "jpeg": GradedFault(compress, (40, 15, 6, 2), "quality"),
    "missing parts": GradedFault(remove_tiles, (1, 2, 4, 8), f"tiles of {TILES**2}"),
    "swapped parts": GradedFault(swap_tiles, (1, 2, 4, 8), f"pairs of {TILES**2} tiles"),
    "colour cast": GradedFault(cast, (0.08, 0.2, 0.4, 0.7), "share of blue that is lost"),
    "contrast": GradedFault(flatten, (0.8, 0.55, 0.3, 0.12), "share of the contrast that is left"),
    "wrong colour": GradedFault(turn_hue, (30, 60, 110, 180), "degrees of hue"),
}
"""Name -> fault, level 1 first."""
INVISIBLE = {
    "noise of 1.5": GradedFault(add_noise, (1.5,), "standard deviation, of 255"),
    "JPEG of 95": GradedFault(compress, (95,), "quality"),
    "moved a pixel": GradedFault(shift, (1,), "pixels"),
    "enlarged twice": GradedFault(resize_and_back, (2,), "times"),
}
"""What nobody notices who is not shown it."""
TURNED = GradedFault(turn_over, (180,), "degrees")


def tiles(pixels: np.ndarray, draw: np.random.Generator) -> list[tuple[slice, slice]]:
    """The tiles of a drawing's box, in an order that is drawn; those that hold nothing of it come last.

    pixels (H, W, 3). The box is that of all pixels that are not of the background, which is the colour of the first.
    """
    drawn = np.abs(pixels - pixels[0, 0]).max(-1) > 16
    if not drawn.any():
        drawn[:] = True
    edges = []
    for axis in (0, 1):
        (places,) = drawn.any(1 - axis).nonzero()
        side = max(1, (places[-1] + 1 - places[0]) // TILES)
        edges.append([slice(places[0] + side * n, places[0] + side * (n + 1)) for n in range(TILES)])
    every = [(rows, columns) for rows in edges[0] for columns in edges[1]]
    order = [every[n] for n in draw.permutation(len(every))]
    return sorted(order, key=lambda tile: drawn[tile].mean() < 0.25)


def few_kept(count: int, share: float) -> np.ndarray:
    """Which image takes the place of each (N,): the first so many alone, again and again. At least one is kept."""
    return np.arange(count) % max(1, round(count * share))


def wrong_objects(styles: Sequence[str], share: float) -> np.ndarray:
    """Which image takes the place of each (N,): within a style the first such share each take the next one's. The set
    of images stays what it is."""
    places = np.arange(len(styles))
    for style in dict.fromkeys(styles):
        own = np.array([n for n, one in enumerate(styles) if one == style])
        first = own[: round(len(own) * share)]
        places[first] = np.roll(first, 1)
    return places


FEW = (1 / 4, 1 / 16, 1 / 64, 1 / 256)
"""Shares of the images that are different ones, by level."""
WRONG = (1 / 4, 1 / 2, 3 / 4, 1)
"""Shares of the images that are of another object of the same style, by level."""


def _values(image: Image.Image) -> np.ndarray:
    return np.array(image.convert("RGB"), np.float64)


def _image(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
