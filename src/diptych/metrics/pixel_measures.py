"""Measures of pixels: PSNR, SSIM, saturation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from diptych.core.images import psnr

WINDOW = 11  # pixels a side of that of SSIM
ROUNDING = 1 / 12  # the variance of the error of rounding to whole numbers


def image_psnr(one: Image.Image, other: Image.Image) -> float:
    """`psnr` of two images of one size, in dB; at most 58.9, what rounding to 8 bits leaves."""
    first, second = (torch.from_numpy(np.array(image.convert("RGB"), np.float64))[None] for image in (one, other))
    return psnr(first, second, span=255, least=ROUNDING / 255**2).item()


def ssim(one: Image.Image, other: Image.Image) -> float:
    """Structural similarity of two images of one size (Wang et al. 2004, equations 13 to 17): at most 1.

        (2 m1 m2 + C1)(2 c + C2) / ((m1² + m2² + C1)(v1 + v2 + C2))

    with means, variances and covariance under a Gaussian window of 11 x 11 and deviation 1.5; C1 = (0.01 · 255)² and
    C2 = (0.03 · 255)², of values from 0 to 255. Averaged over all windows that lie within the image, and over
    red, green and blue. Images have 11 pixels a side or more.
    """
    if min(one.size) < WINDOW or one.size != other.size:
        raise ValueError(f"SSIM compares images of one size, {WINDOW} pixels a side or more")
    first, second = (np.asarray(image.convert("RGB"), np.float64) for image in (one, other))  # (H, W, 3)
    weights = np.exp(-np.square(np.arange(WINDOW) - WINDOW // 2) / (2 * 1.5**2))
    weights /= weights.sum()

    def mean(values: np.ndarray) -> np.ndarray:
        """Under the window at each place: (H, W, 3) -> (H - 10, W - 10, 3)."""
        for axis in (0, 1):
            values = np.lib.stride_tricks.sliding_window_view(values, WINDOW, axis) @ weights
        return values

    mean1, mean2 = mean(first), mean(second)
    variances = mean(first**2) - mean1**2 + mean(second**2) - mean2**2
    covariance = mean(first * second) - mean1 * mean2
    light, contrast = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    alike = (2 * mean1 * mean2 + light) * (2 * covariance + contrast)
    return float((alike / ((mean1**2 + mean2**2 + light) * (variances + contrast))).mean())


def saturated(images: Sequence[Image.Image]) -> float:
    """The share of pixel values at either end of their range, 0 or 255, where clipping leaves them."""
    values = (np.asarray(image.convert("RGB")) for image in images)
    return float(np.mean([((value == 0) | (value == 255)).mean() for value in values]))
