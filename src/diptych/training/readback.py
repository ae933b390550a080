"""Numbers that a GPU computes, read on the host without waiting for it."""

from __future__ import annotations

import collections
from collections.abc import Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor

Note = TypeVar("Note")
LAG = {"cuda": 2}
"""After so many sends more the numbers of one are read, by the kind of device; elsewhere at once, since it is free."""


class Readback(Generic[Note]):
    """Copies small tensors to the host, and gives each back, with its note, `lag` sends later.

    Work on a GPU is queued, and a `tolist()` empties the queue: the GPU then idles until the host has queued more. With
    a lag the host is up to so many steps ahead, and waits only if it would be further. All processes of a run have the
    same lag, and so learn of the same steps at the same time.
    """

    def __init__(self, device: torch.device) -> None:
        self.lag = LAG.get(device.type, 0)
        self._sent: collections.deque[tuple[Tensor, torch.cuda.Event | None, Note]] = collections.deque()

    def send(self, values: Tensor, note: Note) -> None:
        """Begin to copy values (N,), which must not change any more."""
        host, arrived = values.detach().to("cpu", non_blocking=True), None  # pinned, from a GPU
        if values.is_cuda:
            arrived = torch.cuda.Event(blocking=True)  # the host sleeps where it waits: its cores prepare batches
            arrived.record()
        self._sent.append((host, arrived, note))

    def read(self, wait: bool = False) -> Iterator[tuple[list[float], Note]]:
        """What was sent `lag` sends ago or earlier, or with `wait` everything: each once, oldest first."""
        while len(self._sent) > (0 if wait else self.lag):
            host, arrived, note = self._sent.popleft()
            if arrived is not None:
                arrived.synchronize()
            yield host.tolist(), note
