"""The codebook of a vector-quantised first stage (van den Oord et al. 2017; Esser et al. 2021, section 3.1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

AT_ONCE = 4096
"""Positions whose distances to all entries are in memory at a time."""


class VectorQuantizer(nn.Module):
    """forward(latents (B, C, h, w)) -> the nearest of the codebook's entries at each position, (B, C, h, w)."""

    def __init__(self, entries: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(entries, channels)
        nn.init.uniform_(self.embedding.weight, -1 / entries, 1 / entries)

    def indices(self, latents: Tensor) -> Tensor:
        """The numbers of the nearest entries by squared distance, int64: (B, C, h, w) -> (B, h, w)."""
        points = latents.movedim(1, -1)  # (B, h, w, C)
        entries = self.embedding.weight.float()  # (N, C)
        lengths = entries.square().sum(1)
        # |point - entry|^2 without the |point|^2 that all entries share
        near = [(lengths - 2 * part @ entries.T).argmin(1) for part in points.flatten(0, 2).float().split(AT_ONCE)]
        return torch.cat(near).view(points.shape[:-1])

    def entries(self, indices: Tensor) -> Tensor:
        """The entries of these numbers: (B, h, w) -> (B, C, h, w)."""
        return self.embedding(indices).movedim(-1, 1)

    def forward(self, latents: Tensor) -> Tensor:
        return self.entries(self.indices(latents))
