"""Encoding and decoding of images that are larger than memory, in overlapping tiles.

Tiles are not exact: group norms and the attention in the middle are over the whole image, and in a tile over the tile
alone. Tiles are blended where they overlap, so that their difference makes no visible seam.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diptych.core.config import Config
from diptych.core.errors import UserError
from diptych.networks.autoencoder import Autoencoder
from diptych.networks.tiny_decoder import TinyDecoder

LEAST = 8
"""Positions of a latent along the side of the smallest tile: below, group norms have too few values."""


@dataclass(frozen=True, kw_only=True)
class Tiling(Config):
    """Square tiles over the positions of a latent."""

    side: int = 64
    """Positions along the side of a tile."""
    overlap: int = 16
    """Positions that neighbours share at least, and over which they are blended."""
    last: Literal["full", "cut"] = "full"
    """How tiles end: the last one in a row is moved back until all of it lies within the image (`full`), or all
    are equally far apart and the last ones are cut off at the edge, as in diffusers (`cut`)."""

    def check(self) -> None:
        self.require(self.side >= 1, "side", "be at least 1")
        self.require(0 <= self.overlap < self.side, "overlap", f"be at least 0 and less than side ({self.side})")

    @classmethod
    def of_pixels(cls, tile: int, factor: int) -> Tiling:
        """Tiles of `tile` pixels, a quarter of which overlaps, for an autoencoder that downsamples by
        `factor`. Raises a `UserError` where `tile` is no multiple of it, or less than 8.
        """
        if isinstance(tile, bool) or not isinstance(tile, int) or tile % factor or tile < LEAST * factor:
            raise UserError(f"tile must be a multiple of {factor} pixels and at least {LEAST * factor}, not {tile!r}")
        return cls(side=tile // factor, overlap=tile // factor // 4)

    def starts(self, length: int) -> list[int]:
        """Where tiles begin along a side of `length` positions."""
        step = self.side - self.overlap
        if self.last == "cut":
            return list(range(0, length, step))
        end = max(length - self.side, 0)  # of the last one
        return [*range(0, end, step), end]

    def covers(self, height: int, width: int) -> bool:
        """Whether a latent of this size is no larger than one tile."""
        return max(height, width) <= self.side


def decode(decoder: Autoencoder | TinyDecoder, latents: Tensor, tiling: Tiling | None = None) -> Tensor:
    """Images (B, 3, h * f, w * f) of latents (B, C, h, w), whole (no tiling, or one tile has room for all) or in
    tiles, one image and one tile at a time.
    """
    if tiling is None or tiling.covers(*latents.shape[-2:]):
        return decoder.decode(latents)
    f = decoder.config.factor
    return torch.cat([in_tiles(decoder.decode, one, tiling, input_scale=1, output_scale=f) for one in latents.split(1)])


def moments(autoencoder: Autoencoder, images: Tensor, tiling: Tiling | None = None) -> Tensor:
    """`Autoencoder.moments` (B, moment_channels, H / f, W / f) of images (B, 3, H, W), whole or in tiles likewise.

    Where tiles overlap, their means and log-variances are blended alike.
    """
    f = autoencoder.config.factor
    if tiling is None or tiling.covers(*(side // f for side in images.shape[-2:])):
        return autoencoder.moments(images)
    return torch.cat(
        [in_tiles(autoencoder.moments, one, tiling, input_scale=f, output_scale=1) for one in images.split(1)]
    )


def in_tiles(run: Callable[[Tensor], Tensor], x: Tensor, tiling: Tiling, input_scale: int, output_scale: int) -> Tensor:
    """`run` over tiles of x (B, C, H, W), put together: (B, C', H / input_scale * output_scale, and so for W).

    input_scale: values of x along a side for each position of the tiling. output_scale: of its output.
    """
    side, (height, width) = tiling.side * input_scale, x.shape[-2:]
    tops, lefts = tiling.starts(height // input_scale), tiling.starts(width // input_scale)
    whole, above = x.new_empty(0), []
    for i, top in enumerate(tops):
        row: list[Tensor] = []
        for j, left in enumerate(lefts):
            tile = run(
                x[..., top * input_scale : top * input_scale + side, left * input_scale : left * input_scale + side]
            )
            if i:  # first downwards, then to the right, each with the blended neighbour
                tile = blend(above[j], tile, (top - tops[i - 1]) * output_scale, dim=-2)
            if j:
                tile = blend(row[-1], tile, (left - lefts[j - 1]) * output_scale, dim=-1)
            row.append(tile)
            if not i and not j:
                sides = (height // input_scale * output_scale, width // input_scale * output_scale)
                whole = tile.new_empty(*tile.shape[:2], *sides)
            y, x0 = top * output_scale, left * output_scale  # the next tiles overwrite their overlap
            whole[..., y : y + tile.shape[-2], x0 : x0 + tile.shape[-1]] = tile
        above = row
    return whole


def blend(before: Tensor, tile: Tensor, apart: int, dim: int) -> Tensor:
    """A tile that begins `apart` values after `before` along `dim`: where both are, the share of `tile` grows linearly
    from 0.
    """
    shared = min(before.shape[dim] - apart, tile.shape[dim])
    if shared <= 0:
        return tile
    share = torch.arange(shared, device=tile.device, dtype=tile.dtype) / shared
    share = share if dim == -1 else share[:, None]
    mixed = torch.lerp(before.narrow(dim, apart, shared), tile.narrow(dim, 0, shared), share)
    return torch.cat([mixed, tile.narrow(dim, shared, tile.shape[dim] - shared)], dim)
