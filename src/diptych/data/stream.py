"""The endless training stream: position p fixes the example and the seed of everything random about it.

So any number of ranks, any accumulation and any resume see the same numbers.
"""

from __future__ import annotations

import collections
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diptych.core.hashing import mix_all
from diptych.data.augment import augment_image, augment_into
from diptych.data.buckets import BucketStream, bucket_shapes, nearest
from diptych.data.dataset import Example, ImageDataset
from diptych.data.dataset_config import DataConfig
from diptych.data.shards import ShardSource
from diptych.data.stored_sides import stored_sides
from diptych.data.stream_order import EpochOrder, GeneratedOrder, KeyedOrder, WindowedOrder
from diptych.data.worker_pool import Filled, Order, WorkerPool

SAMPLED = 4096
"""Examples whose keys tell the data of a run from others: a page of memory each."""


class SampleStream:
    """`stream[p] -> (index, example_seed)`: a new permutation per epoch, fixed by the seed."""

    def __init__(self, n_examples: int, seed: int, order: EpochOrder | None = None) -> None:
        """order: of the examples of an epoch; none for `GeneratedOrder`."""
        if n_examples < 1:
            raise ValueError("a stream needs at least one example")
        self.n_examples, self.seed, self.order = n_examples, seed, order or GeneratedOrder(n_examples, seed)

    def __getitem__(self, position: int) -> tuple[int, int]:
        indices, seeds = self.at([position])
        return int(indices[0]), int(seeds[0])

    def at(self, positions: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """The indices and the seeds of many positions, each int64 (N,)."""
        at = np.asarray(positions, dtype=np.int64)
        epochs, places = np.divmod(at, self.n_examples)
        return self.order.at(epochs, places), mix_all(self.seed, at, 1)


def stream_of(dataset: ImageDataset, seed: int, random: str) -> SampleStream:
    """The stream of a data set; random: "generator" for the order of earlier versions, "counter" for a computed one.

    Raises a `UserError` where shards are to be mixed and the data are none.
    """
    config, count = dataset.config, len(dataset)
    if config.shuffle == "shards":
        return SampleStream(count, seed, WindowedOrder(dataset.bounds(), seed, config.shuffle_window))
    return SampleStream(count, seed, KeyedOrder(count, seed) if random == "counter" else None)


def sample_stream(n_examples: int, seed: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """(index, example_seed) for positions `start`, `start` + 1, ... without end."""
    stream = SampleStream(n_examples, seed)
    position = start
    while True:
        yield stream[position]
        position += 1


def collate(examples: Sequence[Example], seeds: Sequence[int], config: DataConfig | None = None) -> dict[str, Any]:
    """A batch: "picture" float32 (B, 3, H, W) in [-1, 1], "caption" [B], "seed" int64 (B,), "key" [B].

    The seed of an example picks one of its captions, uniformly, and with `config` its crop and flip
    (`augment_image`): H = W = `config.side`.
    """
    arrays = [
        example.image if config is None else augment_image(example.image, config, seed)
        for example, seed in zip(examples, seeds, strict=True)
    ]
    return {
        "picture": pictures(torch.from_numpy(np.stack(arrays))),
        **texts([example.captions for example in examples], [example.key for example in examples], seeds),
    }


def pictures(pixels: Tensor) -> Tensor:
    """Float32 (B, 3, H, W) in [-1, 1] of pixels uint8 (B, H, W, 3), on their device: everywhere the same numbers."""
    half = torch.full((), 127.5, device=pixels.device)  # by a Python number CUDA would multiply with its reciprocal
    return pixels.permute(0, 3, 1, 2).to(torch.float32).div_(half).sub_(1.0).contiguous()


def texts(captions: Sequence[Sequence[str]], keys: Sequence[str], seeds: Sequence[int] | np.ndarray) -> dict[str, Any]:
    """What a batch has besides images: of the captions of each example the one that its seed picks."""
    at = np.asarray(seeds, dtype=np.int64)
    return {
        "caption": [some[drawn % len(some)] for some, drawn in zip(captions, mix_all(at, 2).tolist(), strict=True)],
        "seed": torch.from_numpy(at),
        "key": list(keys),
    }


def make_batch(dataset: ImageDataset, stream: SampleStream, positions: Sequence[int]) -> dict[str, Any]:
    """The batch of these positions of the stream, cropped and flipped as the data's config says."""
    pairs = [stream[position] for position in positions]
    return collate([dataset[index] for index, _ in pairs], [seed for _, seed in pairs], dataset.config)


class ImageBatches:
    """The batches of a data set by stream positions, with images as "pixels", uint8 (B, H, W, 3)."""

    def __init__(self, dataset: ImageDataset, seed: int, random: str = "generator", batch_size: int = 1) -> None:
        """random: how the order of the examples is made, as `stream_of` says. batch_size: positions of a step, all of
        one bucket where the data's config asks for buckets."""
        self.dataset, config = dataset, dataset.config
        self.shapes = [(config.side, config.side)]
        self.stream: SampleStream | BucketStream
        if not config.bucket_step:
            self.stream = stream_of(dataset, seed, random)
        else:
            self.shapes = bucket_shapes(config.size, config.bucket_step, config.bucket_aspect)
            bounds = dataset.bounds() if config.shuffle == "shards" else None  # an error for a folder, first of all
            sides, used = stored_sides(dataset), dataset.indices
            which = nearest(sides if isinstance(used, range) else sides[used], self.shapes)
            self.stream = BucketStream(which, batch_size, seed, bounds, config.shuffle_window)

    def __call__(self, positions: Sequence[int]) -> dict[str, Any]:
        """Read the batch of these positions, here and now."""
        self.dataset.quarantine.flush()  # what was left out at the opening, now that there is a folder
        order = self.order(positions)
        pixels = np.empty((len(positions), *order.shape, 3), dtype=np.uint8)
        captions, keys = [], []
        self.dataset.fetch((index for index, _ in order.examples), images=True)
        for row, (index, seed) in enumerate(order.examples):
            example = self.dataset.read(index, None if self.dataset.config.drawn else order.shape)
            augment_into(pixels[row], example.decoded, self.dataset.config, seed)
            captions.append(example.captions)
            keys.append(example.key)
        return self.batch(order, Filled(pixels, captions, keys))

    @property
    def identity(self) -> dict[str, Any]:
        """What decides which example stands where in an epoch: how many there are, and a hash of the names of shards
        and of the keys of at most `SAMPLED` examples, evenly spaced."""
        index, used, count = self.dataset.source.index, self.dataset.indices, len(self.dataset)
        digest, sharded = hashlib.sha256(), isinstance(self.dataset.source, ShardSource)
        if isinstance(self.dataset.source, ShardSource):
            digest.update(json.dumps([file.name for file in self.dataset.source.files]).encode())
            digest.update(self.dataset.bounds().tobytes())
        hashes = index["rows"]["hash"] if sharded else index["hashes"]
        for number in range(min(count, SAMPLED)):
            digest.update(hashes[int(used[number * count // min(count, SAMPLED)])].tobytes())
        return {"count": count, "keys": digest.hexdigest()[:16]}

    def order(self, positions: Sequence[int]) -> Order:
        """What is to be read for these positions."""
        shape = self.shapes[0]
        if isinstance(self.stream, BucketStream):
            indices, seeds, bucket = self.stream.at(np.asarray(positions, dtype=np.int64))
            shape = self.shapes[bucket]
        else:
            indices, seeds = self.stream.at(positions)
        return Order(list(zip(indices.tolist(), seeds.tolist(), strict=True)), shape)

    @property
    def most_bytes(self) -> int:
        """Of the pixels of the largest image."""
        return max(3 * height * width for height, width in self.shapes)

    def from_workers(self, pool: WorkerPool, pieces: Iterable[Sequence[int]]) -> Iterator[dict[str, Any]]:
        """The batches of some pieces of the stream, read by worker processes. "pixels" are valid until the next."""
        orders = collections.deque[Order]()
        for filled in pool.batches(orders.append(order) or order for order in map(self.order, pieces)):
            self.dataset.quarantine.flush()
            yield self.batch(orders.popleft(), filled)

    def batch(self, order: Order, filled: Filled) -> dict[str, Any]:
        """A batch as it is before it comes to the device."""
        pixels = torch.from_numpy(filled.pixels)
        return {"pixels": pixels, **texts(filled.captions, filled.keys, [seed for _, seed in order.examples])}


class EachImage(ImageBatches):
    """The images of a data set by their numbers, as they are stored, with "captions", all of each."""

    def __init__(self, dataset: ImageDataset) -> None:
        super().__init__(dataset.split(dataset.config.split, flip=0.0), 0)

    def order(self, positions: Sequence[int]) -> Order:
        side = self.dataset.config.side
        return Order([(index, 0) for index in positions], (side, side))

    def batch(self, order: Order, filled: Filled) -> dict[str, Any]:
        return {**super().batch(order, filled), "captions": [list(some) for some in filled.captions]}
