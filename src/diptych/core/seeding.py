"""Random generators by their seed: every seed from 0 to 2^63 - 1 has numbers of its own."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import numpy as np
import torch

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


def seed_default(seed: int) -> None:
    """Seed PyTorch's default generators, of all devices."""
    torch.manual_seed(seed)
    seed_generator(torch.default_generator, seed)


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


@contextlib.contextmanager
def drawn_apart(seed: int, what: str) -> Iterator[None]:
    """Within, PyTorch's default generator on the CPU follows from `seed` and `what` alone; afterwards it goes on as if
    nothing had been drawn. So the first weights of a network depend on nothing that was built before it.
    """
    digest = hashlib.blake2b(f"{seed}/{what}".encode(), digest_size=8).digest()
    with torch.random.fork_rng(devices=[]):
        seed_generator(torch.default_generator, int.from_bytes(digest) >> 1)
        yield
