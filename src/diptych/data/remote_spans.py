"""SparseView of shards in stores, read ahead with few requests; of captions without the images between them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from diptych.data.remote import REQUESTS, RemoteShard

Span = tuple[RemoteShard, int, int]
"""A shard, the first byte, and how many."""
GAP = 2**20
"""Bytes between two examples of a batch that are read along rather than by another request."""
HEAD, TAIL = 4096, 8192
"""Bytes at the beginning and at the end of an example in which the members beside its image usually lie."""
PASSED = 2**17
"""Bytes of an image for which, and for more, another request costs less than reading them along."""


class SparseView:
    """An example of which some parts were read; others are read when they are asked for. A `View`."""

    def __init__(self, span: Span, parts: Sequence[tuple[int, bytes]]) -> None:
        """parts: (first byte within the example, bytes) of each."""
        self.shard, self.start, self.size = span
        self.parts = parts

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, place: slice) -> bytes:
        first, last, _ = place.indices(self.size)
        if last <= first:
            return b""
        for start, data in self.parts:
            if start <= first and last <= start + len(data):
                return data[first - start : last - start]
        return self.shard.read(self.start + first, last - first)


def read_captions(spans: Sequence[Span]) -> list[bytes | SparseView]:
    """As `read_spans`, examples of which all but the images will be asked for: of large ones only their ends are read,
    and of neighbours the end of one and the beginning of the next at once."""
    pieces, of = list[Span](), list[list[int]]()
    for shard, start, size in spans:
        ends = [(0, HEAD), (size - TAIL, TAIL)] if size >= HEAD + PASSED + TAIL else [(0, size)]
        of.append([len(pieces) + number for number in range(len(ends))])
        pieces += [(shard, start + first, length) for first, length in ends]
    read, found = read_spans(pieces, PASSED), list[bytes | SparseView]()
    for span, numbers in zip(spans, of, strict=True):
        parts = [(pieces[number][1] - span[1], read[number]) for number in numbers]
        found.append(SparseView(span, parts) if len(parts) > 1 else parts[0][1])
    return found


def read_spans(spans: Sequence[Span], gap: int = GAP) -> list[bytes]:
    """The bytes of many spans, several requests at once; those less than `gap` apart in a shard come with one."""
    order = sorted(range(len(spans)), key=lambda n: (spans[n][0].address, spans[n][1]))
    groups: list[list[int]] = []
    end = 0
    for number in order:
        shard, start, size = spans[number]
        near = groups and spans[groups[-1][0]][0] is shard and start <= end + gap
        if near:
            groups[-1].append(number)
        else:
            groups.append([number])
        end = max(end, start + size) if near else start + size
    found: list[bytes] = [b""] * len(spans)

    def read(group: list[int]) -> None:
        shard, first, _ = spans[group[0]]
        data = shard.read(first, max(start + size for _, start, size in (spans[n] for n in group)) - first)
        for number in group:
            _, start, size = spans[number]
            found[number] = data[start - first : start - first + size]

    with ThreadPoolExecutor(min(REQUESTS, len(groups) or 1), thread_name_prefix="store") as pool:
        list(pool.map(read, groups))
    return found
