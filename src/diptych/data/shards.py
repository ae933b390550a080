"""WebDataset shards: tar files in which the members of one example stand together under one key.

Writing is deterministic (fixed times and owners, given order) and atomic. Reading is random access: the headers are
scanned once, members are read in place with `os.pread`. Only members on the allow-list are ever opened, nothing is
unpickled. What a name's first dot parts is key and extension, as WebDataset has it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import os
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from diptych.core.disk import disk_errors
from diptych.core.progress import track
from diptych.data.caption_text import LONGEST_TEXT, decoded, metadata, one_line, parsed, with_captions
from diptych.data.openfiles import FILES
from diptych.data.paths import LARGEST, no_data
from diptych.data.quarantine import Broken, reason_of
from diptych.data.tars import members_of

PICTURES = ("png", "jpg", "jpeg", "webp", "jpe", "jfif", "pjpeg")
"""Extensions of pictures that are read, known by their content then: PNG, JPEG, WebP."""
OTHER_PICTURES = (
    *("gif", "bmp", "dib", "tif", "tiff", "avif", "heic", "heif", "jxl", "jp2", "j2k", "ppm", "pgm", "pbm", "pnm"),
    *("tga", "ico", "svg", "psd", "exr", "hdr", "dng", "cr2", "nef", "arw", "eps"),
)
"""Extensions of pictures that are not: what lies in data by them is named as left out."""
CONVERT = "convert them to PNG, JPEG or WebP"
TEXTS = ("txt", "caption")
"""Extensions of captions."""
CLASS = "cls"
"""Extension, and field, of an example's class."""
ALLOWED = (*PICTURES, *TEXTS, "json", CLASS)


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


@dataclasses.dataclass
class ShardEntry:
    """One example of a shard: where each allowed member lies."""

    key: str
    members: dict[str, tuple[int, int]]
    """extension -> (offset, size)"""


class Shard:
    """A tar file, its headers scanned once, read by index with `os.pread` (safe from several threads)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problem: str | None = None
        """Why the rest of the file could not be scanned, None when it is whole."""
        self.left: dict[str, str] = {}
        """Members that look like data and are none of an example's: their names, and why."""
        self.parted: set[str] = set()
        """Keys that stand in more than one place of the shard."""
        self.entries = self._scan()

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, index: int, extension: str) -> bytes:
        """The bytes of one member. Raises `Broken` when it is too large, or the file ends before it does."""
        offset, size = self.entries[index].members[extension]
        most = LARGEST if extension in PICTURES else LONGEST_TEXT
        if size > most:
            raise Broken(f"its .{extension} is larger than {most // 2**20} MiB")
        with FILES.opened(self.path, self.identity) as number:
            data = os.pread(number, size, offset)
        if len(data) != size:
            raise Broken(f"its .{extension} is cut short: {len(data)} of {size} bytes")
        return data

    def missing(self, index: int, what: str) -> Broken:
        """The error of an example without a picture or a caption."""
        key = self.entries[index].key
        apart = f": its members do not stand together in {self.path.name}, sort them by name"
        return Broken(what + (apart if key in self.parted else ""))

    def _scan(self) -> list[ShardEntry]:
        entries: list[ShardEntry] = []
        keys: set[str] = set()
        try:
            self.identity = FILES.identify(self.path)  # kept open: a folder swapped later does not mix two builds
            with FILES.opened(self.path, self.identity) as number:
                for name, offset, size in members_of(number, self._leave):
                    self._place(name, (offset, size), entries, keys)
        except (ValueError, OSError) as error:
            if isinstance(error, OSError):
                reason_of(error, str(self.path))
            said = error.strerror if isinstance(error, OSError) else str(error)
            self.problem = (
                said if said and said.startswith(("it is", "the file is empty")) else f"not a whole tar: {said}"
            )
        return entries

    def _place(self, name: str, place: tuple[int, int], entries: list[ShardEntry], keys: set[str]) -> None:
        """Put a member where it belongs: to the example before it if that has its key, else to a new one."""
        folder, _, base = name.rpartition("/")
        stem, _, extension = base.partition(".")
        extension = extension.lower()
        if no_data(base) or any(map(no_data, folder.split("/"))):
            return
        if extension not in ALLOWED:
            self._leave(name, "")
            return
        key = f"{folder}/{stem}" if folder else stem
        if not entries or entries[-1].key != key:
            if key in keys:
                self.parted.add(key)
            keys.add(key)
            entries.append(ShardEntry(key, {}))
        elif extension in entries[-1].members:
            self.left[name] = "the same name twice: the last is read, as tar does"
        else:
            others = entries[-1].members
            for kind, what in ((PICTURES, "picture"), (TEXTS, "caption")):
                if extension in kind and (two := [one for one in kind if one in others or one == extension])[1:]:
                    self.left[f"{key}.{two[-1]}"] = f"another {what} of its example: .{two[0]} is read"
        entries[-1].members[extension] = place

    def _leave(self, name: str, reason: str) -> None:
        """Keep what is not read of the names that look like data."""
        base = name.rpartition("/")[2]
        last = base.rpartition(".")[2]
        if no_data(base) or (last := last.lower()) not in (*ALLOWED, *OTHER_PICTURES):
            return
        if not reason and last in OTHER_PICTURES:
            reason = f".{last} pictures are not read: {CONVERT}"
        if not reason:
            reason = f"a dot in its name: WebDataset takes {base.partition('.')[2]!r} for what it holds"
        self.left[name] = reason


