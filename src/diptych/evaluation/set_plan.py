"""Which images a set of prompts asks for: the name, prompt and seed of each, whatever process generates it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from diptych.core.errors import UserError
from diptych.core.hashing import mix
from diptych.core.values import MOST, Integer, checked
from diptych.data.prompt_files import PromptRow

FILES = 1000
"""Images of a folder, as near as whole prompts allow."""
SEED_BITS = 53
"""Of seeds that are drawn: every reader of JSON has them exactly."""
FORMATS = ("png", "jpeg")


class PlannedImage(NamedTuple):
    """One image of a set."""

    row: int
    """Of its prompt, from 0."""
    copy: int
    """From 0."""
    file: str
    """Below the set's folder."""
    prompt: str
    seed: int
    negative: str


def image_seed(base: int, row: int, copy: int) -> int:
    """The seed of an image of a set: a hash of the set's seed, the prompt's row, and which of its images it is."""
    return mix(base, row, copy) % 2**SEED_BITS


@dataclass(frozen=True, kw_only=True)
class SetPlan:
    """The images of a set: number i is image i % copies of prompt i // copies."""

    rows: Sequence[PromptRow]
    copies: int = 1
    """Images of each prompt."""
    seed: int = 0
    negative: str = ""
    """Of the rows that state none."""
    format: str = "png"

    def __post_init__(self) -> None:
        checked("images_per_prompt", Integer(1, MOST).check, self.copies)
        checked("seed", Integer(0, 2**63 - 1).check, self.seed)
        if self.format not in FORMATS:
            raise UserError(f"a set of images is png or jpeg, not {self.format!r}")
        for number, row in enumerate(self.rows, 1):
            if row.seed is not None and row.seed + self.copies > 2**63:
                raise UserError(f"prompt {number} has seed {row.seed}: seeds end at 2^63 - 1")

    def __len__(self) -> int:
        return len(self.rows) * self.copies

    def __getitem__(self, number: int) -> PlannedImage:
        place, copy = divmod(number, self.copies)
        row = self.rows[place]
        seed = image_seed(self.seed, place, copy) if row.seed is None else row.seed + copy
        negative = self.negative if row.negative is None else row.negative
        return PlannedImage(place, copy, self.file(place, copy), row.prompt, seed, negative)

    def __iter__(self) -> Iterator[PlannedImage]:
        return map(self.__getitem__, range(len(self)))

    def file(self, row: int, copy: int) -> str:
        """`00000/00012-3.png`: image 3 of prompt 12. A folder holds the images of `FILES` // copies prompts."""
        folder = row // max(1, FILES // self.copies)
        digits = max(5, len(str(len(self.rows) - 1)))
        return f"{folder:05d}/{row:0{digits}d}-{copy}{self.suffix}"

    @property
    def suffix(self) -> str:
        """Of the names of its images."""
        return ".jpg" if self.format == "jpeg" else ".png"

    @cached_property
    def sha256(self) -> str:
        """Of all rows, in order."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(json.dumps(row.to_dict(), sort_keys=True, default=str).encode() + b"\n")
        return digest.hexdigest()

    def record(self, image: PlannedImage) -> dict[str, Any]:
        """The line of the manifest for an image. Fields of the prompt file that would replace one of these are in
        `fields`."""
        row = self.rows[image.row]
        line: dict[str, Any] = {"file": image.file, "row": image.row, "copy": image.copy, "prompt": image.prompt}
        line |= {"seed": image.seed, **({"negative": image.negative} if image.negative else {})}
        line |= {} if row.id is None else {"id": row.id}
        taken = {key: value for key, value in row.fields.items() if key in (*line, "id", "negative", "fields")}
        line |= {key: value for key, value in row.fields.items() if key not in taken}
        return {**line, "fields": taken} if taken else line

    def manifest(self, prompts: int) -> Iterator[str]:
        """The lines of the manifest of the first so many prompts, in order."""
        for number in range(prompts * self.copies):
            yield json.dumps(self.record(self[number]), ensure_ascii=False, default=str) + "\n"
