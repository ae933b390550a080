"""Random numbers that follow from seeds: one generator for each example or image, whatever batch, rank or device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

NARROW = 2**32
"""PyTorch's generator on the CPU, a Mersenne twister, reads so many seeds by itself and cuts larger ones."""
WORDS = slice(24, 24 + 624 * 8)
"""Where the twister's 624 words, each in 8 bytes, stand in the state of such a generator: behind the seed and three
counters. PyTorch keeps this layout so that states that were saved can be restored."""


def generator(seed: int) -> torch.Generator:
    """A generator on the CPU. Seeds below 2^32 are PyTorch's own; larger ones fill the twister from both of their
    halves (`init_by_array`; Matsumoto & Nishimura 2002), as NumPy's `RandomState` does.
    """
    return seed_generator(torch.Generator(), seed)


def seed_generator(made: torch.Generator, seed: int) -> torch.Generator:
    """Seed a generator on the CPU, and return it."""
    seed = int(seed)
    made.manual_seed(seed)
    if seed >= NARROW:
        state = made.get_state()
        key = np.random.RandomState([seed % NARROW, seed // NARROW]).get_state(legacy=False)["state"]["key"]
        state[WORDS] = torch.from_numpy(key.astype("<u8").view(np.uint8))
        made.set_state(state)
    return made


class NoiseSource:
    """One random generator per image, on the CPU: a seed gives the same noise in any batch and on any device.

    seeds: one per image, from 0 to 2^63 - 1. shape: of one image, no batch axis.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        shape: Sequence[int],
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ):
        self.generators = [generator(seed) for seed in seeds]
        self.shape, self.device, self.dtype = tuple(shape), device, dtype

    def draw(self) -> Tensor:
        """(B, *shape) standard normal."""
        from diptych.core.devices import sent

        draws = [torch.randn(self.shape, generator=generator) for generator in self.generators]
        return sent(torch.stack(draws).to(self.dtype), torch.device(self.device))

    def uniform(self, *shape: int) -> Tensor:
        """(B, *shape) float64 in [0, 1), on the CPU."""
        draws = [torch.rand(shape, generator=generator, dtype=torch.float64) for generator in self.generators]
        return torch.stack(draws)


ANY, DROP, TIME, NOISE, POSTERIOR, LEVEL, AUGMENTATION, CONCAT = range(8)
"""Independent streams of an example's random numbers, one a purpose; ANY where there is but one."""


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
class GeneratorDraws:
    """`Draws` from a generator for each seed, on the CPU: for users' seeds, and runs of earlier versions."""

    seeds: Tensor
    whole: bool = False
    """A user's seeds, as `generators` says."""

    @property
    def host(self) -> GeneratorDraws:
        return GeneratorDraws(self.seeds.cpu(), self.whole)

    def normal(self, like: Tensor, stream: int) -> Tensor:
        return normal(self.seeds, like.shape[1:], like.device, stream, self.whole)

    def uniform(self, stream: int) -> Tensor:
        return uniform(self.seeds, stream=stream)
