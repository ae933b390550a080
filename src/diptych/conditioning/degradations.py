"""Degradations of training images for super-resolution: bicubic, or BSRGAN's chain (Zhang et al. 2021).

The chain is that of the paper's section 3 with the numbers of its published code; the noise of a camera's sensor, for
which that needs a model of the camera, is left out, as latent-diffusion leaves it out. Everything random about an
image comes from its own seed: it is the same alone, in any batch and on any device.
"""

from __future__ import annotations

import io
import math
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from diptych.conditioning.concat_config import DegradationConfig
from diptych.conditioning.lowres_augmentation import mirrored
from diptych.core.errors import UserError
from diptych.core.images import to_images, to_tensor

STREAM = 0xDE64
"""Keeps these numbers apart from all others that are drawn from an image's seed."""
SHIFTED_REACH = 12
"""Of the kernel before an image is thinned out, in pixels either side."""


@dataclass(frozen=True, kw_only=True)
class Degradations:
    """Strengths of the steps of a degradation chain."""

    blurs: int
    """How often an image is blurred."""
    width: float
    """A Gaussian's deviation is at most `width` times 2 + 0.2 s pixels for a factor of s, if it is round; else its
    variances along its axes are at most `width` times 4 + s."""
    reach: tuple[int, int]
    """Its kernel ends so many pixels from its middle, from .. to."""
    round_reach: tuple[int, int]
    """That of a round one."""
    resize: float
    """How likely it is that the image is resized, not thinned out."""
    noise: tuple[int, int]
    """Deviation of the noise, from .. to, of values from 0 to 255."""
    quality: tuple[int, int]
    """Of JPEG, from .. to."""


CHAINS = {
    "bsr": Degradations(
        blurs=2, width=1, reach=(3, 12), round_reach=(3, 12), resize=0.75, noise=(2, 25), quality=(30, 95)
    ),
    "bsr-light": Degradations(
        blurs=1, width=0.25, reach=(2, 7), round_reach=(2, 3), resize=0.8, noise=(1, 2), quality=(80, 95)
    ),
}


