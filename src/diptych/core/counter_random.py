"""Random numbers of examples by hashing (seed, stream, place), in tensor operations on whatever device the seeds are.

A number is a function of these three and of nothing that was drawn before, as counter-based generators have it (Salmon
et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), so that batches, processes and devices do not matter. The
whole numbers are the same everywhere; logarithm and cosine differ in their last bits between devices. There is no
branch on values and nothing is read back, so that a GPU is never waited for and everything can be compiled or captured.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from diptych.core.random import GeneratorDraws

STREAMS = 8
"""How many there are in `core.random`: the keys of all are made at once."""
BLOCK = 2**17
"""Numbers made at a time on a CPU, so that they stay in its cache; a GPU makes all at once."""


def signed(number: int, bits: int) -> int:
    """The signed number of so many bits that has the bits of an unsigned one, as PyTorch's whole numbers want it."""
    return number - (number >> (bits - 1) << bits)


GOLDEN_64 = signed(0x9E3779B97F4A7C15, 64)
GOLDEN_32 = signed(0x9E3779B9, 32)
"""2^64 and 2^32 over the golden ratio: multiples of them differ in many bits."""
WORD_MULTIPLIERS = tuple(signed(number, 32) for number in (0xED5AD4BB, 0xAC4C1B51, 0x31848BAB))
"""Of a hash of 32 bits with three rounds, between whose bits no bias is left (Wellons 2018, "triple32")."""


def mix_64(x: Tensor) -> Tensor:
    """A bijection of int64, each bit of which depends on all (the output of SplitMix64: Steele et al. 2014)."""
    x = (x ^ (x >> 30 & 2**34 - 1)) * signed(0xBF58476D1CE4E5B9, 64)  # >> keeps the sign: its copies are cut off
    x = (x ^ (x >> 27 & 2**37 - 1)) * signed(0x94D049BB133111EB, 64)
    return x ^ (x >> 31 & 2**33 - 1)


def stream_keys(seeds: Tensor) -> Tensor:
    """Keys of 64 bits for seeds int64 (B,), one a stream: int64 (STREAMS, B)."""
    streams = torch.arange(1, STREAMS + 1, device=seeds.device)[:, None] * GOLDEN_64
    return mix_64(mix_64(seeds + GOLDEN_64) + streams)


def hash_words(x: Tensor, key: Tensor, spare: Tensor) -> None:
    """Replace each int32 of x by a hash of it and of the key, which is broadcast; spare is overwritten."""
    for shift, multiplier in zip((17, 11, 15), WORD_MULTIPLIERS, strict=True):
        _xor_shifted(x, shift, spare)
        x.mul_(multiplier)
        if shift == 17:
            x.add_(key)
    _xor_shifted(x, 14, spare)


def _xor_shifted(x: Tensor, shift: int, spare: Tensor) -> None:
    torch.bitwise_right_shift(x, shift, out=spare)
    x.bitwise_xor_(spare.bitwise_and_(2 ** (32 - shift) - 1))


def normal_from_keys(keys: Tensor, count: int) -> Tensor:
    """Standard normal numbers float32 (B, count) of keys int64 (B,), in pairs (Box & Muller 1958): the hash of place i
    is a radius and that of place i + count / 2 an angle, whose cosine and sine are numbers of these places.

    The largest possible is 6.7, which as many numbers as 10^11 would exceed once.
    """
    half, device = (count + 1) // 2, keys.device
    low, high = ((part.to(torch.int32))[:, None] for part in (keys << 32 >> 32, keys >> 32))  # (B, 1)
    places = (torch.arange(2 * half, dtype=torch.int32, device=device) * GOLDEN_32).view(2, 1, half)
    made = torch.empty(len(keys), 2, half, device=device)
    block = BLOCK if device.type == "cpu" else made.numel()
    rows = max(1, min(len(keys), block // max(2 * half, 1)))
    columns = max(1, min(half, block // 2))
    for top in range(0, len(keys), rows):
        for left in range(0, half, columns):
            part = made[top : top + rows, :, left : left + columns]  # (b, 2, n)
            words = places[..., left : left + columns] + low[top : top + rows]  # (2, b, n)
            spare = torch.empty_like(words)
            hash_words(words, high[top : top + rows], spare)
            words[0].bitwise_and_(2**31 - 1)
            radius, angle = spare.view(torch.float32).copy_(words)
            radius.clamp_(min=0.5).mul_(2.0**-31).log_().mul_(-2).sqrt_()
            part.copy_(angle.mul_(math.pi * 2.0**-31)[:, None])  # from -pi to pi
            part[:, 0].cos_()
            part[:, 1].sin_()
            part.mul_(radius[:, None])
    return made.flatten(1)[:, :count]


class Draws(Protocol):
    """The random numbers of a batch whose examples have these seeds, by stream: asked twice, they are the same."""

    @property
    def seeds(self) -> Tensor:
        """int64 (B,)."""
        ...

    @property
    def host(self) -> Draws:
        """The same numbers with the seeds on the CPU, for what is decided there."""
        ...

    def normal(self, like: Tensor, stream: int) -> Tensor:
        """Standard normal numbers, float32, of the shape (B, ...) and on the device of `like`."""
        ...

    def uniform(self, stream: int) -> Tensor:
        """Numbers in [0, 1), float32 (B,), on the device on which they are drawn."""
        ...


class CounterDraws:
    """As `Draws` says, on the device of the seeds and by hashing."""

    def __init__(self, seeds: Tensor, on_host: Tensor | None = None) -> None:
        """seeds: int64 (B,). on_host: the same on the CPU, where they are there too."""
        self.seeds, self._on_host, self._keys = seeds, on_host, stream_keys(seeds)

    @property
    def host(self) -> Draws:
        if self.seeds.device.type == "cpu":
            return self
        return CounterDraws(self.seeds.cpu() if self._on_host is None else self._on_host)

    def normal(self, like: Tensor, stream: int) -> Tensor:
        count = math.prod(like.shape[1:])
        return normal_from_keys(self._keys[stream].to(like.device), count).view(-1, *like.shape[1:])

    def uniform(self, stream: int) -> Tensor:
        return (self._keys[stream] >> 40 & 2**24 - 1).float() * 2.0**-24  # as many bits as a float32 has


def draws_of(batch: dict[str, Any]) -> Draws:
    """The random numbers of a training batch, as its "random" says: "counter", or "generator", and so without.

    "seed" are its seeds, int64 (B,), on the device of the run, and "seed_on_host", where it is there, a NumPy array of
    them, so that what is decided on the host need not read them back.
    """
    on_host = torch.from_numpy(batch["seed_on_host"]) if "seed_on_host" in batch else None
    if batch.get("random", "generator") == "counter":
        return CounterDraws(batch["seed"], on_host)
    return GeneratorDraws(batch["seed"] if on_host is None else on_host)
