"""Offsets of the members of a tar file: reads headers alone, some six times as fast as `tarfile`; a broken one raises.

POSIX.1-1988 (ustar), GNU long names and POSIX.1-2001 (pax) `path` and `size`; every header's checksum is verified.
Time and memory are linear in the file's size, whatever its headers say.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

BLOCK = 512
MAX_HEADER_BYTES = 2**20
"""Largest extension header (a long name, pax records), in bytes."""
_EMPTY = bytes(BLOCK)
_REGULAR = b"0\x007"
_NO_CONTENT = b"123456"
"""Links, devices, folders and pipes: no data follows, whatever size they state."""
_PACKED = (
    (b"\x1f\x8b", "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"PK\3\4", "zip"),
)
OnSkipped = Callable[[str, str], None]


def members(path: Path, on_skipped: OnSkipped | None = None) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of each regular file in the archive; `on_skipped(name, reason)` gets the others.

    Raises `ValueError` at the first header that is broken or cut off, after all members before it.
    """
    with open(path, "rb") as file:
        yield from members_of(file.fileno(), on_skipped)


def members_of(number: int, on_skipped: OnSkipped | None = None) -> Iterator[tuple[str, int, int]]:
    """As `members`, of an open file."""
    if os.fstat(number).st_size == 0:
        raise ValueError("the file is empty")
    with mmap.mmap(number, 0, access=mmap.ACCESS_READ) as data:
        packed = next((name for mark, name in _PACKED if data[: len(mark)] == mark), None)
        if packed is not None:
            raise ValueError(f"it is compressed with {packed}: unpack it")
        yield from _members(data, on_skipped or (lambda name, reason: None))


def _members(data: mmap.mmap, on_skipped: OnSkipped) -> Iterator[tuple[str, int, int]]:
    at, name, size, sparse = 0, None, None, False  # of the next member, from extension headers
    while at < len(data):
        header = data[at : at + BLOCK]
        if header == _EMPTY:
            return
        kind, length = header[156:157], _checked_size(header, at)
        start = at + BLOCK
        if kind in b"xgLK":
            if length > MAX_HEADER_BYTES:
                raise ValueError(f"an extension header of {length:,} bytes at byte {at}")
            body = data[start : start + length]
            if kind == b"L":
                name = body.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
            elif kind == b"x":
                records = _pax(body, at)
                name, size = records.get("path", name), int(records["size"]) if "size" in records else size
                sparse = any(key.startswith("GNU.sparse") for key in records)
        else:
            length = 0 if kind in _NO_CONTENT else length if size is None else size
            member = name if name is not None else _name(header)
            if start + length > len(data):
                raise ValueError(f"the file is cut off within {member[:200]!r}")
            if kind == b"S" or sparse:
                on_skipped(member, "a sparse file: pack it without --sparse")
                more = header[482:483] if kind == b"S" else b""
                while more == b"\1":  # blocks with more of its map
                    more, start = data[start + 504 : start + 505], start + BLOCK
            elif kind in b"12":
                on_skipped(member, "a link: pack the file itself (tar --dereference --hard-dereference)")
            elif kind in _REGULAR and not member.endswith("/"):
                yield member, start, length
            name, size, sparse = None, None, False
        at = start + -(-length // BLOCK) * BLOCK
    if at > len(data):
        raise ValueError("the file is cut off")


def _checked_size(header: bytes, at: int) -> int:
    """The size in a header. Raises `ValueError` unless the header is whole."""
    try:
        stated = int(header[148:156].strip(b" \0"), 8)
        raw = header[124:136]
        size = int.from_bytes(raw[1:], "big") if raw[0] == 0x80 else int(raw.strip(b" \0") or b"0", 8)
    except (ValueError, IndexError):
        stated, size = -1, 0
    # the checksum is taken as if its own eight bytes were spaces
    if len(header) < BLOCK or stated != sum(header[:148]) + 8 * 32 + sum(header[156:]) or size < 0:
        raise ValueError(f"broken header at byte {at}")
    return size


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "surrogateescape")


def _pax(body: bytes, at: int) -> dict[str, str]:
    """Records of the form "<length> <key>=<value>\\n". Raises `ValueError`."""
    records: dict[str, str] = {}
    place, end = 0, len(body.rstrip(b"\0"))
    while place < end:
        number = body[place : place + 20].partition(b" ")[0]
        length = int(number) if number.isdigit() else 0
        begins, ends = place + len(number) + 1, place + length - 1  # between the blank and the line break
        key, equals, value = body[begins:ends].partition(b"=")
        if not equals or begins >= ends or ends >= len(body):
            raise ValueError(f"broken extension header at byte {at}")
        records[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        place += length
    size = records.get("size", "0")
    if not (size.isascii() and size.isdigit() and len(size) <= 20):
        raise ValueError(f"broken extension header at byte {at}")
    return records
