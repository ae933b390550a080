"""WebDataset shards: tar files in which the members of one example follow one another under one key.

Writing is deterministic (fixed times and owners, given order) and atomic. Reading is random access by an index
(`shard_index`), which holds where each example lies; keys, captions and images are read when they are asked for.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import io
import os
import tarfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diptych.core.disk import disk_errors
from diptych.data.caption_text import one_line
from diptych.data.dataset_config import DataConfig
from diptych.data.index_files import Arrays, IndexFolder
from diptych.data.quarantine import BrokenExample
from diptych.data.remote import RemoteShard
from diptych.data.remote_spans import read_captions, read_spans
from diptych.data.selection import Rules, Selection
from diptych.data.shard_files import LocalShard, Shard, ShardFile
from diptych.data.shard_index import index_shards
from diptych.data.shard_scan import NO_CAPTION, NO_IMAGE, Entry, apart_hint, entry_of
from diptych.data.tars import BLOCK, View

__all__ = ["Shard", "ShardSource", "write_shard"]
MOST_AHEAD = 2**24
"""Bytes of local shards that a thread reads ahead."""


def write_shard(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> dict:
    """Write (key, {extension: bytes}) samples as one tar; returns {"file", "samples", "bytes", "sha256"}."""
    temporary = path.with_name(f".{path.name}.partial")
    count = 0
    try:
        with disk_errors(path), tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
            for key, members in samples:
                count += 1
                for extension, data in members.items():
                    info = tarfile.TarInfo(f"{key}.{extension}")
                    info.size, info.mode = len(data), 0o644  # times and owners stay 0: same samples, same bytes
                    tar.addfile(info, io.BytesIO(data))
        with open(temporary, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = file.seek(0, os.SEEK_END)
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return {"file": path.name, "samples": count, "bytes": size, "sha256": digest}


class Lost(NamedTuple):
    """What is lost of a shard that cannot be read, or not to its end."""

    shard: str
    kept: int
    """Examples before its end."""
    count: int
    """Those that are lost; 0 if that is unknown."""
    exact: bool
    """Whether they were counted, when it was read before; else it is taken for as large as the others are."""
    reason: str

    @property
    def what(self) -> str:
        """In the place of the key of an example."""
        first = f"all after its first {self.kept:,} examples" if self.kept else "all examples"
        if not self.count:
            return first
        return f"{first}, {self.count:,}" if self.exact else f"{first}, about {self.count:,} as in other shards"


class ShardSource:
    """The examples of all shards, in the order of file names. `skipped`: files that are not read, name -> reason."""

    def __init__(
        self, files: Sequence[ShardFile], what: str, left: dict[str, str], config: DataConfig, captions: bool
    ) -> None:
        """what: the data path, under which the index is kept. left: files beside the shards that are not read."""
        self.files, self.skipped, self._last = files, left, threading.local()
        self._index, chosen = index_shards(
            files, IndexFolder(what), Rules.of(config, captions), config.held_out, config.least
        )
        self.remote = any(isinstance(file, RemoteShard) for file in files)
        self.starts = np.cumsum([0, *self._index.notes["counts"]])
        """Index of the first example of each shard, and the number of all."""
        self._starts: list[int] = self.starts.tolist()
        self.selection = Selection(len(self), chosen)
        self.lost: list[Lost] = []
        counts, shards = self._index.notes["counts"], self._index.notes["shards"]
        whole = [count for count, notes in zip(counts, shards, strict=True) if notes["problem"] is None]
        usual = round(sum(whole) / len(whole)) if whole else 0
        for file, count, notes in zip(files, counts, shards, strict=True):
            left.update({f"{one_line(name)} in {file.name}": why for name, why in notes["skipped"].items()})
            if notes["problem"] is not None:
                had = notes.get("had", 0)
                exact = had > count
                self.lost.append(Lost(file.name, count, max(0, (had or usual) - count), exact, notes["problem"]))
            elif not count:
                left[file.name] = "a shard without images or captions"

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def index(self) -> Arrays:
        """The arrays in which it is kept."""
        return self._index

    def key(self, index: int) -> tuple[str, str]:
        name = self._file(index).name
        try:
            return name, one_line(self._entry(index)[0].key)
        except (BrokenExample, OSError):
            return name, f"example {index - int(self.starts[self._number(index)])}"

    def meta(self, index: int) -> dict[str, Any]:
        if (parsed := getattr(self._last, "parsed", {}).get(index)) is not None:
            return parsed[2]
        entry, view = self._entry(index)
        return entry.meta(view)

    def image_bytes(self, index: int) -> bytes:
        entry, view = self._entry(index)
        try:
            return entry.image(view)
        except BrokenExample as error:
            raise self._hinted(index, NO_IMAGE) if str(error) == NO_IMAGE else error from None

    def image_start(self, index: int, size: int) -> bytes:
        entry, view = self._entry(index)
        return entry.image_start(view, size)

    def require_same(self, index: int) -> None:
        file = self._file(index)
        if isinstance(file, LocalShard):  # those in stores are compared at each request
            file.require_same()

    def missing_caption(self, index: int) -> BrokenExample:
        return self._hinted(index, NO_CAPTION)

    def _hinted(self, index: int, what: str) -> BrokenExample:
        """The error for an example without an image or a caption."""
        apart = self._index["rows"][index]["apart"]
        return BrokenExample(what + (apart_hint(os.path.basename(self._file(index).name)) if apart else ""))

    def _number(self, index: int) -> int:
        return bisect.bisect_right(self._starts, index) - 1

    def _file(self, index: int) -> ShardFile:
        return self.files[self._number(index)]

    def _entry(self, index: int) -> tuple[Entry, View]:
        """An example and its bytes; the last one of each thread is kept. Raises `BrokenExample`, an `OSError`, or a
        `UserError` if the shard was replaced."""
        if (parsed := getattr(self._last, "parsed", {}).get(index)) is not None:
            return parsed[0], parsed[1]
        last, entry, view = getattr(self._last, "entry", (-1, None, None))
        if last != index or entry is None or view is None:
            view: View | None = getattr(self._last, "ahead", {}).get(index)
            if view is None:
                start, blocks, *_ = self._index["rows"][index].item()
                view = self._file(index).part(start * BLOCK, blocks * BLOCK)
            entry = entry_of(view)
            self._last.entry = index, entry, view
        return entry, view

    def fetch(self, indices: Sequence[int], images: bool) -> None:
        """Read examples that this thread will ask for next: those in stores with few requests, without their images
        unless `images` are read, too; then also local ones with one read each, `MOST_AHEAD` bytes in all. What cannot
        be read fails where it is asked for."""
        spans, parsed, room = [], dict[int, tuple[Entry, View, dict[str, Any]]](), MOST_AHEAD if images else 0
        self._last.parsed = {}  # of the batch before
        for index in dict.fromkeys(indices):
            file = self._file(index)
            start, blocks, *_ = self._index["rows"][index].item()
            if isinstance(file, RemoteShard):
                spans.append((index, (file, start * BLOCK, blocks * BLOCK)))
            elif isinstance(file, LocalShard) and (room := room - blocks * BLOCK) >= 0:
                with contextlib.suppress(Exception):
                    view = file.read(start * BLOCK, blocks * BLOCK)
                    entry = entry_of(view)
                    parsed[index] = entry, view, entry.meta(view)
        self._last.parsed = parsed
        if spans:
            self._last.ahead = {}  # of the batch before
            found = (read_spans if images else read_captions)([span for _, span in spans])
            self._last.ahead = {index: data for (index, _), data in zip(spans, found, strict=True)}

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_last"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _last=threading.local())
