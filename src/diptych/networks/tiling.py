"""Pictures that are larger than memory, encoded and decoded in overlapping tiles.

Tiles cannot be exact: group norms and the attention in the middle look at the whole picture, and in a tile at the tile
alone. Where two tiles overlap, one fades into the other, so that what differs between them is spread and shows no seam.
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
"""Positions of a latent along the side of the smallest tile: below, norms have too little to look at."""


@dataclass(frozen=True, kw_only=True)
class Tiling(Config):
    """Square tiles over the positions of a latent."""

    side: int = 64
    """Positions along the side of a tile."""
    overlap: int = 16
    """Positions that neighbours share at least, and over which one fades into the other."""
    last: Literal["full", "cut"] = "full"
    """How tiles end: the last one in a row is moved back to lie within the picture whole (`full`), or all are equally
    far apart and the last ones are what the edge leaves of them, as in diffusers (`cut`)."""

    def check(self) -> None:
        self.require(self.side >= 1, "side", "be at least 1")
        self.require(0 <= self.overlap < self.side, "overlap", f"be at least 0 and less than side ({self.side})")

    @classmethod
    def of_pixels(cls, tile: int, factor: int) -> Tiling:
        """Tiles of `tile` pixels, a quarter of which overlaps, for an autoencoder that makes pictures `factor` times
        smaller. Raises a `UserError` where `tile` is none of its multiples, or below 8 of them.
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
    """Pictures (B, 3, h * f, w * f) of latents (B, C, h, w), whole (no tiling, or one tile has room for all) or in
    tiles, one picture and one tile at a time.
    """
    if tiling is None or tiling.covers(*latents.shape[-2:]):
        return decoder.decode(latents)
    f = decoder.config.factor
    return torch.cat([in_tiles(decoder.decode, one, tiling, read=1, written=f) for one in latents.split(1)])


def moments(autoencoder: Autoencoder, pictures: Tensor, tiling: Tiling | None = None) -> Tensor:
    """`Autoencoder.moments` (B, moment_channels, H / f, W / f) of pictures (B, 3, H, W), whole or in tiles likewise.

    Where tiles overlap, their means and log-variances are blended alike.
    """
    f = autoencoder.config.factor
    if tiling is None or tiling.covers(*(side // f for side in pictures.shape[-2:])):
        return autoencoder.moments(pictures)
    return torch.cat([in_tiles(autoencoder.moments, one, tiling, read=f, written=1) for one in pictures.split(1)])


def in_tiles(run: Callable[[Tensor], Tensor], x: Tensor, tiling: Tiling, read: int, written: int) -> Tensor:
    """`run` over tiles of x (B, C, H, W), put together: (B, C', H / read * written, W / read * written).

    read: values of x along a side for each position of the tiling. written: the same of what `run` gives.
    """
    side, (height, width) = tiling.side * read, x.shape[-2:]
    tops, lefts = tiling.starts(height // read), tiling.starts(width // read)
    whole, above = x.new_empty(0), []
    for i, top in enumerate(tops):
        row: list[Tensor] = []
        for j, left in enumerate(lefts):
            tile = run(x[..., top * read : top * read + side, left * read : left * read + side])
            if i:  # first downwards, then to the right, each into what its neighbour became
                tile = blend(above[j], tile, (top - tops[i - 1]) * written, dim=-2)
            if j:
                tile = blend(row[-1], tile, (left - lefts[j - 1]) * written, dim=-1)
            row.append(tile)
            if not i and not j:
                sides = (height // read * written, width // read * written)
                whole = tile.new_empty(*tile.shape[:2], *sides)
            y, x0 = top * written, left * written  # what the next ones cover too, they write over
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
