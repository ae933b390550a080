"""Random numbers that belong to an example: drawn from its own seed, whatever batch, rank or device it is on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from diptych.core.seeding import NARROW, generator

DROP, TIME, NOISE, POSTERIOR, LEVEL, AUGMENTATION, KEPT = 1, 2, 3, 4, 5, 6, 7
"""Independent streams of an example's random numbers, one a purpose."""


def generators(seeds: Tensor, stream: int = 0, whole: bool = False) -> list[torch.Generator]:
    """One CPU generator for each seed of a batch; another `stream` gives numbers independent of the first.

    whole: seeds are a user's, and all of their bits count. Those of examples are hashes, of which 32 bits are read.
    """
    mixed = ((seed, (seed * 1_000_003 + stream) % 2**63) for seed in seeds.tolist())
    return [generator(number if whole and seed >= NARROW else number % NARROW) for seed, number in mixed]


def normal(
    seeds: Tensor, shape: Sequence[int], device: torch.device | str = "cpu", stream: int = 0, whole: bool = False
) -> Tensor:
    """Standard normal numbers (B, *shape), one draw for each seed."""
    draws = [torch.randn(tuple(shape), generator=each) for each in generators(seeds, stream, whole)]
    return torch.stack(draws).to(device)


def uniform(seeds: Tensor, device: torch.device | str = "cpu", stream: int = 0) -> Tensor:
    """One number in [0, 1) for each seed: (B,)."""
    return torch.cat([torch.rand(1, generator=each) for each in generators(seeds, stream)]).to(device)


@dataclass(frozen=True)
class Draws:
    """The random numbers of a batch whose examples have these seeds, by stream: asked twice, they are the same."""

    seeds: Tensor
    """int64 (B,)."""
    whole: bool = False
    """A user's seeds, as `generators` says."""

    def normal(self, like: Tensor, stream: int) -> Tensor:
        """Standard normal numbers, float32, of the shape (B, ...) and on the device of `like`."""
        return normal(self.seeds, like.shape[1:], like.device, stream, self.whole)

    def uniform(self, stream: int) -> Tensor:
        """Numbers in [0, 1), float32 (B,) on the CPU."""
        return uniform(self.seeds, stream=stream)
