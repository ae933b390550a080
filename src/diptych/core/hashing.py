"""Hashes that are the same on every machine and in every run."""

from __future__ import annotations

import hashlib


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


_MASK = 2**64 - 1
