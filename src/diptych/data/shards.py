"""WebDataset shards: tar files in which the members of one example stand together under one key.

Writing is deterministic (fixed times and owners, given order) and atomic. Reading is random access: the headers are
scanned once, members are read in place with `os.pread`. Only members on the allow-list are ever opened, nothing is
unpickled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from diptych.data.tars import members as tar_members

PICTURES = ("png", "jpg", "jpeg", "webp")
ALLOWED = (*PICTURES, "json", "txt")


def write_shard(path: Path, samples: Iterable[tuple[str, Mapping[str, bytes]]]) -> dict:
    """Write (key, {extension: bytes}) samples as one tar; returns {"file", "samples", "bytes", "sha256"}."""
    temporary = path.with_name(f".{path.name}.partial")
    count = 0
    try:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar:
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
class Entry:
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
        self._file: int | None = None
        self.entries = self._scan()

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, index: int, extension: str) -> bytes:
        """The bytes of one member. Raises `ValueError` when the file ends before the member does."""
        offset, size = self.entries[index].members[extension]
        if self._file is None:
            self._file = os.open(self.path, os.O_RDONLY)
        data = os.pread(self._file, size, offset)
        if len(data) != size:
            raise ValueError(f"member .{extension} is cut short: {len(data)} of {size} bytes")
        return data

    def _scan(self) -> list[Entry]:
        entries: list[Entry] = []
        try:
            self._file = os.open(self.path, os.O_RDONLY)  # kept: a folder swapped later does not mix two builds
            for name, offset, size in tar_members(self.path):
                folder, _, base = name.rpartition("/")
                stem, _, extension = base.partition(".")
                extension = extension.lower()
                if extension not in ALLOWED:
                    continue
                key = f"{folder}/{stem}" if folder else stem
                if not entries or entries[-1].key != key:
                    entries.append(Entry(key, {}))
                entries[-1].members[extension] = (offset, size)
        except (ValueError, OSError) as error:
            self.problem = f"not a whole tar file: {error}"
        return entries

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None}

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            os.close(self._file)  # type: ignore[arg-type]
