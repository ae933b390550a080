"""Masks for training inpainting models: LaMa's strokes and boxes (Suvorov et al. 2022, section 3.3, appendix).

The numbers are those of LaMa's published generator of thin, medium and thick masks; latent diffusion is trained and
compared on them (Rombach et al. 2022, section 4.5). Lengths are in units of an image of `MaskKind.side` and scale with
its shorter side. A pixel is marked where its centre is, so that a mask looks alike at every size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.conditioning.concat_config import MaskConfig
from diptych.core.errors import UserError

ANGLES, BENDS, SHORTEST, THINNEST = 4, 5, 10, 5
"""Of a stroke: how many whole radians may be its angle, how many parts it has at most, length and width at least."""
TRIES = 1000
"""Masks that are drawn at most until one fits."""


@dataclass(frozen=True)
class StrokeMasks:
    """Strokes of a brush, each a chain of straight parts whose widths differ."""

    times: tuple[int, int]
    """How many, at least and at most."""
    width: int
    """Of the brush: `THINNEST` and less than so much."""
    length: int
    """Of a part: `SHORTEST` and less than so much."""


@dataclass(frozen=True)
class BoxMasks:
    """Upright boxes."""

    times: tuple[int, int]
    """How many, at least and at most."""
    sides: tuple[int, int]
    """Of a box, at least and at most."""
    margin: int
    """How far they stay from the image's edge."""


@dataclass(frozen=True)
class MaskKind:
    """A published kind of masks: each is either strokes or boxes."""

    strokes: StrokeMasks
    boxes: BoxMasks | None = None
    box_weight: float = 0.3
    """Of boxes, where there are any; strokes weigh 1."""
    side: int = 256
    """Side of the images that the numbers are for."""


# LaMa counts the ends of its ranges differently: of strokes one more than configured can come, as here.
KINDS = {
    "thin": MaskKind(StrokeMasks((4, 51), 10, 40)),
    "medium": MaskKind(StrokeMasks((4, 6), 50, 100), BoxMasks((1, 5), (10, 50), 0)),
    "thick": MaskKind(StrokeMasks((1, 6), 100, 200), BoxMasks((1, 3), (30, 150), 10)),
    "thick_512": MaskKind(StrokeMasks((1, 6), 250, 450), BoxMasks((1, 4), (30, 300), 10), side=512),
}
"""By name, as random_thin_256 and so on."""


def sample_masks(
    config: MaskConfig,
    size: Sequence[int],
    seeds: Tensor,
    every: int = 1,
    share: tuple[float, float] = (0.0, 1.0),
) -> Tensor:
    """Masks (B, 1, H, W), float32, 1 where masked, else 0, for a size (H, W); each fixed by its seed (B,) alone.

    Of the masks that a seed draws, one after the other, the first that fits is taken.

    every: at least one marked pixel lies at a multiple of `every` in both directions, where a latent mask reads it.
    share: which share of the pixels it marks, at least and at most.

    Raises a `UserError` where none of a seed's first `TRIES` fits.
    """
    masks = [torch.from_numpy(fitting(config, size, seed, every, share)) for seed in seeds.tolist()]
    return torch.stack(masks)[:, None].float()


def fitting(
    config: MaskConfig, size: Sequence[int], seed: int, every: int = 1, share: tuple[float, float] = (0.0, 1.0)
) -> np.ndarray:
    """One of `sample_masks`, bool (H, W)."""
    for attempt in range(TRIES):
        mask = drawn(config, size, seed, attempt)
        if mask[::every, ::every].any() and share[0] <= mask.mean() <= share[1]:
            return mask
    raise UserError(
        f"no mask of {TRIES} marks from {share[0]:.0%} to {share[1]:.0%} of {size[1]} x {size[0]} pixels: "
        "ask for another share, or for masks of other kinds"
    )


def shares(masks: Tensor) -> Tensor:
    """Which share of the pixels each mask (B, 1, H, W) marks (B,)."""
    return masks.flatten(1).mean(1)