class ShardSource:
    """The examples of all shards, in the order of file names. `left`: what else is known not to be read, and why."""

    def __init__(self, paths: list[Path], folder: Path, left: dict[str, str]) -> None:
        self.shards = [Shard(path) for path in track(paths, "indexing shards")]
        self.names = [one_line(os.path.relpath(path, folder)) for path in paths]
        self.starts = np.cumsum([0, *(len(shard) for shard in self.shards)])
        self.left = left
        for where, shard in zip(self.names, self.shards, strict=True):
            left.update({f"{one_line(name)} in {where}": why for name, why in shard.left.items()})
            if not len(shard) and shard.problem is None:
                left[where] = "a shard without pictures or captions"
        self._states: dict[int, bool] = {}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _at(self, index: int) -> tuple[Shard, int]:
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.shards[number], index - int(self.starts[number])

    def key(self, index: int) -> tuple[str, str]:
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.names[number], one_line(self.shards[number].entries[index - int(self.starts[number])].key)

    def meta(self, index: int) -> dict[str, Any]:
        shard, inner = self._at(index)
        key, members = shard.entries[inner].key, shard.entries[inner].members
        name, meta = one_line(key), {}
        if "json" in members:
            read = decoded(shard.read(inner, "json"), f"{name}.json")
            meta = metadata(parsed(read, f"{name}.json"), f"{name}.json")
        text = None
        if (extension := next((e for e in TEXTS if e in members), None)) is not None and not meta.get("captions"):
            text = decoded(shard.read(inner, extension), f"{name}.{extension}")
        own = {"folder": key.split("/")[-2]} if "/" in key else {}
        if CLASS in members:
            with contextlib.suppress(Broken):  # of no text: an example without a class
                own[CLASS] = decoded(shard.read(inner, CLASS), f"{name}.{CLASS}").strip()
        return with_captions({**own, **meta}, text)

    def picture(self, index: int) -> bytes:
        shard, inner = self._at(index)
        extension = next((e for e in PICTURES if e in shard.entries[inner].members), None)
        if extension is None:
            raise shard.missing(inner, "no picture (.png, .jpg, .jpeg or .webp)")
        return shard.read(inner, extension)

    def no_caption(self, index: int) -> Broken:
        shard, inner = self._at(index)
        return shard.missing(inner, "no caption")

    def states_split(self, index: int) -> bool:
        """Decided by the first example of its shard, so that a large foreign shard is not read through at opening."""
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        if number not in self._states:
            try:
                said = set(self.meta(int(self.starts[number])))
            except (ValueError, OSError):
                said = {"split"}
            self._states[number] = bool({"split", "kind", "style"} & said)
        return self._states[number]
