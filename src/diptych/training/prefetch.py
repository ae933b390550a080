"""Batches for the loop: prepared in threads or worker processes while the device computes, and copied ahead of it."""

from __future__ import annotations

import collections
import contextlib
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diptych.core.devices import sent
from diptych.data.stream import ImageBatches, pictures
from diptych.data.worker_pool import WorkerPool
from diptych.training.training_config import TrainingConfig

Batch = dict[str, Any]
BatchAt = Callable[[list[int]], Batch]
READY = 2
"""Batches that are taken from worker processes ahead, besides those that they are at."""


def prefetched(
    batch_at: BatchAt,
    pieces: Iterable[list[int]],
    config: TrainingConfig,
    device: torch.device,
    prepare: Callable[[Batch], Batch] | None = None,
) -> Generator[Batch, None, None]:
    """The batches of the pieces in order, on the device, loaded as `config.workers` and `config.worker_kind` say: by
    threads, each a batch; by processes, which share each batch; or when they are asked for. They are always the same.

    prepare: what is done to each before it comes to the device, by threads too.
    """
    copies, workers = Copies(device, config.random, prepare), config.workers
    if workers == 0:
        for piece in pieces:
            yield copies.arrived(copies.begun(copies.prepared(batch_at(piece))))
        return
    processes: WorkerPool | None = None
    with contextlib.ExitStack() as stack:
        if isinstance(batch_at, ImageBatches) and processes_serve(batch_at, config):
            first = list(itertools.islice(pieces := iter(pieces), 1))
            most = max(map(len, first), default=0) + 1  # the others are longer by one example at most
            processes = stack.enter_context(WorkerPool(batch_at.dataset, workers, most * batch_at.most_bytes))
            made, threads, ahead = batch_at.from_workers(processes, itertools.chain(first, pieces)), 1, READY
            jobs: Iterator[Callable[[], Batch | None]] = itertools.repeat(lambda: next(made, None))
        else:
            jobs, threads, ahead = ((lambda piece=piece: batch_at(piece)) for piece in pieces), workers, workers
        pool = ThreadPoolExecutor(threads, "batch", initializer=copies.enter_thread)
        stack.callback(pool.shutdown, cancel_futures=True)
        if processes is not None:
            stack.callback(processes.stop)  # before that
        futures, copied = collections.deque[Future[Batch | None]](), collections.deque[Copied]()

        def run(job: Callable[[], Batch | None]) -> Batch | None:
            return None if (batch := job()) is None else copies.prepared(batch)

        def submit() -> None:
            for job in itertools.islice(jobs, ahead - len(futures)):
                futures.append(pool.submit(run, job))

        def take() -> None:
            if (batch := futures.popleft().result()) is None:
                futures.clear()
            else:
                submit()
                copied.append(copies.begun(batch))

        submit()
        while futures or copied:
            if not copied:
                take()
            if copies.stream and futures and futures[0].done() and futures[0].exception() is None:
                take()  # its copy begins while the step before it computes
            if copied:
                yield copies.arrived(copied.popleft())


def processes_serve(batches: ImageBatches, config: TrainingConfig) -> bool:
    """Whether images are decoded in processes. Those that are kept in memory are decoded once, in this one."""
    if config.worker_kind == "auto":
        return config.workers > 1 and not batches.dataset.config.in_memory
    return config.worker_kind == "processes"


class Copied(NamedTuple):
    """A batch whose copy to the device has begun."""

    batch: Batch
    event: torch.cuda.Event | None
    """Of the end of the copy; none where nothing is copied."""


class Copies:
    """Brings batches to a device: to CUDA from pinned memory, which PyTorch keeps and uses again, on a stream of its
    own, so that a copy runs beside the step before and neither the host nor that step waits for it."""

    def __init__(self, device: torch.device, random: str, prepare: Callable[[Batch], Batch] | None = None) -> None:
        """random: how a batch's random numbers are drawn, as `TrainingConfig.random`; batches say so."""
        self.device, self.random, self.prepare = device, random, prepare
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def enter_thread(self) -> None:
        """Let a thread use this device, and not start on another."""
        if self.stream:
            torch.cuda.set_device(self.stream.device)

    def prepared(self, batch: Batch) -> Batch:
        """In the thread that made it: a batch with its tensors pinned, or, on the CPU, as the step takes it."""
        if self.stream is None:
            batch = to_device(batch, self.device)
        if self.prepare is not None:
            batch = self.prepare(batch)
        return batch if self.stream is None else {key: pinned(value) for key, value in batch.items()}

    def begun(self, batch: Batch) -> Copied:
        """Begin to copy a batch that is prepared."""
        if self.stream is None:
            return Copied(batch, None)
        with torch.cuda.stream(self.stream):
            moved = to_device(batch, self.device)
            event = torch.cuda.Event()
            event.record()
        return Copied(moved, event)

    def arrived(self, copied: Copied) -> Batch:
        """Let the current stream wait for a copy."""
        if copied.event is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(copied.event)
            for value in copied.batch.values():
                if isinstance(value, Tensor):
                    value.record_stream(current)  # its memory is not used again before this stream is through with it
        return {**copied.batch, "random": self.random}


def pinned(value: Any) -> Any:
    """A tensor of the CPU in pinned memory, from which copies to CUDA do not wait; anything else as it is."""
    return value.pin_memory() if isinstance(value, Tensor) and value.device.type == "cpu" else value


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move the tensors of a batch, by pinned memory to CUDA; texts and keys stay. "pixels", bytes, become "picture",
    floating-point numbers, there; "seed_on_host" are the seeds where they came from."""
    moved = {}
    for key, value in batch.items():
        if isinstance(value, Tensor):
            if key == "seed" and value.device.type == "cpu":
                moved["seed_on_host"] = value.numpy()  # no tensor, so that it stays there
            value = sent(value, device)
        moved[key] = value
    if "pixels" in moved:
        moved["picture"] = pictures(moved.pop("pixels"))
    return moved
