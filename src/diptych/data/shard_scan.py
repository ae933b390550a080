"""The examples of a WebDataset shard: members that follow one another under one key.

The first dot of a name separates key and extension, as in WebDataset. Only members on the allow-list are ever read,
nothing is unpickled. An example is a run of bytes, from its first header to the end of its last member; an index holds
its place alone, and names and sizes are read from the headers again.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from diptych.core.hashing import stable_hash
from diptych.data.caption_text import MAX_TEXT_BYTES, decode_text, metadata_object, one_line, parse_json, with_captions
from diptych.data.paths import MAX_IMAGE_BYTES, is_system_file
from diptych.data.quarantine import BrokenExample
from diptych.data.tars import BLOCK, Member, View, archive_members, members_of

IMAGE_EXTENSIONS = ("png", "jpg", "jpeg", "webp", "jpe", "jfif", "pjpeg")
"""Extensions of images that are read; the content decides between PNG, JPEG and WebP."""
UNSUPPORTED_EXTENSIONS = (
    *("gif", "bmp", "dib", "tif", "tiff", "avif", "heic", "heif", "jxl", "jp2", "j2k", "ppm", "pgm", "pbm", "pnm"),
    *("tga", "ico", "svg", "psd", "exr", "hdr", "dng", "cr2", "nef", "arw", "eps"),
)
"""Extensions of other images, which are listed as skipped."""
CONVERT_HINT = "convert them to PNG, JPEG or WebP"
CAPTION_EXTENSIONS = ("txt", "caption")
"""Extensions of captions."""
CLASS_EXTENSION = "cls"
"""Extension, and field, of an example's class."""
MEMBER_EXTENSIONS = (*IMAGE_EXTENSIONS, *CAPTION_EXTENSIONS, "json", CLASS_EXTENSION)
ROW = np.dtype([("start", "<u4"), ("blocks", "<u4"), ("hash", "<u8"), ("apart", "u1")])
"""What an index holds of an example: its first block of 512 bytes and their number, the hash of its key that decides
whether it is held out, and whether other members of its key stand elsewhere in the shard."""
NO_IMAGE, NO_CAPTION = "no image (.png, .jpg, .jpeg or .webp)", "no caption"


@dataclasses.dataclass
class Entry:
    """One example: where each allowed member lies."""

    key: str
    members: dict[str, tuple[int, int]]
    """extension -> (offset, size)"""
    start: int
    """Where its first header begins, and (`end`) where its last member ends."""
    end: int = 0

    def read(self, view: View, extension: str) -> bytes:
        """The bytes of one member. Raises `BrokenExample` when it is too large, or cut short."""
        offset, size = self.members[extension]
        most = MAX_IMAGE_BYTES if extension in IMAGE_EXTENSIONS else MAX_TEXT_BYTES
        if size > most:
            raise BrokenExample(f"its .{extension} is larger than {most // 2**20} MiB")
        data = bytes(view[offset : offset + size])
        if len(data) != size:
            raise BrokenExample(f"its .{extension} is cut short: {len(data)} of {size} bytes")
        return data

    def meta(self, view: View) -> dict[str, Any]:
        """The metadata with a list "captions", which may be empty. Raises `BrokenExample`."""
        name, meta = one_line(self.key), {}
        if "json" in self.members:
            read = decode_text(self.read(view, "json"), f"{name}.json")
            meta = metadata_object(parse_json(read, f"{name}.json"), f"{name}.json")
        text = None
        extension = next((e for e in CAPTION_EXTENSIONS if e in self.members), None)
        if extension is not None and not meta.get("captions"):
            text = decode_text(self.read(view, extension), f"{name}.{extension}")
        fields = {"folder": self.key.split("/")[-2]} if "/" in self.key else {}
        if CLASS_EXTENSION in self.members:
            with contextlib.suppress(BrokenExample):  # of no text: an example without a class
                fields[CLASS_EXTENSION] = decode_text(
                    self.read(view, CLASS_EXTENSION), f"{name}.{CLASS_EXTENSION}"
                ).strip()
        return with_captions({**fields, **meta}, text)

    def image(self, view: View) -> bytes:
        """The encoded image. Raises `BrokenExample`."""
        extension = next((e for e in IMAGE_EXTENSIONS if e in self.members), None)
        if extension is None:
            raise BrokenExample(NO_IMAGE)
        return self.read(view, extension)

    def image_start(self, view: View, size: int) -> bytes:
        """So many bytes of the encoded image, or all of fewer. Raises `BrokenExample` where there is none."""
        extension = next((e for e in IMAGE_EXTENSIONS if e in self.members), None)
        if extension is None:
            raise BrokenExample(NO_IMAGE)
        offset, whole = self.members[extension]
        return bytes(view[offset : offset + min(size, whole)])


