"""Aspect buckets: images of about one shape are trained on together, uncut or nearly so, each batch of one bucket.

As NovelAI and SDXL train (Podell et al. 2023, section 2.3): the sides are multiples of a step, and the areas about that
of the square.
"""

from __future__ import annotations

import numpy as np

from diptych.core.hashing import mix, mix_all
from diptych.data.stream_order import WindowedOrder

ORDER, BUCKET = 5, 6
"""A number for each random choice, mixed with the seed of the stream."""
Shape = tuple[int, int]
"""Height and width."""


def bucket_shapes(size: int, step: int, most_aspect: float) -> list[Shape]:
    """The buckets of a square's size: for each multiple of `step` as the shorter side, the longest other side within
    the square's area, no longer than `most_aspect` times the shorter; the square itself; all upright and lying."""
    shapes = {(size, size)}
    for short in range(step, size + 1, step):
        long = size * size // short // step * step
        if short <= long <= most_aspect * short:
            shapes |= {(short, long), (long, short)}
    return sorted(shapes)


def nearest(sides: np.ndarray, shapes: list[Shape]) -> np.ndarray:
    """The number of the bucket of the nearest aspect ratio, by its logarithm, for each of `sides` (N, 2), width and
    height; that of the square where they are not known (0)."""
    ratios = np.log([width / height for height, width in shapes])
    found = np.empty(len(sides), np.uint16)
    for start in range(0, len(sides), 2**16):  # a part at a time: there may be a billion
        part = sides[start : start + 2**16]
        wanted = np.log(np.where(part > 0, part, 1).astype(np.float64))
        found[start : start + 2**16] = np.abs((wanted[:, 0] - wanted[:, 1])[:, None] - ratios).argmin(1)
    return found


class BucketStream:
    """The training stream in buckets: all positions of a step, `batch_size` of them, are of one bucket.

    Each bucket is an endless row of permutations of its examples, each holding every one once, and its batches are cut
    from it one after the other. In epoch e a bucket of n examples has the batches from floor(e n / batch_size) on: what
    does not fill a batch waits for the next epoch. The order of the batches of an epoch is random. Eight bytes an
    example in memory, four where shards are mixed.
    """

    def __init__(
        self, buckets: np.ndarray, batch_size: int, seed: int, bounds: np.ndarray | None = None, window: int = 1
    ) -> None:
        """buckets: the bucket of each example, (N,). bounds: as `WindowedOrder` has them, where all buckets go through
        the shards in one order, `window` at a time; none for permutations of all."""
        self.batch_size, self.seed, self.n_examples = batch_size, seed, len(buckets)
        self.names = np.unique(buckets).tolist()
        self._small = np.uint32 if len(buckets) < 2**32 else np.int64
        self.members = [np.flatnonzero(buckets == name).astype(self._small) for name in self.names]
        self._windowed: list[WindowedOrder] = []
        if bounds is not None:
            parts = [np.searchsorted(members, bounds).astype(np.int64) for members in self.members]
            self._windowed = [WindowedOrder(part, seed, window, every=True) for part in parts]
        self._epoch: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))
        self._permutations: dict[int, tuple[int, np.ndarray]] = {}

    def begun(self, epoch: int) -> list[int]:
        """How many batches each bucket has had before an epoch."""
        return [epoch * len(members) // self.batch_size for members in self.members]

    def batch(self, step: int) -> tuple[int, int]:
        """(place of the bucket, number of the batch in it) of a step."""
        epoch = step * self.batch_size // self.n_examples
        while sum(self.begun(epoch + 1)) <= step:
            epoch += 1
        before = self.begun(epoch)
        order, place = self._order(epoch), step - sum(before)
        bucket = int(order[place])
        return bucket, before[bucket] + int(np.count_nonzero(order[:place] == bucket))

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Indices and seeds, int64 (N,), and the bucket, of positions of one step."""
        steps, places = np.divmod(positions, self.batch_size)
        if (steps != steps[0]).any():
            raise ValueError("a batch in buckets is of one step of the stream")
        bucket, number = self.batch(int(steps[0]))
        members = self.members[bucket]
        rounds, places = np.divmod(number * self.batch_size + places, len(members))
        indices = np.empty_like(positions)
        for which in np.unique(rounds).tolist():
            here = rounds == which
            if self._windowed:
                order = self._windowed[bucket].at(rounds[here], places[here])
            else:
                order = self._permutation(bucket, which)[places[here]]
            indices[here] = members[order]
        return indices, mix_all(self.seed, positions, 1), self.names[bucket]

    def _order(self, epoch: int) -> np.ndarray:
        """The bucket of each batch of an epoch."""
        known, order = self._epoch
        if known != epoch:
            counts = np.subtract(self.begun(epoch + 1), self.begun(epoch))
            order = np.repeat(np.arange(len(self.members)), counts)
            order = np.random.Generator(np.random.PCG64(mix(self.seed, epoch, ORDER))).permutation(order)
            order = order.astype(np.uint16)
            self._epoch = epoch, order  # one assignment: several threads may read
        return order

    def _permutation(self, bucket: int, which: int) -> np.ndarray:
        known, order = self._permutations.get(bucket, (-1, np.empty(0, np.int64)))
        if known != which:
            bits = np.random.PCG64(mix(self.seed, which, BUCKET, self.names[bucket]))
            order = np.random.Generator(bits).permutation(len(self.members[bucket])).astype(self._small)
            self._permutations[bucket] = which, order
        return order
