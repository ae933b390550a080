"""Provenance metadata of files and models: names and SHA-256 hashes."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from diptych.weights.tensors import PICKLE_ENDINGS

HASHED_SUFFIXES = (".safetensors", *PICKLE_ENDINGS, ".json", ".txt", ".model")
"""Suffixes of the files that determine a model's images."""


@dataclass(frozen=True)
class Origin:
    """The source of a model."""

    source: str
    """As the user named it."""
    path: Path
    """The folder or file that was opened."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of opening that differ from the defaults."""

    def with_options(self, more: Mapping[str, Any]) -> Origin:
        """The same source, with more options."""
        return dataclasses.replace(self, options={**self.options, **more})

    @functools.cached_property
    def sha256(self) -> str:
        """The hash of the file, or for a folder a hash over the names and hashes of its files."""
        from diptych.weights.file_hash import file_sha256
        from diptych.weights.hub import UNUSED_FOLDERS

        if self.path.is_file():
            return file_sha256(self.path)
        files = (path for path in self.path.rglob("*") if path.suffix in HASHED_SUFFIXES and path.is_file())
        names = {path.relative_to(self.path).as_posix(): path for path in files}
        used = sorted(name for name in names if name.split("/")[0] not in UNUSED_FOLDERS and name != FAMILIAR)
        lines = [f"{name} {file_sha256(names[name])}\n" for name in used]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def metadata(self) -> dict[str, Any]:
        from diptych.weights.hub import hub_id

        commit = re.search(r"/snapshots/([0-9a-f]{40})(?:/|$)", self.path.as_posix())
        values = {"source": self.source, "sha256": self.sha256, **self.options}
        return {**values, "revision": commit.group(1)} if commit and hub_id(self.source) else values


FAMILIAR = "familiar.safetensors"
"""The summary of training prompts (`encoders.prompt_domain`); it changes no image."""


def identity(system: Any, kind: str) -> dict[str, Any]:
    """The metadata of a loaded model: kind, source, hash and device; empty for a model that was made in memory."""
    origin: Origin | None = getattr(system, "origin", None)
    return {} if origin is None else {"kind": kind, **origin.metadata(), "device": torch.device(system.device).type}