@torch.no_grad()
@torch.autocast("cpu", enabled=False)  # a blur is a convolution
def degrade(images: Tensor, factor: int, config: DegradationConfig, seeds: Tensor) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1] downsampled by `factor`, random numbers by their seeds (B,).

    The results (B, 3, H / factor, W / factor) have values that 8 bits hold. Raises `UserError` unless H and W are
    whole multiples of the factor.
    """
    height, width = images.shape[-2:]
    if height % factor or width % factor:
        raise UserError(f"images of {width} x {height} pixels are no multiples of the factor {factor}")
    if config.kind == "bicubic":
        size = (width // factor, height // factor)
        return to_tensor([image.resize(size, Image.Resampling.BICUBIC) for image in to_images(images)]).to(images)
    chain = CHAINS[config.kind]
    own = images.detach().float().cpu()
    made = [
        apply_chain(image[None], factor, chain, np.random.Generator(np.random.PCG64([STREAM, int(seed)])))
        for image, seed in zip(own, seeds.tolist(), strict=True)
    ]
    return torch.cat(made).to(images)


def apply_chain(x: Tensor, factor: int, chain: Degradations, rng: np.random.Generator) -> Tensor:
    """One image (1, 3, H, W) after a whole chain, (1, 3, H / factor, W / factor)."""
    small = (x.shape[-2] // factor, x.shape[-1] // factor)
    if factor == 4 and rng.random() < 0.25:
        x, factor = halve(x, rng), 2
    # Making small has two halves in this order: to any size, and to the right one.
    steps = [*["blur"] * chain.blurs, "resize", "resize", "noise", "jpeg"]
    steps = [steps[i] for i in rng.permutation(len(steps))]
    first = steps.index("resize")
    for place, step in enumerate(steps):
        if step == "blur":
            x = blur(x, sample_kernel(factor, chain, rng))
        elif step == "resize":
            x = resize_randomly(x, factor, chain, rng) if place == first else resize(x, small, rng)
        elif step == "noise":
            x = add_noise(x, chain, rng)
        elif rng.random() < 0.9:
            x = compress(x, chain, rng)
    return compress(x, chain, rng)


def halve(x: Tensor, rng: np.random.Generator) -> Tensor:
    """At half its size: with antialiasing, or without."""
    size = (x.shape[-2] // 2, x.shape[-1] // 2)
    if rng.random() < 0.5:
        return resize(x, size, rng)
    return F.interpolate(x, size, mode="bicubic", antialias=True).clamp(-1, 1)


def resize_randomly(x: Tensor, factor: int, chain: Degradations, rng: np.random.Generator) -> Tensor:
    """Made 1 to 2 * factor times as small, or blurred and then every factor-th pixel of it.

    What is then too small is enlarged by the other half of the work: in the paper, down and up again.
    """
    if rng.random() < chain.resize:
        times = rng.uniform(1, 2 * factor)
        return resize(x, (max(1, int(x.shape[-2] / times)), max(1, int(x.shape[-1] / times))), rng)
    # The kernel's middle is that of the square of pixels of which the first is taken: nothing is shifted.
    deviation, middle = rng.uniform(0.1, 0.6 * factor), (factor - 1) / 2
    kernel = gaussian(SHIFTED_REACH, deviation**2, deviation**2, middle=middle)
    return blur(x, kernel)[..., ::factor, ::factor]


def resize(x: Tensor, size: tuple[int, int], rng: np.random.Generator) -> Tensor:
    """At (height, width), by one of three ways, the first two of which do not look at more pixels where it shrinks."""
    mode = ("bilinear", "bicubic", "area")[rng.integers(3)]
    return F.interpolate(x, size, mode=mode).clamp(-1, 1)


def sample_kernel(factor: int, chain: Degradations, rng: np.random.Generator) -> Tensor:
    """A Gaussian, round or not as likely as not."""
    if rng.random() < 0.5:
        reach = int(rng.integers(*chain.reach, endpoint=True))
        along, across = (chain.width * (4 + factor) * rng.random(2)).tolist()
        return gaussian(reach, along, across, angle=math.pi * rng.random())
    reach = int(rng.integers(*chain.round_reach, endpoint=True))
    deviation = chain.width * (2 + 0.2 * factor) * rng.random()
    return gaussian(reach, deviation**2, deviation**2)


def gaussian(reach: int, along: float, across: float, angle: float = 0.0, middle: float = 0.0) -> Tensor:
    """A kernel (K, K), K = 2 reach + 1, that sums to 1: variances along a direction and across, and where its middle
    is, right of and below that of the kernel, in pixels.
    """
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float64) - middle
    y, x = torch.meshgrid(offsets, offsets, indexing="ij")
    u, v = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
    exponent = -0.5 * (u**2 / max(along, 1e-6) + v**2 / max(across, 1e-6))
    return torch.softmax(exponent.flatten(), 0).view_as(exponent).float()


def blur(x: Tensor, kernel: Tensor) -> Tensor:
    """An image (1, 3, H, W) under a kernel (K, K), its edges mirrored."""
    reach = kernel.shape[-1] // 2
    rows, columns = (mirrored(length, reach) for length in x.shape[-2:])
    x = x[..., rows, :][..., columns].transpose(0, 1)  # (3, 1, H + 2 reach, W + 2 reach)
    return F.conv2d(x, kernel[None, None]).transpose(0, 1)


def add_noise(x: Tensor, chain: Degradations, rng: np.random.Generator) -> Tensor:
    """Gaussian noise: in each colour for itself (40%), in all alike (40%), or of any covariance of the colours."""
    size, kind = x.shape[-2:], rng.random()
    deviation = rng.integers(*chain.noise, endpoint=True)
    if kind < 0.4:
        noise = deviation * rng.standard_normal((3, *size))
    elif kind < 0.8:
        noise = deviation * rng.standard_normal((1, *size))
    else:  # covariance L² Uᵀ D U with L the largest deviation, D diagonal in [0, 1] and U orthogonal
        turn, _ = np.linalg.qr(rng.random((3, 3)))
        root = chain.noise[1] * turn.T * np.sqrt(rng.random(3))  # (3, 3)
        noise = np.einsum("ij,jhw->ihw", root, rng.standard_normal((3, *size)))
    return (x + torch.from_numpy(noise).float() / 127.5).clamp(-1, 1)


def compress(x: Tensor, chain: Degradations, rng: np.random.Generator) -> Tensor:
    """An image (1, 3, H, W) as JPEG gives it back."""
    file = io.BytesIO()
    to_images(x)[0].save(file, "JPEG", quality=int(rng.integers(*chain.quality, endpoint=True)))
    with Image.open(file) as image:
        return to_tensor([image])
