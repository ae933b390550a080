"""Pixels of a decoded image on their way into a batch: cut, mirrored and copied once.

Pillow keeps four bytes a pixel and a batch has three. `np.asarray` packs the whole image in parts, joins these, and the
part that training reads is copied from there. Here Pillow packs that part alone, in one piece.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image


class Region(NamedTuple):
    """A rectangle of an RGB image of Pillow's, not cut out yet."""

    image: Image.Image
    left: int
    top: int
    width: int
    height: int

    @classmethod
    def whole(cls, image: Image.Image) -> Region:
        """All of a loaded image."""
        return cls(image, 0, 0, *image.size)

    def packed(self, mirrored: bool = False) -> np.ndarray:
        """Its bytes, uint8 (3 H W,); `mirrored`: those of its mirror image, the last of them first. Pillow can pack
        that: blue before green before red, the lowest line first."""
        encoder = Image._getencoder("RGB", "raw", ("BGR", 0, -1) if mirrored else ("RGB", 0, 1))
        encoder.setimage(self.image.im, (self.left, self.top, self.left + self.width, self.top + self.height))
        _, status, data = encoder.encode(size := 3 * self.width * self.height)
        if status < 0 or len(data) != size:
            raise AssertionError(f"Pillow packed {len(data)} of {size} bytes ({status})")
        return np.frombuffer(data, np.uint8)


Pixels = np.ndarray | Region
"""An RGB image: uint8 (H, W, 3), or of Pillow's."""


def sides(image: Pixels) -> tuple[int, int]:
    """Width and height."""
    return (image.width, image.height) if isinstance(image, Region) else (image.shape[1], image.shape[0])


def cut(image: Pixels, corner: tuple[int, int], size: tuple[int, int]) -> Pixels:
    """The part of an image of this (width, height) whose upper left corner lies at (x, y). Nothing is copied."""
    (left, top), (width, height) = corner, size
    if isinstance(image, Region):
        return image._replace(left=image.left + left, top=image.top + top, width=width, height=height)
    return image[top : top + height, left : left + width]


def resized(image: Pixels, size: tuple[int, int], box: tuple[float, float, float, float]) -> Region:
    """What a box (left, top, right, bottom) of an image holds, in this width and height (Lanczos)."""
    if isinstance(image, Region):
        box = box[0] + image.left, box[1] + image.top, box[2] + image.left, box[3] + image.top
    whole = image.image if isinstance(image, Region) else Image.fromarray(image)
    return Region.whole(whole.resize(size, Image.Resampling.LANCZOS, box=box))


def array_of(image: Pixels) -> np.ndarray:
    """uint8 (H, W, 3)."""
    return image.packed().reshape(image.height, image.width, 3) if isinstance(image, Region) else image


def write(out: np.ndarray, image: Pixels, mirrored: bool) -> None:
    """Copy an image, or its mirror image, to `out`: uint8 (H, W, 3), contiguous."""
    if isinstance(image, Region):
        if not out.flags.c_contiguous:
            raise ValueError("the pixels to be written are not contiguous")
        flat, packed = out.reshape(-1), image.packed(mirrored)
        word = np.dtype(np.uint64 if len(flat) % 8 == 0 else np.uint8)  # eight bytes are turned round at once
        flat.view(word)[:] = packed.view(word.newbyteorder())[::-1] if mirrored else packed.view(word)
    elif mirrored:
        for channel in range(3):  # of a mirrored image NumPy copies planes much faster than pixels
            out[..., channel] = image[:, ::-1, channel]
    else:
        out[:] = image
