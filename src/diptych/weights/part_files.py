"""Tensors of any size in numbered files, each mapped into memory when it is first read."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from diptych.core.errors import UserError
from diptych.weights.files import load_safetensors

MAPPED = 16_384
"""Files of one `PartFiles` that are mapped at a time: Linux allows a process 65,530 mappings."""


class PartFiles:
    """The files `stem-000000.safetensors` and so on of a folder, of these sizes in bytes.

    Raises a `UserError` where one is missing or has another size, which ends with `again`: how to get them back.
    """

    def __init__(self, folder: Path, stem: str, sizes: Sequence[int], again: str) -> None:
        self.folder, self.stem, self.sizes, self.again = folder, stem, sizes, again
        with os.scandir(folder) as entries:
            found = {entry.name: entry.stat().st_size for entry in entries if entry.name.startswith(f"{stem}-")}
        for number, size in enumerate(sizes):
            name = part_name(stem, number)
            if found.get(name) != size:
                what = (
                    f"cut short or changed: it has {found[name]:,} bytes, not {size:,}" if name in found else "missing"
                )
                raise UserError(f"{folder / name} is {what}: {again}")
        self.load = functools.lru_cache(MAPPED)(self._load)

    def __len__(self) -> int:
        return len(self.sizes)

    def path(self, number: int) -> Path:
        return self.folder / part_name(self.stem, number)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        """The tensors of a file. They stay on disk until their values are asked for."""
        return self.load(number)

    def _load(self, number: int) -> dict[str, Tensor]:
        return load_safetensors(self.path(number), check_finite=False)

    def damaged(self, number: int) -> UserError:
        """The error for a file that does not hold what it should."""
        return UserError(f"{self.path(number)} does not hold what was written: {self.again}")


def part_name(stem: str, number: int) -> str:
    return f"{stem}-{number:06d}.safetensors"
