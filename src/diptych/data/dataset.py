"""Captioned pictures by index, from WebDataset shards or from a folder of picture files."""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from diptych.core.errors import NothingThere, UserError
from diptych.core.hashing import stable_hash
from diptych.core.image_files import opened
from diptych.core.progress import track
from diptych.data.box_layouts import FIELD, layout_of, require_layout
from diptych.data.caption_text import labels_of, one_line
from diptych.data.dataset_config import DataConfig, Split
from diptych.data.decode import decode
from diptych.data.folders import FolderSource
from diptych.data.paths import walk
from diptych.data.quarantine import Broken, Quarantine, reason_of
from diptych.data.shards import PICTURES, ShardSource

__all__ = ["DataConfig", "Example", "ExampleSource", "PictureDataset", "Split", "open_dataset"]
Fit = Callable[[str], str]
"""As much of a caption as a model reads, all of it where that fits. Raises a `UserError` for what it cannot read."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One captioned picture."""

    picture: np.ndarray
    """uint8 (H, W, 3): the square that the config says, or more than that where training draws what it sees of it
    (`augment.view`)."""
    captions: tuple[str, ...]
    """At least one; the empty one alone where there is none and none is read."""
    meta: dict[str, Any]
    """What the data says about it: concept, style, objects, foils, ..."""
    key: str


class ExampleSource(Protocol):
    """Examples as they lie on disk, by index."""

    left: dict[str, str]
    """What looks like data and is no example or no part of one: its name, and why."""

    def __len__(self) -> int: ...

    def key(self, index: int) -> tuple[str, str]:
        """(shard or folder, key), as text that can be shown."""
        ...

    def meta(self, index: int) -> dict[str, Any]:
        """The metadata with "captions" in it, none or more. Raises any `Exception` when broken."""
        ...

    def picture(self, index: int) -> bytes:
        """The encoded picture. Raises any `Exception` when broken."""
        ...

    def no_caption(self, index: int) -> Broken:
        """The error of an example that has none."""
        ...

    def states_split(self, index: int) -> bool:
        """Whether the metadata of this example may state kind, style and split (if not, it need not be read)."""
        ...


