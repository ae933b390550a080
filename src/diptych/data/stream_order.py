"""Orders of the examples of an epoch, each a function of (seed, epoch, place): every example once, whoever asks.

`KeyedOrder` and `WindowedOrder` compute places by arithmetic, so that nothing of an epoch is kept in memory.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np

from diptych.core.hashing import mix, mix_all

ROUNDS = 8


class EpochOrder(Protocol):
    """A permutation of the examples for each epoch."""

    def at(self, epochs: np.ndarray, places: np.ndarray) -> np.ndarray:
        """The example at each place of an epoch; all int64 (N,)."""
        ...


class GeneratedOrder:
    """A permutation drawn by PCG64 in each epoch: four bytes an example in memory. Runs of earlier versions have it."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._order = (-1, np.empty(0, dtype=np.uint32))

    def at(self, epochs: np.ndarray, places: np.ndarray) -> np.ndarray:
        found = np.empty(len(places), dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            found[here] = self._permutation(epoch)[places[here]]
        return found

    def _permutation(self, epoch: int) -> np.ndarray:
        current, order = self._order
        if current != epoch:
            order = np.random.Generator(np.random.PCG64(mix(self.seed, epoch))).permutation(self.count)
            order = order.astype(np.uint32) if self.count < 2**32 else order
            self._order = (epoch, order)  # one assignment: several threads may read
        return order


class KeyedOrder:
    """A permutation computed place by place, from a hash of seed and epoch."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed

    def at(self, epochs: np.ndarray, places: np.ndarray) -> np.ndarray:
        return permuted(places, np.full(len(places), self.count), mix_all(self.seed, epochs, 4))


class WindowedOrder:
    """The shards in a new order each epoch, and the examples of so many neighbours in it mixed: a shard is read within
    one stretch of the epoch. Eight bytes a shard in memory."""

    def __init__(self, bounds: np.ndarray, seed: int, window: int, every: bool = False) -> None:
        """bounds: int64 (shards + 1,), the first example of each shard, and the number of all. every: shards without
        examples have their turn, so that the order is the same as that of other examples of these shards."""
        filled = np.arange(len(bounds) - 1) if every else np.flatnonzero(np.diff(bounds))
        self.starts, self.sizes = bounds[filled], np.diff(bounds)[filled]
        self.seed, self.window = seed, window
        self._epoch = (-1, self.starts, self.starts)

    def at(self, epochs: np.ndarray, places: np.ndarray) -> np.ndarray:
        found = np.empty(len(places), dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            order, ends = self._shards(epoch)
            edges = np.concatenate([[0], ends[self.window - 1 : -1 : self.window], ends[-1:]])  # of windows
            window = np.searchsorted(edges, places[here], side="right") - 1
            first = edges[window]
            keys = mix_all(self.seed, np.full(len(window), epoch), window, 5)
            place = first + permuted(places[here] - first, edges[window + 1] - first, keys)
            shard = np.searchsorted(ends, place, side="right")
            found[here] = self.starts[order[shard]] + place - (ends[shard] - self.sizes[order[shard]])
        return found

    def _shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The order of the shards, and the place after the last example of each."""
        current, order, ends = self._epoch
        if current != epoch:
            count = len(self.starts)
            order = permuted(np.arange(count), np.full(count, count), mix_all(self.seed, np.full(count, epoch), 6))
            ends = np.cumsum(self.sizes[order])
            self._epoch = (epoch, order, ends)  # one assignment: several threads may read
        return order, ends


def permuted(places: np.ndarray, counts: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Where a permutation of 0 .. count - 1 that a key fixes sends each place: all int64 (N,).

    A Feistel network over pairs (left, right) with left below a and right below b, where a b is just above the count;
    a result beyond the count is sent on until it is below (Black and Rogaway, Ciphers with Arbitrary Finite Domains,
    2002: generalized Feistel, cycle walking).
    """
    found = np.array(places, dtype=np.int64)
    lefts = np.maximum(1, np.ceil(np.sqrt(counts))).astype(np.int64)
    rights = -(-counts // lefts)
    ahead = np.arange(len(found))
    while len(ahead):
        a, b, key = lefts[ahead], rights[ahead], keys[ahead]
        left, right = np.divmod(found[ahead], b)
        for round_number in range(ROUNDS):
            if round_number % 2:
                right = (right + mix_all(key, round_number, left) % b) % b
            else:
                left = (left + mix_all(key, round_number, right) % a) % a
        found[ahead] = left * b + right
        ahead = ahead[found[ahead] >= counts[ahead]]
    return found
