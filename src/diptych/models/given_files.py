"""The metadata of what a user gave for images: files, images and tensors."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from torch import Tensor


def given_metadata(value: Any, count: int) -> list[dict[str, Any]]:
    """What a user gave for `count` images, as metadata: a file's name and the SHA-256 of its content, or of what is in
    memory the SHA-256 of its values.
    """
    values = value if isinstance(value, (Tensor, list, tuple)) else [value]
    rows = [described(one) for one in values]
    return rows * count if len(rows) == 1 else rows


def described(one: Any) -> dict[str, Any]:
    """One image or tensor as metadata."""
    if isinstance(one, (str, Path)):
        from diptych.weights.file_hash import named_file

        return named_file(one)
    if isinstance(one, Tensor):
        values, shape = one.detach().float().cpu().contiguous().numpy().tobytes(), list(one.shape)
    else:
        image = one.convert("RGBA")
        values, shape = image.tobytes(), list(image.size)
    return {"sha256": hashlib.sha256(values).hexdigest(), "in_memory": shape}
