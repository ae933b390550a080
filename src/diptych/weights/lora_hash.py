"""The names and hashes of LoRA files, as metadata and as galleries know them."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

from diptych.core.errors import UserError
from diptych.weights.file_hash import named_file


def named_lora(path: str | Path) -> dict[str, str]:
    """A LoRA file as metadata: as `named_file`, and of a safetensors file the hash of what follows its header, which
    stays where its texts are edited: web UIs and galleries know LoRA by that (AutoV3)."""
    row, path = named_file(path), Path(path)
    if path.suffix.lower() != ".safetensors":
        return row
    try:
        stat = path.stat()
        return {**row, "tensors_sha256": tensors_sha256(path, stat.st_size, stat.st_mtime_ns)}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


@functools.lru_cache(maxsize=64)
def tensors_sha256(path: Path, size: int, changed: int) -> str:
    """The SHA-256, in hex, of a safetensors file without its header; size and time of change name its content."""
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        return hashlib.file_digest(file, "sha256").hexdigest()
