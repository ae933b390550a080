"""Worker processes that decode batches ahead: each batch is split over all of them by examples.

The main process says which example of which seed goes into which row, so the batches are the same for any number of
workers. Pixels come through shared memory; captions, keys and what was broken come as messages, and are counted in the
order of the rows.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import logging
import mmap
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import NamedTuple

import numpy as np

from diptych.core.errors import UserError
from diptych.data.dataset import ImageDataset
from diptych.data.worker import Answer, Chunk, accept, packed

log = logging.getLogger(__name__)
SLOTS = 3
"""Batches in the shared memory: one is taken out while the others are filled."""
CHUNK = 16
"""Most examples of a chunk."""
AHEAD = 3
"""Chunks that a worker has, so that it need not wait for the next."""
DEATHS = 2
"""A chunk that so many workers died of is given up."""
POLL = 0.2
"""Seconds after which a pool that waits looks whether it is to end."""
PATIENCE = 5.0
"""Seconds that workers have to end by themselves."""
ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    "PILLOW_BLOCKS_MAX": "16",
    "MALLOC_TRIM_THRESHOLD_": str(2**28),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),  # once one threshold is set, glibc does not raise the other by itself
}
"""Of a worker: NumPy starts no threads; Pillow and the C library keep the memory of images, for the next ones."""
COMMAND = """import json, sys
sys.path[:] = json.loads(sys.argv[1])
from diptych.data.worker import main
main(*map(int, sys.argv[2:]))"""


class Order(NamedTuple):
    """A batch to be read."""

    examples: list[tuple[int, int]]
    """(index, seed) of each row."""
    shape: tuple[int, int]
    """Height and width."""


class Filled(NamedTuple):
    """A batch that was read. `pixels` are valid until the next is asked for."""

    pixels: np.ndarray
    """uint8 (B, H, W, 3)."""
    captions: list[tuple[str, ...]]
    """Those of each row as the model reads them."""
    keys: list[str]


@dataclasses.dataclass
class Filling:
    """A batch that is being read."""

    order: Order
    pixels: np.ndarray
    slot: int
    missing: set[int]
    """Numbers of its chunks that are not answered yet."""
    answers: dict[int, Answer] = dataclasses.field(default_factory=dict)


class Worker:
    """A process, and the chunks that it was given."""

    def __init__(self, files: tuple[int, int]) -> None:
        self.connection, other = Pipe()
        numbers = (other.fileno(), *files)
        command = [sys.executable, "-c", COMMAND, json.dumps(sys.path), *map(str, numbers)]
        environment = {**os.environ, **ENVIRONMENT}
        with other:
            self.process = subprocess.Popen(command, pass_fds=numbers, env=environment, stdin=subprocess.DEVNULL)
        self.chunks: dict[int, Chunk] = {}
        self.started = False

    def end(self) -> str:
        """Wait for a process that has closed its connection, and say how it ended."""
        self.connection.close()
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        return f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"


class WorkerPool:
    """Processes that read a data set. Use it as a context manager: at its end they end, too."""

    def __init__(self, dataset: ImageDataset, workers: int, most_bytes: int) -> None:
        """most_bytes: the size of the pixels of the largest batch."""
        self.dataset, self._stopping = dataset, False
        self._size = -(-most_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self._count, self._number, self._deaths = workers, 0, collections.Counter[int]()
        self._stack = contextlib.ExitStack()
        self._workers: list[Worker] = []
        self._waiting: collections.deque[Chunk] = collections.deque()
        self._filling: collections.deque[Filling] = collections.deque()

    def __enter__(self) -> WorkerPool:
        with contextlib.ExitStack() as stack:
            payload = packed(self.dataset)
            memory = stack.enter_context(shared_file(SLOTS * self._size))
            data = stack.enter_context(shared_file(len(payload)))
            with mmap.mmap(data, 0) as written:
                written[:] = payload
            self._files = memory, data
            self._memory = np.frombuffer(mmap.mmap(memory, 0), dtype=np.uint8)
            stack.callback(self._end)
            self._workers += [Worker(self._files) for _ in range(self._count)]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def stop(self) -> None:
        """Let `batches`, which may run in another thread, end soon."""
        self._stopping = True

    def batches(self, orders: Iterable[Order]) -> Iterator[Filled]:
        """The batches in the order in which they are ordered. Raises the errors of workers, a `UserError` for an
        example of which they die, and ends early after `stop`."""
        orders, free = iter(orders), list(range(SLOTS))
        while True:
            while free and (order := next(orders, None)) is not None:
                self._begin(order, free.pop())
            if not self._filling:
                return
            first = self._filling[0]
            self._give()
            while first.missing:
                if self._stopping:
                    return
                self._receive()
                self._give()
            yield self._finish(first)
            self._filling.popleft()
            free.append(first.slot)

    def _begin(self, order: Order, slot: int) -> None:
        """Split a batch into chunks."""
        count, (height, width) = len(order.examples), order.shape
        row = 3 * height * width
        if count * row > self._size:
            raise ValueError(f"a batch of {count * row} bytes, and there are {self._size}")
        pixels = self._memory[slot * self._size :][: count * row].reshape(count, height, width, 3)
        length = max(1, min(CHUNK, -(-count // (2 * len(self._workers)))))
        filling = Filling(order, pixels, slot, set())
        for start in range(0, count, length):
            offset = slot * self._size + start * row
            self._waiting.append(Chunk(self._number, offset, order.shape, order.examples[start : start + length]))
            filling.missing.add(self._number)
            self._number += 1
        self._filling.append(filling)

    def _give(self) -> None:
        """Give chunks to the workers that have the fewest."""
        while self._waiting:
            worker = min(self._workers, key=lambda worker: len(worker.chunks))
            if len(worker.chunks) >= AHEAD:
                return
            chunk = self._waiting.popleft()
            worker.chunks[chunk.number] = chunk
            with contextlib.suppress(OSError):  # it ended: seen when it is read from
                worker.connection.send(chunk)

    def _receive(self) -> None:
        """Take answers, if some come in a moment; start another worker for one that ended."""
        by_connection = {worker.connection: worker for worker in self._workers}
        for connection in wait(list(by_connection), POLL):
            assert isinstance(connection, Connection)
            worker = by_connection[connection]
            try:
                answer = connection.recv()
            except (EOFError, OSError):  # also in the middle of an answer
                self._replace(worker)
                continue
            if answer is None:
                worker.started = True
                continue
            del worker.chunks[answer.number]
            filling = next(filling for filling in self._filling if answer.number in filling.missing)
            filling.missing.remove(answer.number)
            filling.answers[answer.number] = answer

    def _replace(self, worker: Worker) -> None:
        """Start another worker with the chunks of one that ended. A `UserError` where one of them is the reason."""
        how = worker.end()
        if not worker.started:
            raise UserError(f"a worker process ended {how} while it started: set training.worker_kind=threads")
        first = next(iter(worker.chunks.values()), None)
        hint = ": memory may be short; lower training.workers" if "SIGKILL" in how else ""
        if first is not None:
            self._deaths[first.number] += 1
            if self._deaths[first.number] >= DEATHS:
                names = [self.dataset.key(index)[1] for index, _ in first.examples]
                raise UserError(
                    f"worker processes ended {how} twice at the same examples, one of {', '.join(names)}{hint}"
                )
        log.warning("a worker process ended %s, another takes its place%s", how, hint)
        new = Worker(self._files)
        self._workers[self._workers.index(worker)] = new
        new.chunks = worker.chunks
        for chunk in new.chunks.values():
            with contextlib.suppress(OSError):
                new.connection.send(chunk)

    def _finish(self, filling: Filling) -> Filled:
        """Count what was read, row by row, and raise the first error."""
        captions, keys = list[tuple[str, ...]](), list[str]()
        for number in sorted(filling.answers):
            answer = filling.answers[number]
            for read in answer.rows:
                row = len(keys)
                index, seed = filling.order.examples[row]
                texts, key = accept(self.dataset, index, seed, read, filling.pixels[row])
                captions.append(texts)
                keys.append(key)
            if answer.error is not None:
                raise answer.error
        return Filled(filling.pixels, captions, keys)

    def _end(self) -> None:
        """End the workers: they do so when their connections are closed."""
        for worker in self._workers:
            worker.connection.close()
        for worker in self._workers:
            worker.end()


@contextlib.contextmanager
def shared_file(size: int) -> Iterator[int]:
    """An open file without a name, of so many bytes, in memory where the system can do that."""
    if hasattr(os, "memfd_create"):  # not in /dev/shm, which containers limit to 64 MiB
        number = os.memfd_create("diptych")
    else:
        with tempfile.TemporaryFile() as file:
            number = os.dup(file.fileno())
    try:
        os.ftruncate(number, size)
        yield number
    finally:
        os.close(number)
