"""Features by number: in memory, or in a file that is read a part at a time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np


class FeatureRows(Protocol):
    """Vectors (N, D): an array, or something that gives parts of one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        """Those of a slice, or of an array of numbers."""
        ...


@dataclass(frozen=True)
class FeatureRowsFile:
    """float32 (N, D) in a file without a header. What is asked for is copied; the rest takes no memory."""

    path: Path
    shape: tuple[int, int]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any, /) -> np.ndarray:
        # Mapped for this moment alone: pages of a lasting map stay counted as this process's memory.
        return np.array(np.memmap(self.path, np.float32, "r", shape=self.shape)[rows])
