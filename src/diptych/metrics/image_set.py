"""The images of one side of a comparison: a folder, shards or an array file, brought to a size in a stated way."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import numpy as np
from PIL import Image

from diptych.core.config import Config, Within
from diptych.core.errors import UserError
from diptych.core.image_files import opened, upright
from diptych.data.dataset import DataConfig, open_dataset
from diptych.data.remote import is_remote
from diptych.models.metadata import KEY

T = TypeVar("T")
FILTERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
SAMPLES = "arr_0"
"""Name of the images in an .npz."""
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

    def __init__(self, path: str | Path, processing: Processing | None = None, limit: int | None = None) -> None:
        """
        Args:
            path: a folder of PNG, JPEG or WebP images or of .tar shards, shards in a store, or an .npz whose arr_0 are
                images, uint8 (N, H, W, 3), as ADM's samples are published.
            limit: the first so many images alone.

        Raises:
            UserError: there are no images, or fewer than `limit`.
        """
        self.path, self.processing = str(path), processing or Processing()
        self.left_out: dict[str, str] = {}
        """Files beside the images that are none, or of kinds that are not read: name -> reason."""
        if Path(path).suffix.casefold() == ".npz":
            self._array = read_array(Path(path))
        else:
            if not is_remote(self.path) and not Path(path).exists():
                raise UserError(f"no images at {path}: give a folder of images or of .tar shards")
            dataset = open_dataset(DataConfig(path=self.path, split="all"), captions=False)
            self._source, self._places = dataset.source, dataset.indices
            self.left_out = dict(dataset.source.skipped)
        self.count = len(self._array if hasattr(self, "_array") else self._places)
        if limit is not None and limit > self.count:
            raise UserError(f"{path} has {self.count:,} images, fewer than the {limit:,} asked for")
        self.count = limit or self.count

    def __len__(self) -> int:
        return self.count

    def name(self, number: int) -> str:
        """Of an image, for errors and tables."""
        if hasattr(self, "_array"):
            return f"{self.path}[{number}]"
        return self._source.key(int(self._places[number]))[1]

    def read(self, number: int) -> tuple[Image.Image, bytes]:
        """An image, RGB and processed, and the SHA-256 of its pixels before that. Thread-safe."""
        try:
            if hasattr(self, "_array"):
                image = Image.fromarray(np.ascontiguousarray(self._array[number]))
            else:
                with opened(self._source.image_bytes(int(self._places[number]))) as image:
                    image = upright(image)
        except MemoryError:
            raise
        except Exception as error:  # whatever a decoder raises on a broken file
            reason = " ".join(str(error).split())[:120] or type(error).__name__
            raise UserError(
                f"{self.path}: {self.name(number)} cannot be read ({reason}): mend or remove it, a set without it is "
                "another set"
            ) from None
        digest = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).digest()
        return self.processing.apply(image), digest

    def caption(self, number: int) -> str:
        """What an image is to show: its caption beside it or in a table, else the prompt in the metadata of a PNG.

        Raises a `UserError` where there is neither.
        """
        captions: list[str] = []
        if not hasattr(self, "_array"):
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

    def identity(self) -> str:
        """A hash of where the files are and what they are, without reading them: it names what was computed of them."""
        digest = hashlib.sha256(f"{Path(self.path).absolute()} {len(self)} {self.processing.to_dict()}".encode())
        if hasattr(self, "_array"):
            status = Path(self.path).stat()
            digest.update(f"{status.st_size} {status.st_mtime_ns}".encode())
        else:
            digest.update(json.dumps(self._source.index.notes, sort_keys=True, default=str).encode())
            for name, values in sorted(self._source.index.items()):
                digest.update(name.encode())
                digest.update(np.ascontiguousarray(values).view(np.uint8).data)
        return digest.hexdigest()[:24]


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


def read_array(path: Path) -> np.ndarray:
    """The images of an .npz, uint8 (N, H, W, 3)."""
    if not path.is_file():
        raise UserError(f"no file {path}")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = list(arrays)
            images = arrays[SAMPLES] if SAMPLES in names else None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read as .npz: {' '.join(str(error).split())[:120]}") from None
    if images is None:
        raise UserError(f"{path} has no {SAMPLES}, where ADM has its images, but {', '.join(names) or 'nothing'}")
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8 or not len(images):
        raise UserError(f"{path}: arr_0 must be images, uint8 (N, H, W, 3), not {images.dtype} {images.shape}")
    return images
