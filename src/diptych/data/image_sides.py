"""Width and height of images, from their headers alone: for aspect buckets.

What metadata state is not asked: img2dataset, for example, keeps the sides that an image had before it was resized.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from diptych.core.errors import UserError
from diptych.core.image_files import opened, orientation
from diptych.core.progress import track
from diptych.data.dataset import ImageDataset
from diptych.data.index_files import IndexFolder, open_arrays, read_piece, write_piece
from diptych.data.paths import MAX_IMAGE_BYTES
from diptych.data.remote import RemoteShard
from diptych.data.shard_files import ShardFile, scan_shard
from diptych.data.shard_index import STREAMS
from diptych.data.shard_scan import ShardScan
from diptych.data.shards import ShardSource

FIRST, GROWTH = 2**14, 8
"""Bytes that are read of an image at first, and by how much more where its header is longer."""
THREADS, LOT = 16, 2048
"""Threads that read images, and how many they read between two lines of progress."""
WEBP_EXIF = 8
"""The bit of a WebP file's flags that says that EXIF follows the pixels."""
UNKNOWN = 0, 0
Start = Callable[[int], bytes]
"""Gives so many bytes from the start of an image, or all where it has fewer."""


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


def sides_of(start: Start) -> tuple[int, int]:
    """Width and height of an encoded image, turned as its EXIF says; (0, 0) where it cannot be read. A turn that a PNG
    states behind its pixels is not seen."""
    size = FIRST
    while size < GROWTH * MAX_IMAGE_BYTES:
        try:
            data = start(size)
        except UserError:  # a shard that was replaced, a store that does not answer
            raise
        except Exception:  # whatever a broken image makes of it: training meets it again, and counts it
            return UNKNOWN
        if (found := header_sides(data)) is not None:
            return found
        if len(data) < size:
            return UNKNOWN
        size *= GROWTH
    return UNKNOWN


def header_sides(data: bytes) -> tuple[int, int] | None:
    """As `sides_of`, of the first bytes of an image; none where more are needed, or it is broken."""
    if (found := webp_sides(data)) is not None:
        return found
    try:
        with opened(data) as image:
            width, height = image.size
            return (height, width) if orientation(image, before_pixels=True) >= 5 else (width, height)  # by a quarter
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return UNKNOWN  # as training will find
    except Exception:  # whatever a decoder makes of half a header
        return None


def webp_sides(data: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP image without EXIF, of which Pillow would want all bytes (RFC 9649, sections 2.5 to
    2.7). None for any other, which includes those of more pixels than are read."""
    if len(data) < 30 or data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    kind = data[12:16]
    if kind == b"VP8X" and not data[20] & WEBP_EXIF:
        width, height = (1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27))
    elif kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    elif kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    else:
        return None
    return None if Image.MAX_IMAGE_PIXELS and width * height > Image.MAX_IMAGE_PIXELS else (width, height)
