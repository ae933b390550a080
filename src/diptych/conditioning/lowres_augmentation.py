"""Conditioning augmentation of super-resolution stages (Ho et al. 2021, "Cascaded Diffusion Models", Sec. 4).

A stage is trained on downsampled images, but gets the samples of the stage before it. So in training its low-resolution
input is noised or blurred by a random level, which conditions the network; at sampling the level is an option (Imagen,
Saharia et al. 2022, Sec. 2.4 and its appendix).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.core.config import Config, Within
from diptych.core.errors import UserError
from diptych.diffusion.schedules import CosineSchedule, TableSchedule, cosine_betas

REACH = 4.0  # a blur's kernel ends at so many standard deviations


@dataclass(frozen=True, kw_only=True)
class AugmentationConfig(Config):
    """Upsampling and augmentation of the low-resolution image. A level lies in [0, 1]: 0 leaves the image as it is."""

    kind: Literal["noise", "blur", "none"] = "noise"
    """noise: Gaussian, by the cosine schedule, level 1 leaves noise alone; blur: Gaussian, reflected; none."""
    where: Literal["low", "high"] = "high"
    """Augment before (low) or after (high) upsampling (DeepFloyd IF: after)."""
    upsample: Literal["bilinear", "bicubic", "nearest"] = "bilinear"
    """How the image is enlarged."""
    align_corners: bool = False
    """bilinear and bicubic only: put corner pixels on corner pixels (DeepFloyd IF), else edges on edges."""
    lowest: float = 0.0
    """Lowest level in training; levels are uniform up to `highest`."""
    highest: float = 1.0
    """Highest level in training."""
    level: float = 0.1
    """Level at sampling where none is chosen."""
    table: Annotated[int | None, Within(1, 10**6)] = None
    """noise only: entries of the table of the cosine schedule whose levels these are (DeepFloyd IF: 1000, level 0.25 is
    entry 250; at level 0 too there is the little noise of the first), or none."""
    blur: float = 4.0
    """blur only: standard deviation at level 1, in pixels of the low-resolution image; in proportion below."""

    def check(self) -> None:
        self.require(0 <= self.lowest <= 1, "lowest", "lie between 0 and 1")
        self.require(self.lowest <= self.highest <= 1, "highest", "lie between lowest and 1")
        self.require(0 <= self.level <= 1, "level", "lie between 0 and 1")
        self.require(self.table is None or self.table >= 2, "table", "be at least 2, or none")
        self.require(self.table is None or self.kind == "noise", "table", "be none unless kind is noise")
        self.require(0 < self.blur < math.inf, "blur", "be positive")
        self.require(not self.align_corners or self.upsample != "nearest", "align_corners", "be false for nearest")


def downsample(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The truth at low resolution: images (B, C, H, W) averaged over boxes to (B, C, *size).

    Raises `UserError` unless H and W are whole multiples of `size`.
    """
    height, width = images.shape[-2:]
    if min(size) < 1 or height % size[0] or width % size[1]:
        raise UserError(
            f"images of {width} x {height} pixels cannot be reduced to {size[1]} x {size[0]}: "
            "their sides must be whole multiples of it"
        )
    return F.interpolate(images, size, mode="area")  # (B, C, *size)


def upsample(low: Tensor, size: tuple[int, int], config: AugmentationConfig) -> Tensor:
    """Images (B, C, h, w) at (B, C, *size). Bicubic may overshoot the range of what it is given."""
    if config.upsample == "nearest":
        return F.interpolate(low, size, mode="nearest-exact")
    return F.interpolate(low, size, mode=config.upsample, align_corners=config.align_corners)


