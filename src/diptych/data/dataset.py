"""Captioned images by index, from WebDataset shards or from a folder of image files."""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from diptych.core.errors import NotFound, UserError
from diptych.core.hashing import stable_hash
from diptych.core.progress import track
from diptych.data.box_layouts import LAYOUT_FIELD, layout_of, require_layout
from diptych.data.caption_text import Fit, field_texts, fit_captions, one_line
from diptych.data.dataset_config import DataConfig, Split
from diptych.data.decode import decode, decode_image
from diptych.data.filters import filters_said
from diptych.data.folder_scan import Listing, index_folder, known_folder
from diptych.data.folders import FolderSource
from diptych.data.image_sides import image_size
from diptych.data.index_files import Arrays
from diptych.data.pixels import Pixels, Region, array_of
from diptych.data.quarantine import BrokenExample, Marks, Quarantine, reason_of
from diptych.data.remote import is_remote, remote_shards, shards_of_list
from diptych.data.selection import Selection
from diptych.data.shard_files import LocalShard
from diptych.data.shard_scan import IMAGE_EXTENSIONS
from diptych.data.shards import ShardSource

__all__ = ["DataConfig", "Example", "ExampleSource", "ImageDataset", "Split", "open_dataset"]
CAPTIONS_AHEAD = 256
"""Examples of a store whose captions are read at once."""
MOST_LAYOUTS = 2**16
"""Layouts that are kept once they were measured."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One captioned image."""

    decoded: Pixels
    """The centre crop of the config, or the whole image where `augment_image` crops at random."""
    captions: tuple[str, ...]
    """At least one; the empty caption where captions are not read."""
    meta: dict[str, Any]
    """Metadata: concept, style, objects, foils, ..."""
    key: str

    @property
    def image(self) -> np.ndarray:
        """`decoded` as an array, uint8 (H, W, 3)."""
        return array_of(self.decoded)


class ExampleSource(Protocol):
    """Examples on disk, by index."""

    skipped: dict[str, str]
    """Files, rows and members that belong to no example: name -> reason."""
    selection: Selection
    """Which examples are used, and of which split."""

    @property
    def index(self) -> Arrays:
        """The arrays in which it is kept."""
        ...

    def __len__(self) -> int: ...

    def key(self, index: int) -> tuple[str, str]:
        """(shard or folder, key), as printable text."""
        ...

    def meta(self, index: int) -> dict[str, Any]:
        """The metadata with a list "captions", which may be empty. Raises any `Exception` when broken."""
        ...

    def image_bytes(self, index: int) -> bytes:
        """The encoded image. Raises any `Exception` when broken."""
        ...

    def image_start(self, index: int, size: int) -> bytes:
        """So many bytes from the start of the encoded image, or all of fewer. Raises any `Exception` when broken."""
        ...

    def missing_caption(self, index: int) -> BrokenExample:
        """The error for an example without a caption."""
        ...

    def require_same(self, index: int) -> None:
        """Raise a `UserError` where the file of an example that cannot be read went or changed since the opening: then
        good examples are lost, and none is broken."""
        ...


