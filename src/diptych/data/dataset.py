"""Captioned pictures by index, from WebDataset shards or from a folder of picture files."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from diptych.data.config import DataConfig, Split
from diptych.data.folders import FolderSource
from diptych.data.hashing import stable_hash
from diptych.data.layouts import FIELD, layout_of
from diptych.data.pictures import decode
from diptych.data.quarantine import Quarantine
from diptych.data.shards import PICTURES, Shard
from diptych.errors import NothingThere, UserError
from diptych.pictures import opened
from diptych.progress import track

__all__ = ["DataConfig", "Example", "PictureDataset", "Source", "Split", "open_dataset", "with_captions"]


@dataclasses.dataclass(frozen=True)
class Example:
    """One captioned picture."""

    picture: np.ndarray
    """uint8 (H, W, 3): the square that the config says, or more than that where training draws what it sees of it
    (`augment.view`)."""
    captions: tuple[str, ...]
    """At least one."""
    meta: dict[str, Any]
    """What the data says about it: concept, style, objects, foils, ..."""
    key: str


class Source(Protocol):
    """Examples as they lie on disk, by index."""

    def __len__(self) -> int: ...

    def key(self, index: int) -> tuple[str, str]:
        """(shard or folder, key)."""
        ...

    def meta(self, index: int) -> dict[str, Any]:
        """The metadata with "captions" in it. Raises any `Exception` when broken."""
        ...

    def picture(self, index: int) -> bytes:
        """The encoded picture. Raises any `Exception` when broken."""
        ...

    def tells_split(self, index: int) -> bool:
        """Whether the metadata of this example may state kind, style and split (if not, it need not be read)."""
        ...


class ShardSource:
    """The examples of all shards of a folder, in the order of file names."""

    def __init__(self, paths: list[Path]) -> None:
        self.shards = [Shard(path) for path in track(paths, "indexing shards")]
        self.starts = np.cumsum([0, *(len(shard) for shard in self.shards)])
        self._tells: dict[int, bool] = {}

    def __len__(self) -> int:
        return int(self.starts[-1])

    def _at(self, index: int) -> tuple[Shard, int]:
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        return self.shards[number], index - int(self.starts[number])

    def key(self, index: int) -> tuple[str, str]:
        shard, inner = self._at(index)
        return shard.path.name, shard.entries[inner].key

    def meta(self, index: int) -> dict[str, Any]:
        shard, inner = self._at(index)
        members = shard.entries[inner].members
        meta = json.loads(shard.read(inner, "json")) if "json" in members else {}
        if not isinstance(meta, dict):
            raise ValueError("its .json holds no object")
        text = shard.read(inner, "txt").decode("utf-8").strip() if "txt" in members and "captions" not in meta else None
        return with_captions(meta, text)

    def picture(self, index: int) -> bytes:
        shard, inner = self._at(index)
        extension = next((e for e in PICTURES if e in shard.entries[inner].members), None)
        if extension is None:
            raise ValueError("no picture (.png, .jpg, .jpeg or .webp)")
        return shard.read(inner, extension)

    def tells_split(self, index: int) -> bool:
        """Decided by the first example of its shard, so that a large foreign shard is not read through at opening."""
        number = int(np.searchsorted(self.starts, index, side="right")) - 1
        if number not in self._tells:
            try:
                self._tells[number] = bool({"split", "kind", "style"} & set(self.meta(int(self.starts[number]))))
            except Exception:
                self._tells[number] = True
        return self._tells[number]


def with_captions(meta: dict[str, Any], text: str | None) -> dict[str, Any]:
    """Metadata with a list "captions": its own, else the text beside it, else its "caption". Raises `ValueError`."""
    captions = meta.get("captions") or ([text] if text else None) or [meta.get("caption") or meta.get("text") or ""]
    if isinstance(captions, str):
        captions = [captions]
    kept = [caption.strip() for caption in captions if isinstance(caption, str) and caption.strip()]
    if not kept:
        raise ValueError("no caption")
    return {**meta, "captions": kept}


class PictureDataset:
    """Captioned pictures by index. A broken one is set aside and another takes its place, the same one each time.

    Raises `UserError` when more than the stated share of what was read is broken.
    """

    def __init__(self, source: Source, config: DataConfig, quarantine: Quarantine) -> None:
        self.config, self.quarantine, self._source = config, quarantine, source
        self._seen = bytearray(len(source))
        self._indices = self._choose()
        if not len(self._indices):
            raise NothingThere(f"{config.path} has no example of split {config.split!r} with these kinds and styles")
        self._cache: dict[int, tuple[np.ndarray, dict[str, Any]]] = {}
        self._layouts: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        tried = index
        for attempt in range(64):
            example = self._read(int(self._indices[tried]))
            if example is not None:
                return example
            tried = stable_hash("instead", str(index), str(attempt)) % len(self)
        raise UserError(f"{self.config.path}: no readable example found in 64 tries")

    def _read(self, index: int) -> Example | None:
        where, key = self._source.key(index)
        if (where, key) in self.quarantine.broken:
            return None
        if index in self._cache:
            picture, meta = self._cache[index]
        else:
            try:
                meta = self._meta(index)
                picture = decode(self._source.picture(index), self.config.resized, square=not self.config.drawn)
            except Exception as error:  # whatever a decoder raises on a broken file, a run must go on
                self._count(index)
                self.quarantine.add(where, key, _reason(error))
                self.quarantine.check()
                return None
            self._count(index)
            if self.config.in_memory:
                self._cache[index] = picture, meta
        return Example(picture=picture, captions=tuple(meta["captions"]), meta=meta, key=key)

    def meta(self, index: int) -> dict[str, Any]:
        """Metadata of an example without decoding its picture. Raises whatever a broken one raises."""
        return self._meta(int(self._indices[index]))

    def _meta(self, index: int) -> dict[str, Any]:
        meta, field = self._source.meta(index), self.config.caption_field
        if field == FIELD:
            if index not in self._layouts:
                self._layouts[index] = layout_of(meta, lambda: decode(self._source.picture(index), self.config.size))
            return {**meta, "captions": [self._layouts[index]]}
        return meta if field is None else {**meta, "captions": [str(meta[field])]}

    def sides(self, index: int) -> tuple[int, int]:
        """Width and height of a picture as it is stored. Raises whatever a broken one raises."""
        with opened(self._source.picture(int(self._indices[index]))) as picture:
            return picture.size

    def _count(self, index: int) -> None:
        if not self._seen[index]:
            self._seen[index] = 1
            self.quarantine.seen += 1

    def _choose(self) -> np.ndarray:
        config = self.config
        kept: list[tuple[int, str, str]] = []  # where, split, what the caption field says
        for index in track(range(len(self._source)), "reading captions"):
            where, key = self._source.key(index)
            meta: dict[str, Any] = {}
            if config.least > 1 or self._source.tells_split(index):
                self.quarantine.seen += 1
                try:
                    meta = self._source.meta(index)
                except Exception as error:
                    self.quarantine.add(where, key, _reason(error))
                    continue
            split = meta.get("split") or (
                "held-out" if stable_hash("split", key) < config.held_out * 2**64 else "train"
            )
            if config.kinds and meta.get("kind") not in config.kinds:
                continue
            if config.styles and meta.get("kind", "single") == "single" and meta.get("style") not in config.styles:
                continue
            kept.append((index, split, str(meta.get(config.caption_field or "", ""))))
        self.quarantine.check()
        self.quarantine.restart()
        times = Counter(said for _, _, said in kept)
        chosen = [
            index for index, split, said in kept if config.split in ("all", split) and times[said] >= config.least
        ]
        return np.array(chosen, dtype=np.int64)


def open_dataset(config: DataConfig) -> PictureDataset:
    """Open a folder of shards, or of pictures with captions, as `config.path` says.

    Raises `UserError` when there is nothing to read there.
    """
    path = Path(config.path)
    if not path.exists():
        raise UserError(
            f"no data at {path}: give a folder of .tar shards or of pictures (`diptych data emoji` makes one)"
        )
    quarantine = Quarantine(Path(config.quarantine) if config.quarantine else _beside(path), config.max_failure_rate)
    tars = [path] if path.suffix == ".tar" else sorted(path.rglob("*.tar"))
    source: Source = ShardSource(tars) if tars else FolderSource(path)
    if isinstance(source, ShardSource):
        for shard in source.shards:
            if shard.problem:
                quarantine.seen += 1
                quarantine.add(shard.path.name, f"{shard.path.name} after {len(shard)} examples", shard.problem)
    if not len(source):
        raise UserError(f"{path} holds no .tar shards and no pictures with captions")
    return PictureDataset(source, config, quarantine)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _beside(path: Path) -> Path:
    return (path if path.is_dir() else path.parent) / "quarantine.jsonl"
