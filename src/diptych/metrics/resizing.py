"""Bringing an image to the size that a network reads. Which filter does it moves a Fréchet distance by several points
between the same images, so each has a name, and results carry it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from diptych.networks.inception import resize_tf1

Resize = Callable[[Image.Image, int], Tensor]
"""(an RGB image, side) -> (side, side, 3), float32 from 0 to 255."""


def tf1(image: Image.Image, side: int) -> Tensor:
    """TensorFlow 1's bilinear, not antialiased: torch-fidelity, and the original FID."""
    return resize_tf1(as_floats(image)[None], side)[0]


def torch_bilinear(image: Image.Image, side: int) -> Tensor:
    """PyTorch's bilinear, not antialiased, centres aligned: pytorch-fid."""
    return _interpolated(image, side, "bilinear")


def torch_antialiased(image: Image.Image, side: int) -> Tensor:
    """PyTorch's bilinear, antialiased: the judge's own."""
    return as_floats(image) if image.size == (side, side) else _interpolated(image, side, "bilinear", antialias=True)


def torch_bicubic(image: Image.Image, side: int) -> Tensor:
    """PyTorch's bicubic, not antialiased, to a square: CMMD's published code."""
    return _interpolated(image, side, "bicubic")


def clean(image: Image.Image, side: int) -> Tensor:
    """Pillow's bicubic, antialiased, channel by channel in float32 and not rounded (Parmar et al. 2022): clean-fid."""
    if image.size == (side, side):
        return as_floats(image)
    channels = [
        np.asarray(band.convert("F").resize((side, side), Image.Resampling.BICUBIC)).clip(0, 255)
        for band in image.split()
    ]
    return torch.from_numpy(np.stack(channels, -1))


def clip(image: Image.Image, side: int) -> Tensor:
    """Pillow's bicubic, antialiased, of the shorter side, then the square from the centre: CLIP's own."""
    width, height = image.size
    short, long = sorted(image.size)
    if short != side:
        other = int(side * long / short)
        image = image.resize((side, other) if width <= height else (other, side), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return as_floats(image.crop((left, top, left + side, top + side)))


RESIZES: dict[str, Resize] = {
    "tf1": tf1,
    "torch-bilinear": torch_bilinear,
    "torch-antialiased": torch_antialiased,
    "torch-bicubic": torch_bicubic,
    "clean": clean,
    "clip": clip,
}


def as_floats(image: Image.Image) -> Tensor:
    """An RGB image as (H, W, 3), float32 from 0 to 255."""
    return torch.from_numpy(np.array(image.convert("RGB"), np.float32))


def _interpolated(image: Image.Image, side: int, mode: str, antialias: bool = False) -> Tensor:
    values = as_floats(image).permute(2, 0, 1)[None]  # (1, 3, H, W)
    resized = F.interpolate(values, (side, side), mode=mode, antialias=antialias, align_corners=False)
    return resized[0].permute(1, 2, 0).contiguous()