def augment(
    low: Tensor,
    size: tuple[int, int],
    level: Tensor | float,
    noise: Callable[[Tensor], Tensor] | None,
    config: AugmentationConfig,
) -> Tensor:
    """Low-resolution images (B, C, h, w) in [-1, 1], upsampled and augmented, (B, C, *size).

    level: (B,), or one for all. At 0 an image is enlarged and nothing else, unless levels are those of a table.
    noise: `noise(like)` draws normal numbers of the shape of `like`; asked once, and for `kind` noise only.

    Raises `UserError` for a level outside [0, 1]; levels on a GPU, drawn or checked before, are not read back.
    """
    levels = torch.as_tensor(level).double().expand(len(low))  # (B,)
    if levels.device.type == "cpu" and not ((levels >= 0) & (levels <= 1)).all():
        wrong = next(value for value in levels.tolist() if not 0 <= value <= 1)
        raise UserError(f"the augmentation level must lie between 0 and 1, not {wrong:g}")
    x = upsample(low, size, config) if config.where == "high" else low
    if config.kind == "noise":
        assert noise is not None, "noise augmentation needs a source of noise"
        changed = _noised(x, levels, noise(x), config.table)
    elif config.kind == "blur":
        pixels = (x.shape[-2] / low.shape[-2], x.shape[-1] / low.shape[-1])  # of x in one of the low-resolution image
        changed = _blurred(x, levels, (config.blur * pixels[0], config.blur * pixels[1]))
    else:
        changed = x
    untouched = (levels == 0).view(-1, 1, 1, 1).to(x.device)
    x = changed if config.table else torch.where(untouched, x, changed)  # exactly, whatever the rounding above
    return x if config.where == "high" else upsample(x, size, config)


def training_levels(uniform: Tensor, config: AugmentationConfig) -> Tensor:
    """Numbers (B,) in [0, 1) to levels (B,) float64, uniform from `lowest` to `highest`; all 0 for `kind` none."""
    if config.kind == "none":
        return torch.zeros_like(uniform, dtype=torch.float64)
    levels = config.lowest + (config.highest - config.lowest) * uniform.double()
    return levels if config.table is None else (levels * config.table).floor() / config.table


def level_condition(level: Tensor, config: AugmentationConfig, like: Tensor) -> Tensor:
    """The network's condition for levels (B,): themselves in the type of `like`, or those of the table in float64.

    Networks multiply them by 1000, and what comes of that is to be the whole number of an entry.
    """
    return level.to(like) if config.table is None else entries(level, config.table).to(like.device) / config.table


def entries(level: Tensor, table: int) -> Tensor:
    """The whole numbers 0 .. table - 1, as float64, that levels in [0, 1] mean."""
    return (level.double() * table).round().clamp(max=table - 1)


@functools.cache
def cosine_table(table: int) -> TableSchedule:
    """The schedule of so many entries, kept for the copies of its table on devices."""
    return TableSchedule(cosine_betas(table))


def _noised(x: Tensor, levels: Tensor, noise: Tensor, table: int | None = None) -> Tensor:
    """alpha(level) x + sigma(level) noise: the level is a time of the cosine schedule (Imagen, appendix)."""
    schedule = CosineSchedule()
    if table is not None:
        schedule, levels = cosine_table(table), (entries(levels, table) + 1) / table
    alpha, sigma = (part.view(-1, 1, 1, 1).to(x) for part in schedule.alpha_sigma(levels))
    return alpha * x + sigma * noise  # (B, C, H, W)


def _blurred(x: Tensor, levels: Tensor, most: tuple[float, float]) -> Tensor:
    """Each image under a Gaussian of its own, `levels` times `most` (down, across) pixels wide, edges mirrored."""
    for axis, deviation in ((-2, most[0]), (-1, most[1])):
        # The reach is that of the widest possible blur, so that no image depends on its neighbours in the batch.
        reach = math.ceil(REACH * deviation)
        offsets = torch.arange(-reach, reach + 1, device=levels.device)  # (K,)
        widths = (levels * deviation).clamp(min=1e-6)[:, None]  # (B, 1)
        kernels = torch.softmax(-0.5 * (offsets / widths) ** 2, dim=1).to(x)  # (B, K), sums to 1
        x = _convolved(x.transpose(axis, -1), kernels).transpose(axis, -1)
    return x


def _convolved(x: Tensor, kernels: Tensor) -> Tensor:
    """Along the last axis, each image (C, H, W) with its own kernel (K,); mirrored, edge pixels not doubled."""
    batch, channels, height, width = x.shape
    x = x[..., mirrored(width, kernels.shape[1] // 2, x.device)]  # (B, C, H, W + 2 reach)
    weight = kernels.repeat_interleave(channels, 0)[:, None, None]  # (B * C, 1, 1, K)
    return F.conv2d(x.flatten(0, 1)[None], weight, groups=batch * channels).view(batch, channels, height, width)


def mirrored(length: int, reach: int, device: torch.device | str = "cpu") -> Tensor:
    """Which of `length` pixels stand at -reach .. length + reach - 1: (length + 2 reach,), mirrored."""
    period = max(2 * (length - 1), 1)
    places = torch.arange(-reach, length + reach, device=device) % period
    return torch.minimum(places, (period - places) % period)
