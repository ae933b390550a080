"""A worker process: it reads, decodes, crops and flips examples, and writes their pixels into shared memory.

It is a fresh interpreter that imports NumPy and Pillow, not PyTorch: forking a process that has threads or a CUDA
context is unsafe. It ends when its parent closes the connection, or ends itself in whatever way.
"""

from __future__ import annotations

import copy
import gc
import mmap
import pickle
import signal
import traceback
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from diptych.core.errors import UserError
from diptych.core.image_files import silence_pillow
from diptych.data.augment import augment_into
from diptych.data.dataset import ImageDataset
from diptych.data.quarantine import BrokenExample, Quarantine, reason_of


class Chunk(NamedTuple):
    """A part of a batch, for one worker."""

    number: int
    offset: int
    """Byte of the shared memory at which its pixels begin."""
    shape: tuple[int, int]
    """Height and width of its images."""
    examples: list[tuple[int, int]]
    """(index, seed) of each."""


class ReadRow(NamedTuple):
    """What a worker read, besides the pixels."""

    place: int
    """The example's number in the source."""
    captions: list[str]
    """As they are in the data, not cut."""
    key: str
    failed: list[tuple[int, str]]
    """(number in the source, reason) of each broken example in whose place it stands."""


class Answer(NamedTuple):
    """What became of a chunk: the rows before the error, if there was one."""

    number: int
    rows: list[ReadRow]
    error: Exception | None = None


class Reasons(Quarantine):
    """The quarantine of a worker: it keeps reasons, and leaves counts, lines and checks to the main process."""

    def __init__(self) -> None:
        super().__init__(None, 1.0)

    def check(self) -> None:
        """Too few are read here to judge."""

    def _log(self, number: int, line: str, more: str) -> None:
        """The main process does."""


def packed(dataset: ImageDataset) -> bytes:
    """A data set as workers get it: without what cuts captions, which may need PyTorch."""
    other = copy.copy(dataset)
    other.quarantine, other.fit = Reasons(), None
    return pickle.dumps((other, Image.MAX_IMAGE_PIXELS), protocol=5)


def work(connection: Connection, memory: mmap.mmap, dataset: ImageDataset) -> None:
    """Answer chunks until the connection is closed."""
    pixels = np.frombuffer(memory, dtype=np.uint8)
    while True:
        chunk: Chunk = connection.recv()
        connection.send(answer(chunk, pixels, dataset))


def answer(chunk: Chunk, pixels: np.ndarray, dataset: ImageDataset) -> Answer:
    """Read the examples of a chunk into `pixels`, the shared memory, up to the first error."""
    rows: list[ReadRow] = []
    size = 3 * chunk.shape[0] * chunk.shape[1]
    try:
        dataset.fetch((index for index, _ in chunk.examples), images=True)
        for offset, (index, seed) in enumerate(chunk.examples):
            row = pixels[chunk.offset + offset * size :][:size].reshape(*chunk.shape, 3)
            rows.append(read_row(dataset, index, seed, row))
    except Exception as error:
        return Answer(chunk.number, rows, portable(error, rows, chunk))
    return Answer(chunk.number, rows)


def read_row(dataset: ImageDataset, index: int, seed: int, out: np.ndarray) -> ReadRow:
    """Read an example, and write its crop into `out` (H, W, 3)."""
    failed: list[tuple[int, str]] = []
    shape = None if dataset.config.drawn else (out.shape[0], out.shape[1])
    for place, example in dataset.tries(index, shape):
        if example is not None:
            augment_into(out, example.decoded, dataset.config, seed)
            return ReadRow(place, list(example.captions), example.key, failed)
        # One that was known to be broken before this worker began is not in its own record.
        failed.append((place, dataset.quarantine.broken.get(dataset.source.key(place), "it cannot be read")))
    raise AssertionError("the last of the tries raises")


def accept(dataset: ImageDataset, index: int, seed: int, row: ReadRow, out: np.ndarray) -> tuple[tuple[str, ...], str]:
    """Count what a worker read as if it had been read here; returns captions, as the model reads them, and key.

    Where these captions cannot be read, the example that takes its place is read, here, into `out`.
    """

    def fail(reason: str) -> None:
        raise BrokenExample(reason)

    for place, reason in row.failed:
        if not dataset.is_broken(place):
            dataset.counted(place, lambda _, reason=reason: fail(reason))
    if not dataset.is_broken(row.place):
        captions = dataset.counted(row.place, lambda place: dataset.fitted(place, row.captions))
        if captions is not None:
            return tuple(captions), row.key
    example = dataset.read(index, None if dataset.config.drawn else (out.shape[0], out.shape[1]))
    augment_into(out, example.decoded, dataset.config, seed)
    return example.captions, example.key


def portable(error: Exception, rows: list[ReadRow], chunk: Chunk) -> Exception:
    """An error as it can be sent: of its kind where that is possible, and with its traceback as a note."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, MemoryError):
        try:
            reason_of(error, f"example {chunk.examples[len(rows)][0]}")
        except Exception as told:
            return told
    note = f"in a worker process:\n{''.join(traceback.format_exception(error)).rstrip()}"
    try:
        pickle.dumps(error)
        same = copy.copy(error)  # made again as the other process will
    except Exception:
        same = RuntimeError(f"{type(error).__name__}: {error}")
    same.add_note(note)
    return same


def main(connection_number: int, memory_number: int, data_number: int) -> None:
    """What a worker process runs; the numbers are those of its open files."""
    for number in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # the parent's, which saves and closes the connection
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(connection_number)
    try:
        with mmap.mmap(data_number, 0, access=mmap.ACCESS_READ) as data:
            dataset, Image.MAX_IMAGE_PIXELS = pickle.loads(data)
        memory: Any = mmap.mmap(memory_number, 0)
        silence_pillow()
        gc.freeze()  # what is there now stays: collections need not look through it
        connection.send(None)  # started
        work(connection, memory, dataset)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the parent has finished, or is no more
        return
