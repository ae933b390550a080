"""Hashes that are the same on every machine and in every run."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np


def stable_hash(*parts: str) -> int:
    """A 64-bit hash of texts."""
    return int.from_bytes(hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).digest()[:8], "big")


def mix(*numbers: int) -> int:
    """63 well-mixed bits from whole numbers (SplitMix64 over each): a seed for a generator."""
    state = 0x9E3779B97F4A7C15
    for number in numbers:
        state = (state ^ (number & _MASK)) + 0x9E3779B97F4A7C15 & _MASK
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        state = (state ^ state >> 27) * 0x94D049BB133111EB & _MASK
        state ^= state >> 31
    return state >> 1


def mix_all(*numbers: int | np.ndarray) -> np.ndarray:
    """`mix` of whole numbers and int64 arrays (N,), element by element: int64 (N,)."""
    state: Any = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):  # it wraps around
        for number in numbers:
            value = np.uint64(number & _MASK) if isinstance(number, int) else number.astype(np.uint64)
            state = (state ^ value) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ state >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ state >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
            state = state ^ state >> np.uint64(31)
    return np.atleast_1d(state >> np.uint64(1)).astype(np.int64)


_MASK = 2**64 - 1
