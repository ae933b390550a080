"""Checkpoints that survive kill -9, a full disk and a cut file: a run goes on from the newest whole one.

`checkpoints/step-00001000/` holds one safetensors file a part (weights, ema, optimizer), `state.json`, and
`manifest.json` with the size and SHA-256 of each. The folder is written beside, synced, and renamed when it is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diptych.errors import UserError
from diptych.training.journal import say
from diptych.weights.files import load_safetensors, remove, replacing, save_safetensors

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return self.state["step"]

    def load(self, part: str) -> dict[str, Tensor]:
        """The tensors of one part, on the CPU."""
        return load_safetensors(self.path / f"{part}.safetensors", check_finite=False)  # a mask may hold -inf


def save(
    folder: Path, step: int, parts: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int = 2
) -> Path:
    """Write `folder/step-...` and then, when it is whole, remove all but the newest `keep`.

    Raises a `UserError` when the disk is full; nothing is left of the new checkpoint and the old ones are untouched.
    """
    target = Path(folder) / f"step-{step:08d}"
    if fault(target) is not None:  # a whole one of this step is never put at risk
        with replacing(target) as partial:
            partial.mkdir()
            for part, tensors in parts.items():
                save_safetensors(tensors, partial / f"{part}.safetensors")
            (partial / "state.json").write_text(json.dumps({**state, "step": step}, indent=2) + "\n")
            manifest = {p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in sorted(partial.iterdir())}
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    prune(folder, keep)
    return target


def latest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint, or None. A broken newer one is skipped with a line on standard error."""
    for path in _steps(folder):
        if problem := fault(path):
            say(f"skipping broken checkpoint {path}: {problem}")
            continue
        return Checkpoint(path, json.loads((path / "state.json").read_text()))
    return None


def fault(path: Path, hashes: bool = True) -> str | None:
    """What is wrong with a checkpoint folder, or None when every file is there with its size and hash."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if "state.json" not in manifest:
            return f"{MANIFEST} does not list state.json"
        for name, expected in manifest.items():
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != expected["bytes"]:
                return f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}"
            if hashes and _sha256(file) != expected["sha256"]:
                return f"{name} does not have the content that was written (SHA-256 differs)"
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is not readable"
    return None


def prune(folder: Path, keep: int) -> None:
    """Remove whole checkpoints beyond the newest `keep`, and broken ones when there is a whole one."""
    whole = [path for path in _steps(folder) if fault(path, hashes=False) is None]
    for path in _steps(folder) if whole else ():
        if path not in whole[: max(keep, 1)]:
            remove(path)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder for this process (the system frees it at a kill); a second one gets a `UserError`."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is training in {folder}; wait for it or use another folder") from None
        yield


def clean(folder: Path) -> None:
    """Remove what a killed run left half-written."""
    for path in Path(folder).glob(".step-*"):
        remove(path)


def _steps(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted((p for p in Path(folder).glob("step-*") if p.is_dir()), reverse=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
