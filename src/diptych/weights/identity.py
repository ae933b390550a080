"""Files and models in metadata: their names and the SHA-256 of their content."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from diptych.core.errors import UserError
from diptych.weights.tensors import PICKLE_ENDINGS

REMEMBERED = 2**24
"""Bytes from which on the hash of a file is kept beside its size and time, so that gigabytes are read once."""
COUNTING = (".safetensors", *PICKLE_ENDINGS, ".json", ".txt", ".model")
"""Endings of the files that decide what a model makes."""


@dataclass(frozen=True)
class Origin:
    """Where a model came from."""

    source: str
    """As the user named it."""
    path: Path
    """The folder or file that was opened."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """With what else it was opened, where that is not the default."""

    @functools.cached_property
    def sha256(self) -> str:
        """Of a file its own hash; of a folder a hash over the names and hashes of its files."""
        from diptych.weights.hub import UNUSED

        if self.path.is_file():
            return file_sha256(self.path)
        files = (path for path in self.path.rglob("*") if path.suffix in COUNTING and path.is_file())
        names = {path.relative_to(self.path).as_posix(): path for path in files}
        used = sorted(name for name in names if name.split("/")[0] not in UNUSED and name != FAMILIAR)
        lines = [f"{name} {file_sha256(names[name])}\n" for name in used]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def metadata(self) -> dict[str, Any]:
        from diptych.weights.hub import hub_id

        commit = re.search(r"/snapshots/([0-9a-f]{40})(?:/|$)", self.path.as_posix())
        found = {"source": self.source, "sha256": self.sha256, **self.options}
        return {**found, "revision": commit.group(1)} if commit and hub_id(self.source) else found


FAMILIAR = "familiar.safetensors"
"""The summary of training prompts (`encoders.prompt_domain`); it changes no image."""


def identity(system: Any, kind: str) -> dict[str, Any]:
    """A model that was opened as metadata: its kind, where it came from, and where it computes; nothing of one that was
    made in memory."""
    origin: Origin | None = getattr(system, "origin", None)
    return {} if origin is None else {"kind": kind, **origin.metadata(), "device": torch.device(system.device).type}


def named_file(path: str | Path) -> dict[str, str]:
    """A file as metadata: its place below the working folder, else its name alone, and its hash."""
    path = Path(path)
    with contextlib.suppress(ValueError):
        return {"file": path.resolve().relative_to(Path.cwd()).as_posix(), "sha256": file_sha256(path)}
    return {"file": path.name, "sha256": file_sha256(path)}


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's content, in hex. A `UserError` where it cannot be read."""
    real = path.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", real.name) and real.parent.name == "blobs":  # the hub's cache, checked when opened
        return real.name
    try:
        stat = real.stat()
        seen = f"{stat.st_size} {stat.st_mtime_ns} "
        known = remembered(real)
        if stat.st_size >= REMEMBERED and known.is_file() and (text := known.read_text()).startswith(seen):
            return text.removeprefix(seen).strip()
        with real.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if stat.st_size >= REMEMBERED:
        from diptych.core.disk import write_text

        with contextlib.suppress(OSError, UserError):
            write_text(known, f"{seen}{digest}\n")
    return digest


def remembered(path: Path) -> Path:
    """Where a file's hash is kept: $DIPTYCH_CACHE/hashes, else ~/.cache/diptych/hashes."""
    home = Path(os.environ.get("DIPTYCH_CACHE") or Path.home() / ".cache" / "diptych")
    return home / "hashes" / hashlib.sha256(str(path).encode("utf-8", "surrogateescape")).hexdigest()[:32]
