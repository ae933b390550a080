"""Images as tensors in [-1, 1] and as Pillow's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from diptych.core.checks import require_finite


def to_images(
    images: Tensor, what: str = "what the network gives", remedy: str = "its weights or its inputs are damaged"
) -> list[Image.Image]:
    """(B, 3, H, W) in [-1, 1], clipped and rounded to 8 bits. A `UserError` says `what` is not finite, if any is."""
    require_finite(images, what, remedy)
    values = ((images.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return [Image.fromarray(array) for array in values.permute(0, 2, 3, 1).cpu().numpy()]


def to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """Images of one size as (B, 3, H, W) in [-1, 1]."""
    arrays = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float().div(127.5).sub(1.0)


def psnr(one: Tensor, other: Tensor, span: float = 2.0, least: float = 1e-10) -> Tensor:
    """Peak signal-to-noise ratio (B,) in dB of images (B, 3, H, W) whose values span `span`.

        10 log10(span² / MSE)

    least: lower bound of MSE / span².
    """
    squared = ((one - other) / span).square().flatten(1).mean(1)
    return -10 * squared.clamp(min=least).log10()


def grid(images: Sequence[Image.Image], columns: int, gap: int = 2) -> Image.Image:
    """Images of one size in rows, on white."""
    width, height = images[0].size
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, image in enumerate(images):
        sheet.paste(image, ((index % columns) * (width + gap), (index // columns) * (height + gap)))
    return sheet


def png_info(texts: Mapping[str, str]) -> PngInfo:
    """Texts as the `pnginfo` with which Pillow writes a PNG."""
    info = PngInfo()
    for key, text in texts.items():
        (info.add_itxt if key.startswith("XML:") else info.add_text)(key, text)  # XMP is never tEXt
    return info


def save_png(image: Image.Image, path: Path, **options: Any) -> None:
    """Write, or replace, a PNG in one step. `options` are those of Pillow, `pnginfo` say."""
    from diptych.core.disk import replacing

    with replacing(path) as partial:
        image.save(partial, "PNG", **options)
