"""The index of many shards: built once, shard by shard, on all cores, and memory-mapped afterwards.

The work is kept shard by shard: a kill loses those that are being read, and later only what is new or has changed is
read. Processes that open the same data wait for the one that is at it.
"""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from diptych.core.caches import short_hash
from diptych.core.processors import cores
from diptych.core.progress import bar
from diptych.data.index_files import VERSION, ArrayParts, Arrays, IndexFolder, open_arrays, settled
from diptych.data.scan_process import ScanProcess
from diptych.data.selection import Rules, Verdict, choose
from diptych.data.shard_files import LocalShard, ShardFile
from diptych.data.shard_pieces import PiecePlace, ShardPiece, index_piece
from diptych.data.shard_scan import ROW

ALONE = 3.0
"""Seconds of indexing after which other processes join in."""
MOST_PROCESSES = 32
STREAMS = 8
"""Shards of a remote store that are indexed at once."""
LARGE = 2**28
"""Bytes of shards that were just written above which it is worth waiting until their times are settled."""


def index_shards(
    files: Sequence[ShardFile], folder: IndexFolder, rules: Rules, held_out: float, least: int
) -> tuple[Arrays, Arrays]:
    """The index of shards: "rows", `ROW` (N,), with the notes "counts" and "shards", of each one; and the indices of
    "train" and "held-out", with the notes of the verdict. What an earlier run found is not read again."""
    contents = short_hash(json.dumps([VERSION, *((file.name, file.identity) for file in files)]), 16)
    chosen = short_hash(f"{rules.name} {held_out!r} {least}", 16)
    names = f"rows-{contents}", f"chosen-{contents}-{chosen}"
    if (known := _open(folder, names)) is not None:
        return known
    with folder.locked():
        if (known := _open(folder, names)) is not None:  # of the process that held the lock
            return known
        pieces = Pieces(files, folder, rules, keep=all(file.identity for file in files) and wait_for(files))
        pieces.make()
        notes = {"counts": pieces.counts, "shards": pieces.notes}
        folder.forget_others(contents)
        parts = ArrayParts(ROW, sum(pieces.counts), lambda: (pieces.get(number).rows for number in range(len(files))))
        rows = folder.put(names[0], {"rows": parts}, notes, pieces.keep)
        verdict = Verdict.join([pieces.get(number).verdict for number in range(len(files))])
        splits = choose(verdict, rows["rows"]["hash"], held_out, least)
        return rows, folder.put(names[1], splits, verdict.notes, pieces.keep)


def _open(folder: IndexFolder, names: tuple[str, str]) -> tuple[Arrays, Arrays] | None:
    rows, chosen = (open_arrays(folder.folder / name) for name in names)
    return None if rows is None or chosen is None else (rows, chosen)


def wait_for(files: Sequence[ShardFile]) -> bool:
    """Whether the times of local shards tell another change; waits for that where they are large."""
    local = [file for file in files if isinstance(file, LocalShard)]
    newest = max((file.modified for file in local), default=0)
    if not settled(newest) and sum(file.size for file in local) > LARGE:
        time.sleep(max(0.0, min(2.1, 2.1 - (time.time_ns() - newest) / 1e9)))
        return settled(newest) and all(LocalShard(file.path, file.name).identity == file.identity for file in local)
    return settled(newest)


class Pieces:
    """The pieces of some shards, on disk where they are kept, else in memory."""

    def __init__(self, files: Sequence[ShardFile], folder: IndexFolder, rules: Rules, keep: bool) -> None:
        self.files, self.folder, self.rules, self.keep = files, folder, rules, keep
        self.counts = [0] * len(files)
        """Examples of each shard."""
        self.notes: list[dict[str, Any]] = [{}] * len(files)
        self._memory: dict[int, ShardPiece] = {}

    def place(self, number: int) -> PiecePlace:
        name = self.files[number].name
        return PiecePlace(self.folder.piece(name, "rows"), self.folder.piece(name, self.rules.name))

    def get(self, number: int) -> ShardPiece:
        """The piece of a shard, which is made anew where its file is gone meanwhile."""
        piece = self._memory.get(number) or self._load(number)
        return self._index(number) if piece is None else piece

    def make(self) -> None:
        """Read what no earlier run has read."""
        todo = [number for number in range(len(self.files)) if not self._note(number, self._load(number))]
        if not todo:
            return
        began = time.monotonic()
        with bar() as progress:
            task = progress.add_task("indexing shards", total=len(todo))
            remote = [number for number in todo if not isinstance(self.files[number], LocalShard)]
            self._in_threads(remote, self._index, STREAMS, lambda: progress.advance(task))
            local = [number for number in todo if isinstance(self.files[number], LocalShard)]
            while local:
                self._index(local.pop(0))
                progress.advance(task)
                if self.keep and time.monotonic() - began > ALONE and cores() > 1 and len(local) > 1:
                    break
            if local:
                self._in_processes(local, lambda: progress.advance(task))

    def _in_threads(
        self, numbers: list[int], index: Callable[[int], Any], workers: int, advance: Callable[[], None]
    ) -> None:
        if not numbers:
            return
        with ThreadPoolExecutor(min(workers, len(numbers)), thread_name_prefix="index") as pool:
            futures = [pool.submit(index, number) for number in numbers]
            try:
                for future in as_completed(futures):
                    future.result()
                    advance()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def _in_processes(self, numbers: list[int], advance: Callable[[], None]) -> None:
        count = min(cores(), MOST_PROCESSES, len(numbers))
        free: queue.SimpleQueue[ScanProcess] = queue.SimpleQueue()
        processes = [ScanProcess() for _ in range(count)]
        for process in processes:
            free.put(process)

        def index(number: int) -> None:
            process, file = free.get(), self.files[number]
            assert isinstance(file, LocalShard)
            try:
                process.index(file, self.rules, self.place(number))
            except OSError:  # it ended, or could not write: done here
                self._index(number)
            else:
                self._note(number, self.get(number))
            finally:
                free.put(process)

        try:
            self._in_threads(numbers, index, count, advance)
        finally:
            for process in processes:
                process.end()

    def _index(self, number: int) -> ShardPiece:
        file = self.files[number]
        local = isinstance(file, LocalShard)  # of a store, all is read from first to last again
        piece = index_piece(file, self.rules, self.place(number), self.keep and local)
        try:
            if self.keep:
                self.place(number).save(file.identity or "", piece)
        except OSError:  # a full disk, or one that may not be written to
            self.keep = False
        if not self.keep:
            self._memory[number] = piece
        self._note(number, piece)
        return piece

    def _load(self, number: int) -> ShardPiece | None:
        identity = self.files[number].identity
        return None if identity is None or not self.keep else self.place(number).load(identity)

    def _note(self, number: int, piece: ShardPiece | None) -> bool:
        if piece is not None:
            self.counts[number], self.notes[number] = len(piece.rows), piece.notes
        return piece is not None
