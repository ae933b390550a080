"""The endless training stream: position p fixes the example and the seed of everything random about it.

So any number of ranks, any accumulation and any resume see the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from diptych.core.hashing import mix
from diptych.data.augment import augment_image
from diptych.data.dataset import Example, ImageDataset
from diptych.data.dataset_config import DataConfig


class SampleStream:
    """`stream[p] -> (index, example_seed)`: a new permutation per epoch, fixed by the seed."""

    def __init__(self, n_examples: int, seed: int) -> None:
        if n_examples < 1:
            raise ValueError("a stream needs at least one example")
        self.n_examples, self.seed = n_examples, seed
        self._order = (-1, np.empty(0, dtype=np.int64))

    def __getitem__(self, position: int) -> tuple[int, int]:
        epoch, place = divmod(position, self.n_examples)
        current, order = self._order
        if current != epoch:
            order = np.random.Generator(np.random.PCG64(mix(self.seed, epoch))).permutation(self.n_examples)
            self._order = (epoch, order)  # one assignment: several threads may read
        return int(order[place]), mix(self.seed, position, 1)


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
    pixels = torch.from_numpy(np.stack(arrays))  # (B, H, W, 3) uint8
    return {
        "picture": pixels.permute(0, 3, 1, 2).to(torch.float32).div(127.5).sub(1.0).contiguous(),
        "caption": [
            example.captions[mix(seed, 2) % len(example.captions)]
            for example, seed in zip(examples, seeds, strict=True)
        ],
        "seed": torch.tensor(list(seeds), dtype=torch.int64),
        "key": [example.key for example in examples],
    }


def make_batch(dataset: ImageDataset, stream: SampleStream, positions: Sequence[int]) -> dict[str, Any]:
    """The batch of these positions of the stream, cropped and flipped as the data's config says."""
    pairs = [stream[position] for position in positions]
    return collate([dataset[index] for index, _ in pairs], [seed for _, seed in pairs], dataset.config)
