"""Reading what `diptych precompute` wrote: opened at once, whatever its size, and mapped into memory part by part."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor, nn

from diptych.core.errors import UserError
from diptych.data.augment import flipped
from diptych.data.caption_text import fit_captions
from diptych.data.stream import SampleStream, texts
from diptych.data.stream_order import KeyedOrder
from diptych.encoders.cache_part import read_precomputed
from diptych.weights.files import load_safetensors
from diptych.weights.fingerprint import fingerprint
from diptych.weights.packed_texts import PackedTexts, text_hashes
from diptych.weights.part_files import MAPPED, PartFiles

Kept = Literal["latents", "codes", "trajectories"]
"""What is kept of an image: the encoder's moments in half precision, or the codes of a VQ; or of a caption, where a
teacher's sampling leads."""
NAMES = {"latents": ("moments", "latent"), "codes": ("codes", "codes"), "trajectories": ("trajectory", "trajectory")}
"""How it is called in its file, and in a batch."""
FLIPPED = "_flipped"
"""Behind that name in its file: the same of the mirror images."""
SAMPLED = 64
"""Examples whose keys tell the data of a run from others: a file of the store each."""
AGAIN = "make it again with `diptych precompute`"


class CaptionRows(Sequence[list[str]]):
    """The captions of each example: texts one after the other, and where those of each example end (n,)."""

    def __init__(self, texts: PackedTexts, ends: Tensor) -> None:
        self.texts, self.ends = texts, ends.numpy()

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> list[str]: ...
    @overload
    def __getitem__(self, index: slice) -> list[list[str]]: ...
    def __getitem__(self, index: int | slice) -> list[str] | list[list[str]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.texts[int(self.ends[index - 1]) if index else 0 : int(self.ends[index])]


class ExamplePart(NamedTuple):
    """Some examples of a split."""

    tensors: dict[str, Tensor]
    captions: Sequence[list[str]]
    keys: Sequence[str]


def part_tensors(captions: Sequence[Sequence[str]], keys: Sequence[str], hashes: np.ndarray) -> dict[str, Tensor]:
    """Captions and keys of examples, and the hashes of all the captions, as a part's file holds them."""
    return {
        **caption_tensors([caption for row in captions for caption in row], hashes),
        **PackedTexts.of(keys).tensors("keys"),
        "example_ends": torch.tensor([len(row) for row in captions]).cumsum(0),
    }


def caption_tensors(captions: Sequence[str], hashes: np.ndarray | None = None) -> dict[str, Tensor]:
    """Captions and their hashes, as a part's file holds them."""
    hashes = text_hashes(captions) if hashes is None else hashes
    return {**PackedTexts.of(captions).tensors("captions"), "hashes": torch.from_numpy(hashes.view(np.int64))}


def read_part(tensors: dict[str, Tensor], kept: str, count: int) -> ExamplePart | None:
    """The tensors of a file as so many examples; none where they are not."""
    try:
        captions = CaptionRows(PackedTexts.read(tensors, "captions"), tensors["example_ends"])
        part = ExamplePart(tensors, captions, PackedTexts.read(tensors, "keys"))
        whole = {len(captions), len(part.keys), len(tensors[NAMES[kept][0]])} == {count}
    except (ValueError, KeyError):
        return None
    return part if whole else None


class Examples:
    """The examples of a split on disk, in parts of equal size but for the last."""

    def __init__(self, folder: Path, split: str, kept: Kept) -> None:
        stated = read_precomputed(folder / "config.json")
        self.folder, self.split, self.kept = folder, split, kept
        self.count: int = stated["examples"][split]
        self.files: PartFiles | None = None
        if "parts" in stated:
            self.size: int = stated["parts"]["size"]
            self.files = PartFiles(folder, f"{kept}-{split}", stated["parts"]["bytes"].get(split, []), AGAIN)
            if len(self.files) * self.size < self.count:
                raise UserError(f"{folder} holds no {kept} of {split}: {AGAIN}")
        else:  # one file of all, as earlier versions wrote it
            self.size = max(1, self.count)
        self.part = functools.lru_cache(MAPPED)(self._part)
        self.part(0)

    def _part(self, number: int) -> ExamplePart:
        if self.files is None:
            tensors = load_safetensors(self.folder / f"{self.kept}-{self.split}.safetensors")
            rows = read_precomputed(self.folder / f"examples-{self.split}.json")
            return ExamplePart(tensors, rows["captions"], rows["keys"])
        if (part := read_part(self.files[number], self.kept, min(self.size, self.count - number * self.size))) is None:
            raise self.files.damaged(number)
        return part

    def __len__(self) -> int:
        return self.count

    def has(self, name: str) -> bool:
        return name in self.part(0).tensors

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what is kept of an image."""
        return tuple(self.part(0).tensors[NAMES[self.kept][0]].shape[1:])

    def gather(self, name: str, rows: np.ndarray) -> Tensor:
        """The rows (B,) of a tensor, in memory. A `UserError` where they hold NaN or Inf."""
        numbers, places = np.divmod(rows, self.size)
        gathered: Tensor | None = None
        for number in set(numbers.tolist()):
            here, stored = np.nonzero(numbers == number)[0], self.part(number).tensors[name]
            some = stored.index_select(0, torch.from_numpy(places[here]))
            if some.is_floating_point() and not some.isfinite().all():
                where = self.folder if self.files is None else self.files.path(number)
                raise UserError(f"{where} holds NaN or Inf: {AGAIN}")
            if gathered is None:
                gathered = torch.empty((len(rows), *some.shape[1:]), dtype=some.dtype)
            gathered[torch.from_numpy(here)] = some
        assert gathered is not None, "no rows were asked for"
        return gathered

    def captions(self, row: int) -> list[str]:
        return list(self.part(row // self.size).captions[row % self.size])

    def key(self, row: int) -> str:
        return self.part(row // self.size).keys[row % self.size]


def precomputed_splits(folder: Path) -> list[str]:
    """The splits that a precomputed folder holds. Raises a `UserError` where there is none."""
    if not (folder / "config.json").is_file():
        raise UserError(f"no precomputed latents in {folder}: make them with `diptych precompute`")
    return list(read_precomputed(folder / "config.json")["examples"])


def spaced(rows: Sequence[Any], most: int | None) -> Iterator[Any]:
    """All rows, or at most so many of them, evenly spaced."""
    if most is None or len(rows) <= most:
        return iter(rows)
    return (rows[number * len(rows) // most] for number in range(most))


class PrecomputedLatents:
    """One split of a precomputed folder, as batches of stream positions; `flip`: with what probability mirrored.

    In memory is nothing of most examples, whatever the size of the folder.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        seed: int,
        autoencoder: nn.Module,
        kept: Kept = "latents",
        flip: float = 0.0,
        random: str = "generator",
    ) -> None:
        """random: `TrainingConfig.random`, which decides the order of the examples."""
        splits = precomputed_splits(folder)
        made_by = read_precomputed(folder / "config.json").get("autoencoder")
        if made_by is None:
            raise UserError(f"{folder} holds texts alone, and no {kept}: name another folder")
        if made_by != fingerprint(autoencoder):
            other = "teacher, or its other sampling" if kept == "trajectories" else "autoencoder"
            raise UserError(f"{folder} was made with another {other}: {AGAIN}")
        if split not in splits:
            raise UserError(f"{folder} has no split {split!r}: choose one of {', '.join(splits)}")
        self.name, self.key = NAMES[kept]
        self.examples = Examples(folder, split, kept)
        if flip and not self.examples.has(self.name + FLIPPED):
            raise UserError(f"{folder} was made without data.flip: {AGAIN}, or leave it 0")
        self.flip, self.seed, self.random = flip, seed, random
        self.places: Any = range(len(self.examples))
        """The examples that are read: a range, or an array."""
        self.fitted: dict[int, list[str]] = {}
        """The captions of those whose captions were cut."""
        self.stream = self._stream()

    def _stream(self) -> SampleStream:
        count = len(self.places)
        return SampleStream(count, self.seed, KeyedOrder(count, self.seed) if self.random == "counter" else None)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of what is kept of an image."""
        return self.examples.shape

    @property
    def identity(self) -> dict[str, Any]:
        """As `ImageBatches.identity`."""
        digest = hashlib.sha256()
        for place in spaced(self.places, SAMPLED):
            digest.update(json.dumps(self.examples.key(int(place))).encode())
        return {"count": len(self.places), "keys": digest.hexdigest()[:16]}

    def fit_captions(self, fit: Callable[[str], str], long_captions: str) -> dict[str, str]:
        """Let captions be as a reader reads them; what does not fit is cut or left out, as `DataConfig.long_captions`
        says. Returns what was changed or left out: keys, and why. Raises a `UserError` where nothing is left."""
        changed: dict[str, str] = {}
        left_out: list[int] = []
        for number, place in enumerate(self.places):
            before = self.captions(place := int(place))
            kept, why = fit_captions(before, fit, long_captions)
            if why:
                changed[self.examples.key(place)] = why
            if not kept:
                left_out.append(number)
            elif kept != before:
                self.fitted[place] = kept
        if left_out:
            self.places = np.delete(np.asarray(self.places), left_out)
        if not len(self.places):
            raise UserError(f"no example is left ({next(iter(changed.values()))})")
        self.stream = self._stream()
        return changed

    def captions(self, place: int) -> list[str]:
        """The captions of an example, as they are read."""
        return self.fitted.get(place) or self.examples.captions(place)

    def all_captions(self, most: int | None = None) -> Iterator[str]:
        """The captions of all that are read, or of at most so many examples, evenly spaced, as they are read."""
        for place in spaced(self.places, most):
            yield from self.captions(int(place))

    def __call__(self, positions: list[int]) -> dict[str, Any]:
        drawn, seeds = self.stream.at(positions)
        rows = drawn if isinstance(self.places, range) else self.places[drawn]
        latents = self.examples.gather(self.name, rows)
        if self.flip and (mirrored := np.array([flipped(self.flip, seed) for seed in seeds.tolist()])).any():
            latents[torch.from_numpy(mirrored)] = self.examples.gather(self.name + FLIPPED, rows[mirrored])
        places = rows.tolist()
        captions, keys = [self.captions(place) for place in places], [self.examples.key(place) for place in places]
        return {self.key: latents, **texts(captions, keys, seeds)}
