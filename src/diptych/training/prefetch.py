"""Batches for the loop: prepared in background threads while the device computes."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

Batch = dict[str, Any]
BatchAt = Callable[[list[int]], Batch]


def prefetched(batch_at: BatchAt, pieces: Iterable[list[int]], workers: int) -> Generator[Batch, None, None]:
    """The batches of the pieces in order, `workers` of them prepared ahead; 0 prepares each when it is asked for."""
    if workers == 0:
        yield from map(batch_at, pieces)
        return
    pieces = iter(pieces)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="batch")
    try:
        ahead = collections.deque(pool.submit(batch_at, piece) for piece in itertools.islice(pieces, workers))
        while ahead:
            batch = ahead.popleft().result()
            ahead.extend(pool.submit(batch_at, piece) for piece in itertools.islice(pieces, 1))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move the tensors of a batch; texts and keys stay. Pinned memory lets a copy to CUDA overlap with its work."""
    cuda = device.type == "cuda"
    return {
        key: (value.pin_memory() if cuda and value.device.type == "cpu" else value).to(device, non_blocking=True)
        if isinstance(value, Tensor)
        else value
        for key, value in batch.items()
    }
