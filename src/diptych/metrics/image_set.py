"""The images of one side of a comparison: a folder, shards or an array file, brought to a size in a stated way."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from PIL import Image

from diptych.core.config import Config, Within
from diptych.core.errors import UserError, warn
from diptych.core.image_files import opened, upright
from diptych.data.dataset import DataConfig, open_dataset
from diptych.data.folder_scan import stamps_of
from diptych.data.folders import FolderSource
from diptych.data.quarantine import reason_of
from diptych.data.remote import is_remote
from diptych.data.shard_scan import IMAGE_EXTENSIONS
from diptych.data.shards import ShardSource
from diptych.metrics.npz_files import SamplesFile, is_npz
from diptych.models.metadata import KEY

T = TypeVar("T")
FILTERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
THREADS = 4
"""That read and decode ahead."""


@dataclass(frozen=True, kw_only=True)
class Processing(Config):
    """What is done to an image before a network reads it. Papers seldom say; distances depend on each of these."""

    size: Annotated[int | None, Within(1, 4096)] = None
    """Side in pixels that images are brought to first; none for as they are."""
    crop: Literal["center", "none"] = "center"
    """With a size: the square from the centre, or the whole image, whose shape changes."""
    resize: Literal["box", "bilinear", "bicubic", "lanczos"] = "bicubic"
    """With a size: Pillow's filter, antialiased."""
    jpeg: Annotated[int | None, Within(1, 100)] = None
    """Encode as a JPEG of this quality and decode again, as sets saved that way are; none for pixels as they are."""

    def apply(self, image: Image.Image) -> Image.Image:
        """An RGB image, processed."""
        if self.size is not None:
            side, box = min(image.size), None
            if self.crop == "center":
                left, top = (image.width - side) // 2, (image.height - side) // 2
                box = (left, top, left + side, top + side)
            image = image.resize((self.size, self.size), FILTERS[self.resize], box=box)
        if self.jpeg is not None:
            file = io.BytesIO()
            image.save(file, "JPEG", quality=self.jpeg)
            with Image.open(file) as encoded:
                image = encoded.convert("RGB")
        return image

    def describe(self) -> dict[str, Any]:
        """What results carry: nothing that had no effect."""
        if self.size is None:
            return {"size": None, "jpeg": self.jpeg}
        return self.to_dict()


