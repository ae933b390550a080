"""Seeding of PyTorch's default generators, from which first weights are drawn."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch

from diptych.core.random import seed_generator


def seed_default(seed: int) -> None:
    """Seed PyTorch's default generators, of all devices."""
    torch.manual_seed(seed)
    seed_generator(torch.default_generator, seed)


@contextlib.contextmanager
def drawn_apart(seed: int, what: str) -> Iterator[None]:
    """Within, PyTorch's default generator on the CPU follows from `seed` and `what` alone; afterwards it goes on as if
    nothing had been drawn. So the first weights of a network depend on nothing that was built before it.
    """
    digest = hashlib.blake2b(f"{seed}/{what}".encode(), digest_size=8).digest()
    with torch.random.fork_rng(devices=[]):
        seed_generator(torch.default_generator, int.from_bytes(digest) >> 1)
        yield
