"""What is seen of an image while it is made: estimates of x_0, made small, within a share of the time."""

from __future__ import annotations

import base64
import io
import time
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from diptych.core.images import to_images
from diptych.models.latent_diffusion import LatentDiffusion

SIDE = 192
"""Most pixels of a preview's side."""
SHARE = 0.2
"""Of the time, at most, that previews take once the first is shown."""
LATENT_SIDE = 32
"""Larger latents are averaged to this side before they are decoded for a preview."""


class Previewer:
    """Turns estimates into small images; says by the clock when it is time for one."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.began = time.monotonic()
        """When the first of these estimates was shown."""
        self.spent = 0.0
        self.side = 0
        """Of the estimates that were shown last."""

    def due(self, x0: Tensor) -> bool:
        """Whether one more keeps within the share. The first is always due, of each stage of a cascade, and does not
        count: an engine may compile the decoder for it."""
        return x0.shape[-1] != self.side or self.spent <= SHARE * (time.monotonic() - self.began)

    @torch.no_grad()
    def images(self, x0: Tensor) -> list[Image.Image]:
        """Estimates (B, C, h, w), latents or pixels, as images of at most `SIDE` pixels a side."""
        began, first, self.side = time.monotonic(), x0.shape[-1] != self.side, x0.shape[-1]
        try:
            x0 = torch.nan_to_num(x0.float())
            if isinstance(self.model, LatentDiffusion):
                factor = max(1, max(x0.shape[-2:]) // LATENT_SIDE)
                if factor > 1:
                    x0 = torch.nn.functional.avg_pool2d(x0, factor)
                x0 = self.model.decode(x0.to(self.model.device), decoder=self.model.tiny)
            images = to_images(x0)
            for image in images:
                image.thumbnail((SIDE, SIDE))
            return images
        finally:
            now = time.monotonic()
            if first:
                self.began, self.spent = now, 0.0
            else:
                self.spent += now - began


def data_url(image: Image.Image) -> str:
    """A small image as a `data:` URL."""
    file = io.BytesIO()
    image.save(file, "WEBP", quality=80, method=0)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
