"""WebDataset shards: tar files in which the members of one example follow one another under one key.

Writing is deterministic (fixed times and owners, given order) and atomic. Reading is random access: the headers are
scanned once, members are read in place with `os.pread`. Only members on the allow-list are ever opened, nothing is
unpickled. The first dot of a name separates key and extension, as in WebDataset.
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
from diptych.data.caption_text import MAX_TEXT_BYTES, decode_text, metadata_object, one_line, parse_json, with_captions
from diptych.data.openfiles import FILES
from diptych.data.paths import MAX_IMAGE_BYTES, is_system_file
from diptych.data.quarantine import BrokenExample, reason_of
from diptych.data.tars import members_of

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
        self.skipped: dict[str, str] = {}
        """Members that belong to no example: name -> reason."""
        self.split_keys: set[str] = set()
        """Keys whose members are not consecutive."""
        self.entries = self._scan()

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, index: int, extension: str) -> bytes:
        """The bytes of one member. Raises `BrokenExample` when it is too large, or the file ends before it does."""
        offset, size = self.entries[index].members[extension]
        most = MAX_IMAGE_BYTES if extension in IMAGE_EXTENSIONS else MAX_TEXT_BYTES
        if size > most:
            raise BrokenExample(f"its .{extension} is larger than {most // 2**20} MiB")
        with FILES.opened(self.path, self.identity) as number:
            data = os.pread(number, size, offset)
        if len(data) != size:
            raise BrokenExample(f"its .{extension} is cut short: {len(data)} of {size} bytes")
        return data

    def missing(self, index: int, what: str) -> BrokenExample:
        """The error for an example without an image or a caption."""
        key = self.entries[index].key
        hint = f": its members do not stand together in {self.path.name}, sort them by name"
        return BrokenExample(what + (hint if key in self.split_keys else ""))

    def _scan(self) -> list[ShardEntry]:
        entries: list[ShardEntry] = []
        keys: set[str] = set()
        try:
            self.identity = FILES.identify(self.path)  # kept open: a folder swapped later does not mix two builds
            with FILES.opened(self.path, self.identity) as number:
                for name, offset, size in members_of(number, self._skip):
                    self._place(name, (offset, size), entries, keys)
        except (ValueError, OSError) as error:
            if isinstance(error, OSError):
                reason_of(error, str(self.path))
            reason = error.strerror if isinstance(error, OSError) else str(error)
            self.problem = (
                reason if reason and reason.startswith(("it is", "the file is empty")) else f"not a whole tar: {reason}"
            )
        return entries

    def _place(self, name: str, place: tuple[int, int], entries: list[ShardEntry], keys: set[str]) -> None:
        """Add a member to the last example if that has its key, else to a new one."""
        folder, _, base = name.rpartition("/")
        stem, _, extension = base.partition(".")
        extension = extension.lower()
        if is_system_file(base) or any(map(is_system_file, folder.split("/"))):
            return
        if extension not in MEMBER_EXTENSIONS:
            self._skip(name, "")
            return
        key = f"{folder}/{stem}" if folder else stem
        if not entries or entries[-1].key != key:
            if key in keys:
                self.split_keys.add(key)
            keys.add(key)
            entries.append(ShardEntry(key, {}))
        elif extension in entries[-1].members:
            self.skipped[name] = "the same name twice: the last is read, as tar does"
        else:
            members = entries[-1].members
            for kind, noun in ((IMAGE_EXTENSIONS, "image"), (CAPTION_EXTENSIONS, "caption")):
                if (
                    extension in kind
                    and (present := [other for other in kind if other in members or other == extension])[1:]
                ):
                    self.skipped[f"{key}.{present[-1]}"] = f"another {noun} of its example: .{present[0]} is read"
        entries[-1].members[extension] = place

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


class ShardSource:
    """The examples of all shards, in the order of file names. `skipped`: files that are not read, name -> reason."""

    def __init__(self, paths: list[Path], folder: Path, left: dict[str, str]) -> None:
        self.shards = [Shard(path) for path in track(paths, "indexing shards")]
        self.names = [one_line(os.path.relpath(path, folder)) for path in paths]
        self.starts = np.cumsum([0, *(len(shard) for shard in self.shards)])
        self.skipped = left
        for where, shard in zip(self.names, self.shards, strict=True):
            left.update({f"{one_line(name)} in {where}": why for name, why in shard.skipped.items()})
            if not len(shard) and shard.problem is None:
                left[where] = "a shard without images or captions"
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
            read = decode_text(shard.read(inner, "json"), f"{name}.json")
            meta = metadata_object(parse_json(read, f"{name}.json"), f"{name}.json")
        text = None
        if (extension := next((e for e in CAPTION_EXTENSIONS if e in members), None)) is not None and not meta.get(
            "captions"
        ):
            text = decode_text(shard.read(inner, extension), f"{name}.{extension}")
        fields = {"folder": key.split("/")[-2]} if "/" in key else {}
        if CLASS_EXTENSION in members:
            with contextlib.suppress(BrokenExample):  # of no text: an example without a class
                fields[CLASS_EXTENSION] = decode_text(
                    shard.read(inner, CLASS_EXTENSION), f"{name}.{CLASS_EXTENSION}"
                ).strip()
        return with_captions({**fields, **meta}, text)

    def image_bytes(self, index: int) -> bytes:
        shard, inner = self._at(index)
        extension = next((e for e in IMAGE_EXTENSIONS if e in shard.entries[inner].members), None)
        if extension is None:
            raise shard.missing(inner, "no image (.png, .jpg, .jpeg or .webp)")
        return shard.read(inner, extension)

    def missing_caption(self, index: int) -> BrokenExample:
        shard, inner = self._at(index)
        return shard.missing(inner, "no caption")

    def may_state_split(self, index: int) -> bool:
        """Decided by the first example of its shard, so that a large foreign shard is not read through at opening."""
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        if number not in self._states:
            try:
                fields = set(self.meta(int(self.starts[number])))
            except (ValueError, OSError):
                fields = {"split"}
            self._states[number] = bool({"split", "kind", "style"} & fields)
        return self._states[number]