class ImageDataset:
    """Captioned images by index. Another example, always the same one, replaces a broken one.

    Raises `UserError` when more than the stated share of what was read is broken.
    """

    def __init__(
        self, source: ExampleSource, config: DataConfig, quarantine: Quarantine, captions: bool = True
    ) -> None:
        """captions: whether captions are read; if so, an example without one is broken."""
        self.config, self.quarantine, self.source, self.captions = config, quarantine, source, captions
        self.fit: Fit | None = None
        """Cuts captions to the length that the model reads; none for whole captions."""
        quarantine.skipped = source.skipped
        self._seen, self._broken = Marks(len(source)), Marks(len(source))
        self._cache: dict[Any, tuple[np.ndarray, dict[str, Any]]] = {}
        self._layouts: dict[int, str] = {}
        self._recall()
        self._indices = self._of_split(config.split)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_indices"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._indices = self._of_split(self.config.split)  # another process maps the same file

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.read(index)

    def read(self, index: int, shape: tuple[int, int] | None = None) -> Example:
        """An example; shape: the height and width of its image, other than what the config says."""
        return next(example for _, example in self.tries(index, shape) if example is not None)

    def tries(self, index: int, shape: tuple[int, int] | None = None) -> Iterator[tuple[int, Example | None]]:
        """(number in the source, example, or none if it is broken) of an index, then of those that take its place."""
        tried = index
        for attempt in range(64):
            place = int(self._indices[tried])
            yield place, self._read(place, shape)
            tried = stable_hash("instead", str(index), str(attempt)) % len(self)
        raise UserError(f"{self.config.path}: no readable example found in 64 tries ({self.quarantine.reasons()})")

    def split(self, name: Split, **changes: Any) -> ImageDataset:
        """Another split of the same data, which shares the quarantine; held-out images without augmentation.
        `changes` are fields of the config. Raises `NotFound` where the split has no example."""
        config = self.config.unchanged if name == "held-out" else self.config
        other = copy.copy(self)
        other.config, other._cache = dataclasses.replace(config, split=name, **changes), {}
        other._indices = other._of_split(name)
        return other

    def fetch(self, indices: Iterable[int], images: bool = False) -> None:
        """Read what this thread will ask for next at once: of shards in a store, and of local ones where `images` are
        read, too."""
        images = images and not self.config.in_memory
        if isinstance(self.source, ShardSource) and (self.source.remote or images):
            self.source.fetch([int(self._indices[index]) for index in indices], images)

    def readable(self) -> Iterator[Example]:
        """Every readable example, once, in order; broken ones go into the quarantine."""
        for index in map(int, self._indices):
            if (example := self._read(index)) is not None:
                yield example

    def all_captions(self, indices: Iterable[int] | None = None) -> Iterator[str]:
        """Every caption of these examples, or of all, as training reads it; broken ones go into the quarantine."""
        wanted = iter(track(range(len(self)), "reading captions") if indices is None else indices)
        while some := list(itertools.islice(wanted, CAPTIONS_AHEAD)):
            self.fetch(some)
            for index in (int(self._indices[one]) for one in some):
                if not self._broken[index]:
                    self.quarantine.seen += 1
                    yield from (self._read_or_quarantine(index, self._meta) or {"captions": ()})["captions"]
        self.quarantine.check()
        if indices is None:
            self.quarantine.restart()

    def bounds(self) -> np.ndarray:
        """The first example of each shard in this split, and the number of all: int64 (shards + 1,). Raises a
        `UserError` where the data are no shards."""
        if not isinstance(self.source, ShardSource):
            raise UserError(f"{self.config.path} holds no shards: set data.shuffle=all")
        if isinstance(self._indices, range):
            return self.source.starts
        return np.searchsorted(self._indices, self.source.starts).astype(np.int64)

    @property
    def indices(self) -> Sequence[int] | np.ndarray:
        """The number in the source of each example."""
        return self._indices

    def key(self, index: int) -> tuple[str, str]:
        """(shard or folder, key) of an example."""
        return self.source.key(int(self._indices[index]))

    def meta(self, index: int) -> dict[str, Any]:
        """Metadata of an example without decoding its image. Raises whatever a broken one raises."""
        return self._meta(int(self._indices[index]))

    def sides(self, index: int) -> tuple[int, int]:
        """Width and height of a stored image, turned as its EXIF says. Raises whatever a broken one raises."""
        return image_size(functools.partial(self.source.image_start, int(self._indices[index])))

    @property
    def left_out(self) -> list[tuple[str, str, str]]:
        """(shard or folder, name, reason) of everything that is not read: skipped files, then broken examples."""
        where = one_line(str(self.config.path))
        skipped = [(where, name, reason) for name, reason in self.source.skipped.items()]
        return skipped + [(where, key, reason) for (where, key), reason in self.quarantine.broken.items()]

    def _read(self, index: int, shape: tuple[int, int] | None = None) -> Example | None:
        if self._broken[index]:
            return None
        if (index, shape) in self._cache:
            image, meta = self._cache[index, shape]
        else:
            read = self.counted(index, lambda i: (self._meta(i), self._decoded(i, shape)))
            if read is None:
                return None
            meta, image = read
            if self.config.in_memory:  # as an array, of three bytes a pixel and not four
                image = self._cache.setdefault((index, shape), (array_of(image), meta))[0]
        return Example(decoded=image, captions=tuple(meta["captions"]), meta=meta, key=self.source.key(index)[1])

    def counted(self, index: int, read: Callable[[int], Any]) -> Any:
        """The result of `read`, counted as one of the examples that were read, or none where it fails: then the
        example goes into the quarantine. Raises a `UserError` where too many do."""
        result = self._read_or_quarantine(index, read)
        if not self._seen[index]:
            self._seen[index] = True
            self.quarantine.seen += 1
        if result is None:
            self.quarantine.check()
        return result

    def is_broken(self, index: int) -> bool:
        """Whether an example of the source is known to be broken."""
        return bool(self._broken[index])

    def _read_or_quarantine(self, index: int, read: Callable[[int], Any]) -> Any:
        """The result of `read`, or none where it fails: then the example goes into the quarantine."""
        try:
            return read(index)
        except UserError:
            raise
        except Exception as error:  # whatever a decoder raises on a broken file, a run must go on
            where, key = self.source.key(index)
            reason = reason_of(error, f"{key} in {where}")
            self.source.require_same(index)
            self.quarantine.add(where, key, reason)
            self._broken[index] = True  # it alone: another may have its key
            return None

    def _decoded(self, index: int, shape: tuple[int, int] | None) -> Region:
        return decode_image(self.source.image_bytes(index), shape or self.config.resized, square=not self.config.drawn)

    def _meta(self, index: int) -> dict[str, Any]:
        return self._captioned(index, self.source.meta(index))

    def _captioned(self, index: int, meta: dict[str, Any]) -> dict[str, Any]:
        """Metadata with the captions of training."""
        field = self.config.caption_field
        if not self.captions:
            return {**meta, "captions": meta["captions"] or [""]}
        if field == LAYOUT_FIELD:
            require_layout(meta)
            captions = [self._layout(index, meta)]
        else:
            captions = meta["captions"] if field is None else field_texts(meta, field)
        if not captions:
            raise self.source.missing_caption(index)
        return {**meta, "captions": self.fitted(index, captions)}

    def _layout(self, index: int, meta: dict[str, Any]) -> str:
        layout = self._layouts.get(index)
        if layout is None:
            layout = layout_of(meta, lambda: decode(self.source.image_bytes(index), self.config.size))
            if len(self._layouts) < MOST_LAYOUTS:
                self._layouts[index] = layout
        return layout

    def fitted(self, index: int, captions: list[str]) -> list[str]:
        """The captions of an example as the model reads them. Raises `BrokenExample` where none can be read."""
        if self.fit is None or not self.captions:
            return captions
        fitted, change = fit_captions(captions, self.fit, self.config.long_captions)
        if not fitted:
            raise BrokenExample(change)
        if change:
            self.quarantine.record_change(*self.source.key(index), change)
        return fitted

    def _recall(self) -> None:
        """Count what was read to select examples, and put what was broken into the quarantine, as if read now."""
        selection = self.source.selection
        self.quarantine.seen += selection.seen
        for index, reason in selection.broken:
            where, key = self.source.key(index)
            self.quarantine.add(where, key, reason)
            self._broken[index] = True
        self.quarantine.check()
        self.quarantine.restart()

    def _of_split(self, split: Split) -> Sequence[int] | np.ndarray:
        """The indices of the examples of a split. Raises `NotFound`, or a `UserError` where nothing can be read."""
        config = self.config
        indices = self.source.selection.indices(split)
        if len(indices):
            return indices
        if len(self.source.selection.broken) == len(self.source):
            raise UserError(
                f"{config.path}: none of {len(self.source)} examples can be read ({self.quarantine.reasons()})"
            )
        kinds = " with these kinds and styles" if config.kinds or config.styles else ""
        if filtered := self.source.selection.filtered:
            kinds += f" that data.keep keeps ({filters_said(filtered)})"
        raise NotFound(f"{config.path} has no example of split {split!r}{kinds}")