class ImageSet:
    """Images by number, in a fixed order.

    Alpha lies on white, 16 bits become 8, grey becomes RGB, EXIF is turned. Reading a broken one raises a `UserError`
    that names it: what is measured would be another set without it.
    """

    def __init__(
        self,
        path: str | Path,
        processing: Processing | None = None,
        limit: int | None = None,
        only: Collection[str] | None = None,
    ) -> None:
        """
        Args:
            path: a folder of PNG, JPEG or WebP images or of .tar shards, shards in a store, or an .npz whose arr_0 are
                images, uint8 (N, H, W, 3), as ADM's samples are published.
            limit: the first so many images alone.
            only: the images of these file names alone, whichever folder below `path` they are in; of a name with
                folders, such as "val/0.png", those whose path ends so. Not of an .npz.

        Raises:
            UserError: there are no images, fewer than `limit`, or not one for each name of `only`.
        """
        self.path, self.processing = str(path), processing or Processing()
        self.left_out: dict[str, str] = {}
        """Files beside the images that are none, or of kinds that are not read: name -> reason."""
        self._samples: SamplesFile | None = None
        self._part = ""
        """Which of the images there are, where that is not all or the first."""
        if is_npz(path):
            self._samples = SamplesFile(Path(path))
            self._places: Sequence[int] | np.ndarray = range(len(self._samples))
        else:
            if not is_remote(self.path) and not Path(path).exists():
                raise UserError(f"no images at {path}: give a folder of images or of .tar shards")
            dataset = open_dataset(DataConfig(path=self.path, split="all"), captions=False)
            self._source, self._places = dataset.source, dataset.indices
            self.left_out = dict(dataset.source.skipped)
            if only is not None:
                self._places = self._named(set(only))
        self.count = len(self._places)
        if limit is not None and limit > self.count:
            raise UserError(f"{path} has {self.count:,} images, fewer than the {limit:,} asked for")
        self.limited = limit is not None
        """Whether it is the beginning of a set alone."""
        self.count = limit or self.count

    def _named(self, names: set[str]) -> np.ndarray:
        """The places of the images of these names."""
        places, ends = dict[str, int](), dict[str, list[str]]()
        for name in names:
            ends.setdefault(Path(name).name, []).append(name)
        above = Path() if is_remote(self.path) else Path(self.path).absolute()
        for place in map(int, self._places):
            file = Path(self._source.key(place)[1])
            for name in ends.get(file.name, ()):
                if len(parts := Path(name).parts) > 1 and (above / file).parts[-len(parts) :] != parts:
                    continue
                if name in places:
                    raise UserError(f"{self.path} has two images named {name}: name the folder with one of them")
                places[name] = place
        if missing := sorted(names - places.keys()):
            raise UserError(f"{self.path} lacks {missing[0]} ({len(missing):,} of {len(names):,} images are missing)")
        of_place: dict[int, str] = {}
        for name in sorted(names):
            if (other := of_place.setdefault(places[name], name)) != name:
                raise UserError(f"{other} and {name} are one image in {self.path}: give each image one name")
        self._part = "only"
        return np.array(sorted(places[name] for name in names), np.int64)

    def drawn(self, number: int | None, seed: int) -> ImageSet:
        """So many of these images, drawn by `seed`; all where there are no more or none is given."""
        if number is None or number >= len(self):
            return self
        part = copy.copy(self)
        chosen = np.sort(np.random.Generator(np.random.PCG64(seed)).permutation(len(self))[:number])
        part._places = np.asarray(self._places)[chosen]
        part.count, part._part = number, f"{self._part} {number} by {seed}"
        return part

    def warn_of_left_out(self) -> None:
        """Say which files beside the images are not read."""
        if self.left_out:
            name, reason = next(iter(self.left_out.items()))
            warn(f"{self.path}: {len(self.left_out)} files are left out, such as {name} ({reason})")

    def __len__(self) -> int:
        return self.count

    def name(self, number: int) -> str:
        """Of an image, for errors and tables."""
        place = int(self._places[number])
        return str(place) if self._samples is not None else self._source.key(place)[1]

    def stem(self, number: int) -> str:
        """The name without the ending of an image file: the same for an image and its pair. Of an .npz, the number."""
        name = self.name(number)
        stem, dot, ending = name.rpartition(".")
        return stem if dot and ending.casefold() in IMAGE_EXTENSIONS else name

    def read(self, number: int) -> tuple[Image.Image, bytes]:
        """An image, RGB and processed, and the SHA-256 of its pixels before that. Thread-safe."""
        try:
            if self._samples is not None:
                image = Image.fromarray(self._samples[int(self._places[number])])
            else:
                with opened(self._source.image_bytes(int(self._places[number]))) as image:
                    image = upright(image)
        except (MemoryError, UserError):
            raise
        except Exception as error:  # whatever a decoder raises on a broken file
            reason = reason_of(error, f"{self.path}: {self.name(number)}")
            raise UserError(
                f"{self.path}: {self.name(number)} {reason}: mend or remove it, a set without it is another set"
            ) from None
        digest = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).digest()
        return self.processing.apply(image), digest

    def caption(self, number: int) -> str:
        """What an image is to show: its caption beside it or in a table, else the prompt in the metadata of a PNG.

        Raises a `UserError` where there is neither.
        """
        captions: list[str] = []
        if self._samples is None:
            place = int(self._places[number])
            try:
                captions = self._source.meta(place).get("captions") or []
                if not captions:
                    with opened(self._source.image_bytes(place)) as image:
                        captions = [json.loads(image.info[KEY])["prompt"]]
            except Exception:  # whatever a broken text raises; it is named below
                captions = []
        if not captions or not isinstance(captions[0], str) or not captions[0].strip():
            raise UserError(
                f"{self.path}: {self.name(number)} has no caption: write captions.jsonl with file_name and text, or a "
                ".txt beside each image"
            )
        return captions[0]

    def stream(self, start: int, prepare: Callable[[Image.Image], T]) -> Iterator[tuple[T, bytes]]:
        """(prepared image, hash) of the images from number `start` on, read ahead in threads, in order."""
        yield from ahead(lambda number: self._prepared(number, prepare), range(start, len(self)))

    def _prepared(self, number: int, prepare: Callable[[Image.Image], T]) -> tuple[T, bytes]:
        image, digest = self.read(number)
        return prepare(image), digest

    def part(self) -> str:
        """Which of the images below `path` these are, whatever the files hold: empty for all."""
        limit = f"first {len(self)}" if self.limited else ""
        chosen = np.asarray(self._places, np.int64).tobytes() if self._part else b""
        return f"{self._part} {limit} {hashlib.sha256(chosen).hexdigest() if chosen else ''}".strip()

    def identity(self) -> str:
        """A hash of where the files are, and of their sizes and times, without reading them: it names what was computed
        of them. A file that is written anew has another."""
        place = self.path if is_remote(self.path) else str(Path(self.path).absolute())
        digest = hashlib.sha256(f"{place} {len(self)}".encode("utf-8", "surrogateescape"))
        if self._part:
            digest.update(f" {self._part} ".encode() + np.asarray(self._places, np.int64).tobytes())
        if self._samples is not None:
            digest.update(stamps_of(Path(), [self.path])[0].tobytes())
        elif isinstance(self._source, FolderSource):
            paths = [str(self._source.path(int(index))) for index in self._places[: len(self)]]
            digest.update("\0".join(paths).encode("utf-8", "surrogateescape"))
            digest.update(stamps_of(Path(), paths)[0].tobytes())
        elif isinstance(self._source, ShardSource):
            # What cannot be told apart from a changed shard is not read again: a name that never comes back.
            identities = [(file.name, file.identity or uuid.uuid4().hex) for file in self._source.files]
            digest.update(json.dumps(identities).encode())
        else:
            raise TypeError(f"no identity of {type(self._source).__name__}")
        return digest.hexdigest()[:24]


def set_sha256(digests: Iterable[bytes]) -> str:
    """One hash of images whose hashes are given, in whatever order."""
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()[:16]


def ahead(work: Callable[[int], T], numbers: range, threads: int = THREADS) -> Iterator[T]:
    """The results of `work` in order, computed in threads a little ahead of whoever takes them."""
    with ThreadPoolExecutor(threads) as pool:
        waiting: list[Future[T]] = []
        numbers_left = iter(numbers)
        try:
            for number in numbers_left:
                waiting.append(pool.submit(work, number))
                if len(waiting) >= 4 * threads:
                    yield waiting.pop(0).result()
            while waiting:
                yield waiting.pop(0).result()
        finally:
            for future in waiting:
                future.cancel()
