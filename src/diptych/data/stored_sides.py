"""The sides of all images of a data set, read from their headers once: for aspect buckets."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from diptych.core.errors import UserError
from diptych.core.progress import track
from diptych.data.dataset import ImageDataset
from diptych.data.image_sides import sides_of
from diptych.data.index_files import IndexFolder, open_arrays, read_piece, write_piece
from diptych.data.remote import RemoteShard
from diptych.data.shard_files import ShardFile, scan_shard
from diptych.data.shard_index import STREAMS
from diptych.data.shard_scan import ShardScan
from diptych.data.shards import ShardSource

THREADS, LOT = 16, 2048
"""Threads that read images, and how many they read between two lines of progress."""


def stored_sides(dataset: ImageDataset) -> np.ndarray:
    """Width and height of every image of the data's source, turned as its EXIF says: uint32 (N, 2), 0 where an image
    cannot be read. Read once, and kept beside the index."""
    index, source = dataset.source.index, dataset.source
    if index.folder is None:
        return read_sides(dataset, None)
    home = IndexFolder(dataset.config.path)
    home.folder, name = index.folder.parent, f"sides-{index.folder.name.split('-')[1]}"
    with home.locked():
        kept = open_arrays(home.folder / name)
        if kept is None or "sides" not in kept or len(kept["sides"]) != 2 * len(source):
            kept = home.put(name, {"sides": read_sides(dataset, home).reshape(-1)}, {}, keep=True)
        return kept["sides"].reshape(-1, 2)


def read_sides(dataset: ImageDataset, home: IndexFolder | None) -> np.ndarray:
    """As `stored_sides`, read now; home: where the sides of each shard are kept, so that a kill loses little.

    Shards in stores are read from first to last, as when they are indexed; of others the headers alone, many at once.
    """
    source = dataset.source
    found = np.zeros((len(source), 2), np.uint32)

    def one(index: int) -> tuple[int, int]:
        return sides_of(lambda size: source.image_start(index, size))

    with ThreadPoolExecutor(THREADS, "sides") as pool, ThreadPoolExecutor(STREAMS, "store") as streams:

        def lot(first: int, last: int) -> np.ndarray:
            return np.array(list(pool.map(one, range(first, last))), np.uint32).reshape(-1, 2)

        if not isinstance(source, ShardSource):
            for first in track(range(0, len(found), LOT), "reading the sides of images"):
                found[first : first + LOT] = lot(first, min(first + LOT, len(found)))
            return found

        def shard(number: int) -> np.ndarray:
            file, (first, last) = source.files[number], map(int, source.starts[number : number + 2])
            place = None if home is None or file.identity is None else home.piece(file.name, "sides")
            known = place and read_piece(place, file.identity or "")
            if known and known[0]["sides"].shape == (last - first, 2):
                return known[0]["sides"]
            sides = streamed(file, last - first) if isinstance(file, RemoteShard) else lot(first, last)
            if place:
                with contextlib.suppress(OSError):  # a full disk: they are read again
                    write_piece(place, file.identity or "", {"sides": sides}, {})
            return sides

        pending = [streams.submit(shard, number) for number in range(len(source.files))]
        try:
            for number in track(range(len(pending)), "reading the sides of images"):
                found[source.starts[number] : source.starts[number + 1]] = pending[number].result()
        finally:
            for future in pending:
                future.cancel()
    return found


def streamed(file: ShardFile, count: int) -> np.ndarray:
    """The sides of the images of a shard of so many examples, read from first to last."""
    found = np.zeros((count, 2), np.uint32)
    number = 0
    for entry, view in scan_shard(file, ShardScan()):
        if number < count:
            found[number] = sides_of(lambda size, entry=entry, view=view: entry.image_start(view, size))
        number += 1
    if number != count:
        raise UserError(f"{file.name} was replaced while it was read: start again")
    return found