class ShardScan:
    """Reads the headers of a shard once: iterate for its entries, then look at what was found on the way."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, int, int, int]] = []
        self.problem: str | None = None
        """Why the rest of the file could not be scanned, None when it is whole."""
        self.skipped: dict[str, str] = {}
        """Members that belong to no example: name -> reason."""
        self._last: dict[str, int] = {}  # key -> its last entry

    def entries(self, view: View) -> Iterator[Entry]:
        """The examples of a whole shard, in order, each when it is complete."""
        current: Entry | None = None
        try:
            for member in archive_members(view, self._skip):
                entry = self._place(member, current)
                if entry is not current:
                    if current is not None:
                        yield self._finished(current)
                    current = entry
        except ValueError as error:
            reason = str(error)
            self.problem = reason if reason.startswith(("it is", "the file is empty")) else f"not a whole tar: {reason}"
        if current is not None:
            yield self._finished(current)

    def array(self) -> np.ndarray:
        """What an index holds of the entries, in order."""
        return np.array(self.rows, dtype=ROW)

    def _finished(self, entry: Entry) -> Entry:
        number, apart = len(self.rows), 0
        if (before := self._last.get(entry.key)) is not None:
            self.rows[before] = (*self.rows[before][:3], 1)
            apart = 1
        self._last[entry.key] = number
        start, end = entry.start // BLOCK, -(-entry.end // BLOCK)
        if end >= 2**32:
            raise ValueError("a shard of more than 2 TiB")
        self.rows.append((start, end - start, stable_hash("split", one_line(entry.key)), apart))
        return entry

    def _place(self, member: Member, entry: Entry | None) -> Entry | None:
        """Add a member to the last example if that has its key, else to a new one, which is returned."""
        key, extension = key_of(member.name)
        if extension is None:
            if key:
                self._skip(member.name, "")
            return entry
        if entry is None or entry.key != key:
            entry = Entry(key, {}, member.header)
        elif extension in entry.members:
            self.skipped[member.name] = "the same name twice: the last is read, as tar does"
        else:
            for kind, noun in ((IMAGE_EXTENSIONS, "image"), (CAPTION_EXTENSIONS, "caption")):
                if extension in kind and (present := [e for e in kind if e in entry.members or e == extension])[1:]:
                    self.skipped[f"{key}.{present[-1]}"] = f"another {noun} of its example: .{present[0]} is read"
        entry.members[extension] = member.offset, member.size
        entry.end = member.offset + member.size
        return entry

    def _skip(self, name: str, reason: str) -> None:
        """Record a member that is not read, if its name is that of data."""
        base = name.rpartition("/")[2]
        last = base.rpartition(".")[2]
        if is_system_file(base) or (last := last.lower()) not in (*MEMBER_EXTENSIONS, *UNSUPPORTED_EXTENSIONS):
            return
        if not reason and last in UNSUPPORTED_EXTENSIONS:
            reason = f".{last} images are not read: {CONVERT_HINT}"
        if not reason:
            reason = f"a dot in its name: WebDataset takes {base.partition('.')[2]!r} for what it holds"
        self.skipped[name] = reason


def key_of(name: str) -> tuple[str, str | None]:
    """(key, extension) of a member; ("", none) for a file of the system's, (key, none) for others that are not read."""
    folder, _, base = name.rpartition("/")
    if is_system_file(base) or (folder and any(map(is_system_file, folder.split("/")))):
        return "", None
    stem, _, extension = base.partition(".")
    extension = extension.lower()
    return f"{folder}/{stem}" if folder else stem, extension if extension in MEMBER_EXTENSIONS else None


def entry_of(view: View) -> Entry:
    """The example whose bytes these are, of a place that a scan found. Raises `BrokenExample` where they are not."""
    entry: Entry | None = None
    try:
        for member in members_of(view):
            key, extension = key_of(member.name)
            if extension is None:
                continue
            if entry is None:
                entry = Entry(key, {}, 0)
            if key != entry.key:
                raise ValueError("members of another example")
            entry.members[extension] = member.offset, member.size
    except ValueError as error:
        raise BrokenExample(f"its shard was damaged after it was indexed ({error})") from None
    if entry is None:
        raise BrokenExample("its shard was damaged after it was indexed (no members)")
    return entry


def apart_hint(name: str) -> str:
    """What follows a reason where members of an example stand apart; name: the file name of its shard."""
    return f": its members do not stand together in {name}, sort them by name"