def open_dataset(config: DataConfig, *, captions: bool = True, record: Path | None = None) -> ImageDataset:
    """Open a folder of shards, or of images with captions, at `config.path`, or shards in a store (`remote`).

    captions: whether captions are read; if not, images need none.
    record: the quarantine file, where the config names none.

    Raises a `UserError` where there is no example.
    """
    path = Path(config.path)
    listed = path.suffix.casefold() == ".txt" and path.is_file()
    if is_remote(config.path) or listed:
        shards = shards_of_list(path) if listed else remote_shards(config.path)
        return _open(ShardSource(shards, str(config.path), {}, config, captions), config, captions, record)
    if not path.exists():
        raise UserError(
            f"no data at {path}: give a folder of .tar shards or of images (`diptych data emoji` makes one)"
        )
    if not path.is_dir() and not (path.is_file() and path.suffix.casefold() == ".tar"):
        raise UserError(f"{path} is a file: give a folder of .tar shards or of images, or one .tar")
    return _open(open_source(path, config, captions), config, captions, record)


def _open(source: FolderSource | ShardSource, config: DataConfig, captions: bool, record: Path | None) -> ImageDataset:
    path = config.path
    quarantine = Quarantine(Path(config.quarantine) if config.quarantine else record, config.max_failure_rate)
    if isinstance(source, ShardSource):
        for lost in source.lost:
            quarantine.seen += 1
            quarantine.add(lost.shard, lost.what, lost.reason)
        quarantine.lose(sum(lost.count for lost in source.lost), len(source))
    if not len(source):
        quarantine.skipped = source.skipped
        reasons = quarantine.reasons()
        images = "images with captions" if captions else "images"
        raise UserError(f"{path} holds no .tar shards and no {images}" + (f" ({reasons})" if reasons else ""))
    return ImageDataset(source, config, quarantine, captions)


def open_source(path: Path, config: DataConfig, captions: bool) -> FolderSource | ShardSource:
    """The shards under a folder, or else its images; `path` may be one shard."""
    if not path.is_dir():
        return ShardSource([LocalShard(path, one_line(path.name))], str(path.absolute()), {}, config, captions)
    place = Path(os.path.abspath(path))  # what an index names stays where it is, whatever the working folder is
    if (index := known_folder(place)) is not None:
        return FolderSource(path, index, config, captions)
    listing = Listing.of(place)
    tars = sorted(file for file in listing.files if file.suffix.casefold() == ".tar")
    if not tars:
        return FolderSource(path, index_folder(place, listing), config, captions)
    for file in listing.files:
        if file.suffix.casefold().lstrip(".") in IMAGE_EXTENSIONS:
            listing.skipped[one_line(str(file.relative_to(place)))] = (
                "an image beside shards: the shards are read, and nothing else"
            )
    shards = [LocalShard(file, one_line(os.path.relpath(file, place))) for file in tars]
    return ShardSource(shards, os.path.abspath(path), listing.skipped, config, captions)
