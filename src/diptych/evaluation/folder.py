"""The results folder of a study: it holds one study, which is never overwritten by another."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diptych.core.disk import require_place, values_of, write_text
from diptych.core.errors import UserError
from diptych.core.folder_lock import locked
from diptych.core.terminal import console

MARK = "evaluation.json"
"""Everything that decides a study's results, written before its first image."""
STATED = ("settings", "model", "prompts")
"""Entries of a head of which a message names the values that differ."""


def claimed(out: Path, head: dict[str, Any], writes: Sequence[str], grows: str | None = None) -> dict[str, Any]:
    """Make `out` the folder of one study. Returns the results in it, empty where there are none yet.

    Args:
        head: everything that decides the results: the kind of study, models, judge, data, settings.
        writes: globs of what the study writes, apart from `MARK`.
        grows: an entry of `head`, a dictionary, that may have more members than the last time.

    Raises a `UserError`, before any work, where there is a file, or the results of something else.
    """
    require_folder(out)
    head = as_json(head)
    with locked(out):
        before = values_of(out / MARK)
        compared = dict(head)
        if grows is not None and (earlier := before.get(grows)):
            compared[grows] = {name: value for name, value in head[grows].items() if name in earlier}
        taken = first_of(out, writes)
        if taken and before != compared:
            how = f"with other {differences(before, compared)}" if before else "of something else"
            raise UserError(f"{out} holds the results {how} ({taken}): name another folder as --out")
        if before != head:
            write_text(out / MARK, json.dumps(head, indent=2) + "\n")
        return values_of(out / "results.json")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two heads, in words: `settings [seed 0, not 3] and models`."""
    entries = []
    for name, value in now.items():
        old = before.get(name)
        if old == value:
            continue
        changed = []
        if name in STATED and isinstance(value, dict) and isinstance(old, dict):
            pairs = ((key, old.get(key), value.get(key)) for key in {**value, **old})
            plain = ((key, *each) for key, *each in pairs if not any(isinstance(one, (list, dict)) for one in each))
            changed = [f"{key} {_short(earlier)}, not {_short(one)}" for key, earlier, one in plain if earlier != one]
        entries.append(f"{name} [{', '.join(changed)}]" if changed else name)
    return " and ".join(entries)


def _short(value: Any) -> str:
    """A value in a few letters; of a hash the first."""
    return str(value)[:12] if re.fullmatch(r"[0-9a-f]{16,64}", str(value)) else str(value)[:60]


def as_json(values: Any) -> Any:
    """Values as they are when they are read again: lists, no tuples."""
    return json.loads(json.dumps(values))


def require_folder(out: Path) -> None:
    """Raise a `UserError` where `out` is there and no folder."""
    if os.path.lexists(out) and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder as --out")
    require_place(out)


def require_apart(out: Path, *images: Path | str | None) -> None:
    """Raise a `UserError` where `out` is a folder of images that are measured, or lies in one: what is generated there
    would be among them when the command goes on."""
    for folder in images:
        if folder is not None and out.resolve().is_relative_to(Path(folder).resolve()):
            raise UserError(f"{out} lies in {folder}, whose images are measured: name another folder as --out")


def require_same(out: Path, kind: str) -> None:
    """Raise a `UserError`, before a model is loaded, where `out` can be no folder, or holds what is no evaluation of
    this kind; `claimed` and sweeps compare the rest."""
    require_folder(out)
    results = values_of(out / "results.json")
    before = values_of(out / MARK).get("evaluation") or results.get("sweep") or results.get("evaluation")
    before = before or ("inpainting" if "masks" in results else None)
    if before not in (None, kind) or (before is None and (out / "results.json").exists()):
        what = "something else" if before is None else f"an evaluation of another kind ({before})"
        raise UserError(f"{out} holds the results of {what}: name another folder as --out")


def require_free(out: Path, writes: Sequence[str]) -> None:
    """Raise a `UserError` where `out` is a file or holds one of these globs, as left by something else."""
    require_folder(out)
    if taken := first_of(out, writes):
        raise UserError(f"{out} holds {taken}, and no results to go on with: name another folder as --out")


def first_of(out: Path, writes: Sequence[str]) -> str | None:
    """The name of the first entry that one of the globs fits."""
    return next((path.name for glob in writes for path in sorted(out.glob(glob))), None)


def failures_of(*writes: Callable[[], Any]) -> list[str]:
    """Do each of these, whatever becomes of the others; what those said that ended in a `UserError`."""
    said = []
    for write in writes:
        try:
            write()
        except UserError as error:
            said.append(str(error))
    return said


def write_tables(path: Path, width: int, *parts: Any) -> None:
    """Tables, and lines of text between them, as a file of this width."""
    file = io.StringIO()
    wide = console(file=file, width=width)
    for part in parts:
        text = isinstance(part, str)
        wide.print(part, highlight=not text, soft_wrap=text)
    write_text(path, file.getvalue())
