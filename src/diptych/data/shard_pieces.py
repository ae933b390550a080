"""What an index knows of one shard, and the file that keeps it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from diptych.data.filters import Size
from diptych.data.image_sides import image_size
from diptych.data.index_files import read_piece, write_piece
from diptych.data.quarantine import BrokenExample
from diptych.data.selection import Rules, Selector, Verdict
from diptych.data.shard_files import ShardFile, scan_shard
from diptych.data.shard_scan import NO_CAPTION, Entry, ShardScan, apart_hint, entry_of
from diptych.data.tars import BLOCK, View

Read = Callable[[], dict[str, Any]]


class ShardPiece(NamedTuple):
    """What is known of one shard."""

    rows: np.ndarray
    """`ROW` (N,)."""
    notes: dict[str, Any]
    """"problem", a text or none, "skipped", member -> reason, and where there is a problem "had": how many examples it
    had when it was read before, 0 if that is unknown."""
    verdict: Verdict


class PiecePlace(NamedTuple):
    """The files of a piece: its rows, and what some rules say of them."""

    rows: Path
    verdict: Path

    def load(self, identity: str) -> ShardPiece | None:
        """The piece of a shard of this identity, if it is kept there."""
        rows, verdict = self.load_rows(identity), read_piece(self.verdict, identity)
        if rows is None or verdict is None or len(verdict[0]["states"]) != len(rows[0]):
            return None
        return ShardPiece(*rows, Verdict(verdict[0]["states"], verdict[0]["values"], verdict[1]))

    def load_rows(self, identity: str) -> tuple[np.ndarray, dict[str, Any]] | None:
        """The rows and notes, whatever the rules were."""
        read = read_piece(self.rows, identity)
        return None if read is None else (read[0]["rows"], read[1])

    @property
    def had(self) -> int:
        """How many examples the shard of this name had when it was read before, whichever it was."""
        read = read_piece(self.rows, None)
        return 0 if read is None else max(len(read[0]["rows"]), read[1].get("had", 0))

    def save(self, identity: str, piece: ShardPiece) -> None:
        """Keep a piece. Raises `OSError`."""
        write_piece(self.rows, identity, {"rows": piece.rows}, piece.notes)
        states, values, notes = piece.verdict
        write_piece(self.verdict, identity, {"states": states, "values": values}, notes)


def index_piece(file: ShardFile, rules: Rules, place: PiecePlace, keep: bool = True) -> ShardPiece:
    """Read a shard, or judge it anew where its rows are kept in `place`. Raises a `UserError` where it is replaced
    meanwhile."""
    known = place.load_rows(file.identity) if keep and file.identity else None
    judge, scan, needed = Selector(rules), ShardScan(), rules.read_all
    examples = scanned(file, scan) if known is None else indexed(file, known[0])
    for number, (what, read, size) in enumerate(examples):
        if number == 0 and not needed:  # the first decides, so that a large foreign shard is not read through
            needed = may_state(read)
        if needed:
            judge.read(read, size, lambda: BrokenExample(NO_CAPTION), f"{what} in {file.name}")
        else:
            judge.accept()
    had = {} if known or scan.problem is None else {"had": place.had}
    rows, notes = known or (scan.array(), {"problem": scan.problem, "skipped": scan.skipped, **had})
    hint = apart_hint(os.path.basename(file.name))
    judge.broken = [
        (place, reason + hint if reason == NO_CAPTION and rows["apart"][place] else reason)
        for place, reason in judge.broken
    ]
    return ShardPiece(rows, notes, judge.verdict())


def scanned(file: ShardFile, scan: ShardScan) -> Iterator[tuple[str, Read, Size]]:
    """A name of each example of a shard, and what reads its metadata and the size of its image."""
    for entry, view in scan_shard(file, scan):
        yield entry.key, functools.partial(entry.meta, view), functools.partial(sides_in, entry, view)


def indexed(file: ShardFile, rows: np.ndarray) -> Iterator[tuple[str, Read, Size]]:
    """As `scanned`, of a shard whose index is known."""
    for number, (start, blocks) in enumerate(zip(rows["start"].tolist(), rows["blocks"].tolist(), strict=True)):
        place = file, start * BLOCK, blocks * BLOCK
        yield f"example {number}", functools.partial(read_at, *place), functools.partial(size_at, *place)


def read_at(file: ShardFile, start: int, size: int) -> dict[str, Any]:
    """The metadata of the example in these bytes of a shard."""
    view = file.part(start, size)
    return entry_of(view).meta(view)


def size_at(file: ShardFile, start: int, size: int) -> tuple[int, int]:
    """The width and height of the image of the example in these bytes of a shard."""
    view = file.part(start, size)
    return sides_in(entry_of(view), view)


def sides_in(entry: Entry, view: View) -> tuple[int, int]:
    """The width and height of an example's image."""
    return image_size(functools.partial(entry.image_start, view))


def may_state(read: Read) -> bool:
    """Whether metadata states a split, kind or style; also where it cannot be read."""
    try:
        return not {"split", "kind", "style"}.isdisjoint(read())
    except (ValueError, OSError):
        return True
