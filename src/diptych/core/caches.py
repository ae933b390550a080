"""Where diptych keeps what it can make again."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def cache_folder(*names: str) -> Path:
    """A folder or file under $DIPTYCH_CACHE, else ~/.cache/diptych. Nothing is made."""
    return Path(os.path.expanduser(os.environ.get("DIPTYCH_CACHE") or "~/.cache/diptych"), *names)


def short_hash(text: str, length: int = 20) -> str:
    """A name for a file in a cache: the first hexadecimal digits of the SHA-256 of a text, such as a path."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:length]