def drawn(config: MaskConfig, size: Sequence[int], seed: int, attempt: int = 0) -> np.ndarray:
    """One mask, bool (H, W)."""
    random = np.random.default_rng([seed, attempt])
    weights = np.array(list(config.weights.values()))
    kind = KINDS[list(config.weights)[random.choice(len(weights), p=weights / weights.sum())]]
    mask = np.zeros(size, dtype=bool)
    scale = min(size) / kind.side  # pixels a unit
    if kind.boxes is not None and random.random() * (1 + kind.box_weight) < kind.box_weight:
        draw_boxes(mask, kind.boxes, scale, random)
    else:
        draw_strokes(mask, kind.strokes, scale, random)
    return mask


def draw_strokes(mask: np.ndarray, strokes: StrokeMasks, scale: float, random: np.random.Generator) -> None:
    """Mark strokes in a mask (H, W)."""
    height, width = (side / scale for side in mask.shape)  # in units
    count = random.integers(*strokes.times, endpoint=True)
    starts, parts = random.random((count, 2)).tolist(), random.integers(1, BENDS, count, endpoint=True).tolist()
    angles = 0.01 + random.integers(ANGLES, size=(count, BENDS))
    angles[::2] *= -1
    lengths = SHORTEST + random.integers(strokes.length, size=(count, BENDS))
    brushes = (THINNEST + random.integers(strokes.width, size=(count, BENDS))).tolist()
    across, down = (lengths * np.sin(angles)).tolist(), (lengths * np.cos(angles)).tolist()
    for number, (x, y) in enumerate(starts):
        x, y = x * width, y * height
        for part in range(parts[number]):
            there = min(max(x + across[number][part], 0.0), width), min(max(y + down[number][part], 0.0), height)
            draw_part(mask, (x * scale, y * scale), (there[0] * scale, there[1] * scale), brushes[number][part] * scale)
            x, y = there


def draw_part(mask: np.ndarray, start: tuple[float, float], end: tuple[float, float], width: float) -> None:
    """Mark the pixels whose centres are within width / 2 of the straight line between two points (x, y) in pixels."""
    (x0, y0), (x1, y1), far = start, end, width / 2
    left, top = max(math.floor(min(x0, x1) - far), 0), max(math.floor(min(y0, y1) - far), 0)
    part = mask[top : math.ceil(max(y0, y1) + far), left : math.ceil(max(x0, x1) + far)]
    x = np.arange(part.shape[1]) + (left + 0.5 - x0)  # (w,), from the start
    y = np.arange(part.shape[0])[:, None] + (top + 0.5 - y0)  # (h, 1)
    dx, dy = x1 - x0, y1 - y0
    square = max(dx * dx + dy * dy, 1e-9)
    along = (x * (dx / square) + y * (dy / square)).clip(0, 1)  # (h, w), where on the line is nearest: 0 its start
    part |= (x - along * dx) ** 2 + (y - along * dy) ** 2 <= far * far


def draw_boxes(mask: np.ndarray, boxes: BoxMasks, scale: float, random: np.random.Generator) -> None:
    """Mark boxes in a mask (H, W)."""
    height, width = (side / scale for side in mask.shape)
    least, most = boxes.sides
    for _ in range(random.integers(boxes.times[0], boxes.times[1], endpoint=True)):
        across, down = random.integers(least, most, size=2, endpoint=True)
        left = boxes.margin + random.random() * (width - across - 2 * boxes.margin)
        top = boxes.margin + random.random() * (height - down - 2 * boxes.margin)
        rows, columns = (slice(round(a * scale), round((a + b) * scale)) for a, b in ((top, down), (left, across)))
        mask[rows, columns] = True


def smooth_fill(images: Tensor, masks: Tensor) -> Tensor:
    """Images (1 or B, 3, H, W) whose masked pixels (1 or B, 1, H, W; 1 where masked) have the colours around them.

    What is known is averaged to ever smaller images, and from the smallest on each hole takes what is beneath it
    (pull and push, Gortler et al. 1996). All is grey (0) where nothing is known.
    """
    weights = 1 - masks.to(images)
    colours = images * weights
    levels = [(colours, weights.expand(len(colours), -1, -1, -1))]
    while max(levels[-1][0].shape[-2:]) > 1:
        colours, weights = (F.avg_pool2d(part, 2, ceil_mode=True) for part in levels[-1])
        levels.append((colours, weights))
    filled = torch.zeros_like(levels[-1][0])
    for colours, weights in reversed(levels):
        beneath = F.interpolate(filled, colours.shape[-2:], mode="bilinear")
        filled = torch.where(weights > 0, colours / weights.clamp(min=1e-6), beneath)
    return filled
