"""A source of examples for the tests of worker processes, which import it: without PyTorch."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any


class Fragile:
    """A source of which an example kills who reads it, or takes all the memory; captions say what was imported."""

    skipped: dict[str, str]

    def __init__(self, source: Any, deadly: int = -1, large: int = -1) -> None:
        self.source, self.deadly, self.large, self.skipped = source, deadly, large, {}
        self.selection = source.selection

    def __len__(self) -> int:
        return len(self.source)

    def key(self, index: int) -> tuple[str, str]:
        return self.source.key(index)

    def meta(self, index: int) -> dict[str, Any]:
        return {**self.source.meta(index), "captions": [f"torch {'torch' in sys.modules} in {os.getpid()}"]}

    def image_bytes(self, index: int) -> bytes:
        if index == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if index == self.large:
            raise MemoryError
        return self.source.image_bytes(index)
