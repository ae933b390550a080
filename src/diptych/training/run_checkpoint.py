"""Checkpoints that survive kill -9, a full disk and a cut file: a run goes on from the newest whole one.

`checkpoints/step-00001000/` holds one safetensors file a part (weights, ema, optimizer), or of a sharded run one a part
and process, `state.json`, and `manifest.json` with the size and SHA-256 of each. The folder is written under another
name, synced, and renamed when it is whole.
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from diptych.core.disk import (
    Written,
    disk_errors,
    make_folder,
    remove,
    replacing,
    require_place,
    sweep,
    sync_all,
    values_of,
)
from diptych.core.errors import UserError
from diptych.core.terminal import print_err
from diptych.weights.files import load_safetensors
from diptych.weights.save import save_safetensors

MANIFEST, STATE = "manifest.json", "state.json"
STEP = re.compile(r"step-\d{8,}")
PARTS = ("weights.safetensors", "ema.safetensors", "optimizer.safetensors")
SHARDS = "shard-*.safetensors"
"""The files of a sharded run in the place of those."""
CHECKPOINT = Written(
    "a checkpoint", (*PARTS, SHARDS, STATE, MANIFEST), lambda folder: STEP.fullmatch(folder.name) is not None
)
"""A broken one is recognised by its name and what is in it: any of its files may be what is broken."""
RUN = ("config.json", "metrics.jsonl", "checkpoints", "model", "samples", "tensorboard")
"""What a run writes into its folder."""
SETTINGS = {"steps", "batch_size", "learning_rate"}
"""Some of the training settings that every config.json of a run has."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return self.state["step"]

    @property
    def sharded(self) -> bool:
        """Whether processes wrote their rows."""
        return not (self.path / PARTS[0]).exists()

    def load(self, part: str) -> dict[str, Tensor]:
        """The tensors of one part, whole, on the CPU."""
        if self.sharded:
            from diptych.training.sharded_files import read_part

            return read_part(self.path, part)
        return load_safetensors(self.path / f"{part}.safetensors", check_finite=False)  # a mask may hold -inf


def save(
    folder: Path, step: int, parts: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int = 2
) -> Path:
    """Write `folder/step-...`, read it back, and then, when it is whole, remove all but the newest `keep`.

    Raises a `UserError` when the disk is full, or does not give back what was written; nothing is left of the new
    checkpoint then, and the old ones are untouched.
    """
    target = Path(folder) / f"step-{step:08d}"
    if fault(target) is not None:  # a whole one of this step is never put at risk
        with replacing(target, CHECKPOINT) as partial:
            partial.mkdir()
            for part, tensors in parts.items():
                save_safetensors(tensors, partial / f"{part}.safetensors")
            (partial / STATE).write_text(json.dumps({**state, "step": step}, indent=2) + "\n")
            seal(partial, target, sizes_and_hashes(partial))
    prune(folder, target, keep)
    return target


def sizes_and_hashes(folder: Path, names: str = "*") -> dict[str, dict[str, Any]]:
    """Entries of a manifest for the files of these names."""
    return {p.name: {"bytes": p.stat().st_size, "sha256": _sha256(p)} for p in sorted(folder.glob(names))}


def seal(partial: Path, target: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of what is to be a checkpoint at `target`, sync all and read it back. A `UserError` where that
    is not what was written."""
    (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
    sync_all(partial)
    if problem := fault(partial):
        raise UserError(
            f"what is read back of {target} is not what was written ({problem}): the disk or the memory is failing; "
            "earlier checkpoints are untouched"
        )


def has_checkpoint(run: Path) -> bool:
    """Whether a run has a checkpoint, whole or not: it resumes from one, or stops, and never starts anew."""
    return bool(_steps(run / "checkpoints"))


def latest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint, or None where there is none at all. A broken newer one is skipped with a line on
    standard error. Raises a `UserError` where there are some and none is whole.
    """
    broken = []
    for path in _steps(folder):
        if problem := fault(path):
            broken.append(f"{path.name}: {problem}")
            continue
        for one in broken:
            print_err(f"skipping broken checkpoint {folder}/{one}")
        return Checkpoint(path, json.loads((path / STATE).read_text()))
    if broken:
        raise UserError(
            f"no checkpoint in {folder} is whole ({broken[0]}): nothing was changed. Bring one back from a copy, or, "
            f"to start again at step 0, move {folder} away"
        )
    return None


def fault(path: Path, hashes: bool = True) -> str | None:
    """What is wrong with a checkpoint folder, or None when every file is there with its size and hash."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        parts = () if any(fnmatch.fnmatchcase(name, SHARDS) for name in manifest) else PARTS
        if missing := [name for name in (*parts, STATE) if name not in manifest]:
            return f"{MANIFEST} does not list {missing[0]}"
        for name, expected in manifest.items():
            file = path / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != expected["bytes"]:
                return f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}"
            if hashes and _sha256(file) != expected["sha256"]:
                return f"{name} does not have the content that was written (SHA-256 differs)"
        return _fault_of_state(json.loads((path / STATE).read_text()), path)
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MANIFEST} or {STATE} is not readable"


def _fault_of_state(state: dict[str, Any], path: Path) -> str | None:
    """What is wrong with what `state.json` of a checkpoint says, whose folder is named by its step."""
    step = int(path.name.removeprefix("step-"))
    if state["step"] != step:
        return f"{STATE} says step {state['step']!r} in the folder of step {step}"
    for name, value in (("seconds", state["seconds"]), ("learning_rate", state.get("learning_rate", 0.0))):
        if not (type(value) in (int, float) and 0 <= value < math.inf):
            return f"{STATE} says {name} {value!r}"
    return None


def prune(folder: Path, newest: Path, keep: int) -> None:
    """Remove what is older than `newest`, which was found to be whole by its hashes: broken checkpoints, and whole ones
    beyond the newest `keep`. What is later (and broken: or else the run would have gone on from there) stays."""
    count = 1
    for path in _steps(folder):
        if path.name >= newest.name:
            continue
        if fault(path, hashes=False) is None and count < keep:
            count += 1
        elif name := CHECKPOINT.foreign(path):
            print_err(f"{path} stays: it holds {name}, which is no part of a checkpoint")
        else:
            remove(path)


def require_run(folder: Path) -> None:
    """Raise a `UserError` unless a run may be kept in this folder: it holds a run, or nothing that a run writes."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise UserError(f"{folder} is a file, and a run needs a folder: name another one")
    require_place(folder)
    training = values_of(folder / "config.json").get("training")
    if isinstance(training, dict) and training.keys() >= SETTINGS:
        return
    for name in RUN:
        if os.path.lexists(folder / name):
            raise UserError(f"{folder / name} is there already, and is of no run of diptych: name another folder")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run folder for this process (the system frees it at a kill); a second one gets a `UserError`."""
    make_folder(folder)
    with disk_errors(folder), (folder / ".lock").open("a") as file:  # "a": a user's file of this name stays whole
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another process is training in {folder}; wait for it or use another folder") from None
        yield


def clean(folder: Path) -> None:
    """Remove what a killed run left half-written, also one of an earlier version."""
    sweep(folder)
    for path in Path(folder).glob(".step-*"):
        ours = STEP.fullmatch(path.name.removesuffix(".partial").removesuffix(".old")[1:])
        if ours and path.is_dir() and not path.is_symlink() and CHECKPOINT.foreign(path) is None:
            remove(path)


def _steps(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    return sorted((p for p in Path(folder).glob("step-*") if STEP.fullmatch(p.name) and p.is_dir()), reverse=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):  # read what is on the disk, not what is still in memory of it
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(file, "sha256").hexdigest()