class PictureDataset:
    """Captioned pictures by index. A broken one is set aside and another takes its place, the same one each time.

    Raises `UserError` when more than the stated share of what was read is broken.
    """

    def __init__(
        self, source: ExampleSource, config: DataConfig, quarantine: Quarantine, captions: bool = True
    ) -> None:
        """captions: whether any are read; an example without one is broken then, and only then."""
        self.config, self.quarantine, self.source, self.captions = config, quarantine, source, captions
        self.fit: Fit | None = None
        """What the model reads of a caption; none for all of it."""
        quarantine.besides = source.left
        self._seen, self._broken = bytearray(len(source)), bytearray(len(source))
        self._cache: dict[int, tuple[np.ndarray, dict[str, Any]]] = {}
        self._layouts: dict[int, str] = {}
        self._chosen, self._held_out = self._choose()
        self._indices = self._of_split(config.split)

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
        raise UserError(f"{self.config.path}: no readable example found in 64 tries ({self.quarantine.reasons()})")

    def split(self, name: Split, **changes: Any) -> PictureDataset:
        """Another split of the same data, what is broken in it counted with this one's; held-out pictures as they are,
        without flips. `changes` are of the config. Raises `NothingThere` where it has no example."""
        config = self.config.unchanged if name == "held-out" else self.config
        other = copy.copy(self)
        other.config, other._cache = dataclasses.replace(config, split=name, **changes), {}
        other._indices = other._of_split(name)
        return other

    def readable(self) -> Iterator[Example]:
        """Every example that can be read, once, in order; the others are set aside."""
        for index in map(int, self._indices):
            if (example := self._read(index)) is not None:
                yield example

    def all_captions(self) -> Iterator[str]:
        """Every caption of every example as training reads it; what is broken is set aside."""
        for index in map(int, self._indices):
            if not self._broken[index]:
                self.quarantine.seen += 1
                meta = self._guarded(index, lambda i: self._meta(i))
                yield from () if meta is None else meta["captions"]
        self.quarantine.check()
        self.quarantine.restart()

    def meta(self, index: int) -> dict[str, Any]:
        """Metadata of an example without decoding its picture. Raises whatever a broken one raises."""
        return self._meta(int(self._indices[index]))

    def sides(self, index: int) -> tuple[int, int]:
        """Width and height of a picture as it is stored. Raises whatever a broken one raises."""
        with opened(self.source.picture(int(self._indices[index]))) as picture:
            return picture.size

    @property
    def left_out(self) -> list[tuple[str, str, str]]:
        """(where, name, why) of all that is known not to be seen: what is no example, then what is broken."""
        where = one_line(str(self.config.path))
        named = [(where, name, why) for name, why in self.source.left.items()]
        return named + [(where, key, why) for (where, key), why in self.quarantine.broken.items()]

    def _read(self, index: int) -> Example | None:
        if self._broken[index]:
            return None
        if index in self._cache:
            picture, meta = self._cache[index]
        else:
            found = self._guarded(index, lambda i: (self._meta(i), self._decoded(i)))
            self._count(index)
            if found is None:
                self.quarantine.check()
                return None
            meta, picture = found
            if self.config.in_memory:
                self._cache[index] = picture, meta
        return Example(picture=picture, captions=tuple(meta["captions"]), meta=meta, key=self.source.key(index)[1])

    def _guarded(self, index: int, read: Callable[[int], Any]) -> Any:
        """What `read` makes of an example, or none where that fails: then the example is set aside."""
        try:
            return read(index)
        except UserError:
            raise
        except Exception as error:  # whatever a decoder raises on a broken file, a run must go on
            where, key = self.source.key(index)
            self.quarantine.add(where, key, reason_of(error, f"{key} in {where}"))
            self._broken[index] = 1  # it alone: another may have its key
            return None

    def _decoded(self, index: int) -> np.ndarray:
        return decode(self.source.picture(index), self.config.resized, square=not self.config.drawn)

    def _meta(self, index: int) -> dict[str, Any]:
        return self._captioned(index, self.source.meta(index))

    def _captioned(self, index: int, meta: dict[str, Any], opening: bool = False) -> dict[str, Any]:
        """Metadata with the captions that are read. At the opening no layout is measured and nothing is fitted."""
        field = self.config.caption_field
        if not self.captions:
            return {**meta, "captions": meta["captions"] or [""]}
        if field == FIELD:
            require_layout(meta)
            captions = [""] if opening else [self._layout(index, meta)]
        else:
            captions = meta["captions"] if field is None else labels_of(meta, field)
        if not captions:
            raise self.source.no_caption(index)
        return {**meta, "captions": captions if opening or self.fit is None else self._fitted(index, captions)}

    def _layout(self, index: int, meta: dict[str, Any]) -> str:
        if index not in self._layouts:
            self._layouts[index] = layout_of(meta, lambda: decode(self.source.picture(index), self.config.size))
        return self._layouts[index]

    def _fitted(self, index: int, captions: list[str]) -> list[str]:
        assert self.fit is not None
        kept, why = fitted_captions(captions, self.fit, self.config.long_captions)
        if not kept:
            raise Broken(why)
        if why:
            self.quarantine.note(*self.source.key(index), why)
        return kept

    def _count(self, index: int) -> None:
        if not self._seen[index]:
            self._seen[index] = 1
            self.quarantine.seen += 1

    def _choose(self) -> tuple[np.ndarray, np.ndarray]:
        """The places of the examples of these kinds and styles, and which of them are held out."""
        config, source = self.config, self.source
        chosen: list[int] = []
        held_out = bytearray()
        said: list[str] = []  # what the caption field says
        for index in track(range(len(source)), "reading captions"):
            meta: dict[str, Any] | None = {}
            if config.least > 1 or source.states_split(index):
                self.quarantine.seen += 1
                meta = self._guarded(index, lambda i: self._captioned(i, source.meta(i), opening=True))
            if meta is None:
                continue
            if config.kinds and meta.get("kind") not in config.kinds:
                continue
            if config.styles and meta.get("kind", "single") == "single" and meta.get("style") not in config.styles:
                continue
            drawn = stable_hash("split", source.key(index)[1]) < config.held_out * 2**64
            chosen.append(index)
            held_out.append(meta["split"] == "held-out" if meta.get("split") else drawn)
            if config.least > 1:
                said.append(str(meta.get(config.caption_field or "", "")))
        self.quarantine.check()
        self.quarantine.restart()
        if config.least > 1:
            times = Counter(said)
            kept = [place for place, one in enumerate(said) if times[one] >= config.least]
            chosen, held_out = [chosen[place] for place in kept], bytearray(held_out[place] for place in kept)
        return np.array(chosen, dtype=np.int64), np.frombuffer(held_out, dtype=np.uint8).astype(bool)

    def _of_split(self, split: Split) -> np.ndarray:
        """The places of the examples of a split. Raises `NothingThere`, or a `UserError` where nothing can be read."""
        config, chosen = self.config, self._chosen
        indices = chosen if split == "all" else chosen[self._held_out == (split == "held-out")]
        if len(indices):
            return indices
        if not len(chosen) and all(self._broken):
            raise UserError(
                f"{config.path}: none of {len(self.source)} examples can be read ({self.quarantine.reasons()})"
            )
        kinds = " with these kinds and styles" if config.kinds or config.styles else ""
        raise NothingThere(f"{config.path} has no example of split {split!r}{kinds}")


