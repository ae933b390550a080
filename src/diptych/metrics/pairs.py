"""Measures of images in pairs: a generated one and the real one of its name."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diptych.core.errors import UserError
from diptych.core.images import to_tensor
from diptych.core.progress import track
from diptych.metrics.image_set import ImageSet, set_sha256
from diptych.metrics.pixel_measures import WINDOW, image_psnr, ssim
from diptych.networks.lpips import SMALLEST, Lpips

SMALLEST_SIDE = {"psnr": 1, "ssim": WINDOW, "lpips": SMALLEST}
"""Pixels a side of the smallest image that each of these measures takes."""


def numbered_pairs(generated: ImageSet, real: ImageSet, part: bool = False) -> list[tuple[int, int]]:
    """Numbers of the images of one name, the endings of files apart, on both sides.

    part: whether there may be real images that are not paired.

    Raises a `UserError` where an image has no partner, or several.
    """
    numbers = []
    for images in (generated, real):
        by_name: dict[str, int] = {}
        for number in range(len(images)):
            if (other := by_name.setdefault(images.stem(number), number)) != number:
                raise UserError(
                    f"{images.path}: {images.name(other)} and {images.name(number)} have one name but for the ending, "
                    "so that no pair can be told"
                )
        numbers.append(by_name)
    lone = numbers[0].keys() - numbers[1].keys() if part else numbers[0].keys() ^ numbers[1].keys()
    if lone:
        raise UserError(
            f"pairs have one name on both sides, and {min(lone)} is on one alone ({len(lone)} are): {generated.path}, "
            f"{real.path}"
        )
    return [(number, numbers[1][name]) for name, number in numbers[0].items()]


def open_lpips(vgg16: str | Path, allow_pickle: bool, device: torch.device | str) -> Lpips:
    from diptych.pretrained.lpips_weights import read_lpips

    return read_lpips(vgg16, allow_pickle=allow_pickle).to(device)


@dataclass(frozen=True)
class PairValues:
    """Measures of all pairs."""

    values: dict[str, list[float]]
    """Metric -> its values, one for each pair."""
    generated: str
    real: str
    """Hashes of the images of each side, as `Features` have them."""


def measure_pairs(
    generated: ImageSet, real: ImageSet, pairs: list[tuple[int, int]], metrics: Iterable[str], lpips: Lpips | None
) -> PairValues:
    """Measure all pairs.

    Raises a `UserError` where a pair differs in size, or is too small.
    """
    work: dict[str, Callable[[Image.Image, Image.Image], float]] = {"psnr": image_psnr, "ssim": ssim}
    if lpips is not None:
        work["lpips"] = lambda one, other: _lpips(lpips, one, other)
    values: dict[str, list[float]] = {name: [] for name in metrics}
    digests: tuple[list[bytes], list[bytes]] = ([], [])
    for mine, other in track(pairs, "comparing pairs"):
        (one, first), (two, second) = generated.read(mine), real.read(other)
        digests[0].append(first)
        digests[1].append(second)
        if one.size != two.size:
            raise UserError(
                f"{generated.path}: {generated.name(mine)} has {one.width} x {one.height} pixels and its pair "
                f"{two.width} x {two.height}: give both a size"
            )
        for name in values:
            if min(one.size) < SMALLEST_SIDE[name]:
                raise UserError(
                    f"{generated.path}: {generated.name(mine)} has {one.width} x {one.height} pixels; {name} needs "
                    f"{SMALLEST_SIDE[name]} a side or more"
                )
            values[name].append(work[name](one, two))
    return PairValues(values, *map(set_sha256, digests))


@torch.inference_mode()
def _lpips(network: Lpips, one: Image.Image, other: Image.Image) -> float:
    device = next(network.parameters()).device
    return float(network(*(to_tensor([image]).to(device) for image in (one, other))))


def mean_and_error(values: list[float] | np.ndarray) -> dict[str, Any]:
    """The mean, and its standard error if there are two or more."""
    error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
    return {"value": float(np.mean(values)), "error": error}
