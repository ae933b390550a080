"""Many texts in two tensors, so that a memory-mapped file holds them and none is in memory until it is read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
import torch
from torch import Tensor


class PackedTexts(Sequence[str]):
    """Texts end to end: their UTF-8 bytes (N,) uint8, and where each ends (n,) int64."""

    def __init__(self, content: Tensor, ends: Tensor) -> None:
        self.content, self.ends = content.numpy(), ends.numpy()

    @classmethod
    def of(cls, texts: Iterable[str]) -> PackedTexts:
        rows = [text.encode("utf-8", "surrogatepass") for text in texts]
        ends = np.cumsum([len(row) for row in rows], dtype=np.int64)
        return cls(torch.from_numpy(np.frombuffer(bytearray(b"".join(rows)), np.uint8)), torch.from_numpy(ends))

    @classmethod
    def read(cls, tensors: dict[str, Tensor], name: str) -> PackedTexts:
        """Those that `tensors` gave under this name. Raises a `ValueError` where they do not fit together."""
        content, ends = tensors.get(name), tensors.get(f"{name}_ends")
        if content is None or ends is None or content.dtype != torch.uint8 or ends.dtype != torch.int64:
            raise ValueError(f"no texts {name!r}")
        if len(content) != (int(ends[-1]) if len(ends) else 0):
            raise ValueError(f"the texts {name!r} are cut short")
        return cls(content, ends)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The two tensors, by names in a file."""
        return {name: torch.from_numpy(self.content), f"{name}_ends": torch.from_numpy(self.ends)}

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = self.ends[index - 1] if index else 0
        return self.content[start : self.ends[index]].tobytes().decode("utf-8", "surrogatepass")


def text_hashes(texts: Iterable[str]) -> np.ndarray:
    """64 bits of each text (n,) uint64, the same on every machine."""
    digests = (hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest() for text in texts)
    return np.frombuffer(bytearray(b"".join(digests)), dtype="<u8").astype(np.uint64)


def buckets_of(hashes: np.ndarray, buckets: int) -> np.ndarray:
    """Which of so many equal ranges of hashes each of these (n,) uint64 lies in."""
    return ((hashes >> np.uint64(32)) * np.uint64(buckets) >> np.uint64(32)).astype(np.int64)