def fitted_captions(captions: list[str], fit: Fit, long_captions: str) -> tuple[list[str], str]:
    """Captions as a model reads them, cut or left out where they are too long, and what was done to the last such one
    (empty: nothing)."""
    kept, why = [], ""
    for caption in captions:
        try:
            shorter = fit(caption)
        except UserError as error:
            why = f"its caption cannot be read by this model: {error}"
            continue
        if shorter != caption:
            cut = f"cut after {shorter[-30:]!r}" if long_captions == "cut" and shorter else "left out"
            why = f"its caption is longer than the text encoder reads: {cut}"
        if shorter == caption or (long_captions == "cut" and shorter):
            kept.append(shorter)
    return kept, why


def open_dataset(config: DataConfig, *, captions: bool = True, record: Path | None = None) -> PictureDataset:
    """Open a folder of shards, or of pictures with captions, as `config.path` says.

    captions: whether any are read; without, pictures need none. record: the file that gets a line for each example that
    is left out, where the config names none.

    Raises `UserError` when there is nothing to read there.
    """
    path = Path(config.path)
    if not path.exists():
        raise UserError(
            f"no data at {path}: give a folder of .tar shards or of pictures (`diptych data emoji` makes one)"
        )
    if not path.is_dir() and not (path.is_file() and path.suffix.casefold() == ".tar"):
        raise UserError(f"{path} is a file: give a folder of .tar shards or of pictures, or one .tar")
    quarantine = Quarantine(Path(config.quarantine) if config.quarantine else record, config.max_failure_rate)
    source = open_source(path)
    if isinstance(source, ShardSource):
        for name, shard in zip(source.names, source.shards, strict=True):
            if shard.problem:
                quarantine.seen += 1
                quarantine.add(name, f"what follows example {len(shard)}", shard.problem)
    if not len(source):
        quarantine.besides = source.left
        reasons = quarantine.reasons()
        raise UserError(
            f"{path} holds no .tar shards and no pictures with captions" + (f" ({reasons})" if reasons else "")
        )
    return PictureDataset(source, config, quarantine, captions)


def open_source(path: Path) -> FolderSource | ShardSource:
    """The shards under a folder, or else its pictures; `path` may be one shard."""
    left: dict[str, str] = {}
    if not path.is_dir():
        return ShardSource([path], path.parent, left)
    others: list[Path] = []
    tars = [file for file in walk(path, left) if file.suffix.casefold() == ".tar" or others.append(file)]
    if not tars:
        return FolderSource(path)
    for file in others:
        if file.suffix.casefold().lstrip(".") in PICTURES:
            left[one_line(str(file.relative_to(path)))] = (
                "a picture beside shards: the shards are read, and nothing else"
            )
    return ShardSource(sorted(tars), path, left)
