"""The folder of an evaluation: it holds one, and that is never overwritten by another."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diptych.disk import make_folder, require_place, values_of, write_text
from diptych.errors import UserError
from diptych.terminal import console

MARK = "evaluation.json"
"""What a folder's evaluation was asked for, written before its first picture."""


def claimed(out: Path, head: dict[str, Any], writes: Sequence[str]) -> dict[str, Any] | None:
    """Make `out` the folder of one evaluation. Returns its results where it is finished already, else none.

    head: all that decides the results: the kind of evaluation, models, judge, data, settings.
    writes: globs of what the evaluation will write, beside `MARK`.

    Raises a `UserError`, before any work, where there is a file, or the results of something else.
    """
    require_folder(out)
    head = json.loads(json.dumps(head))  # as it will be read again: lists, no tuples
    before = values_of(out / MARK)
    taken = first_of(out, writes)
    if taken and before != head:
        changed = [key for key in head if before.get(key) != head[key]]
        how = f"with other {' and '.join(changed)}" if before else "of something else"
        raise UserError(f"{out} holds the results {how} ({taken}): name another folder as --out")
    make_folder(out)
    if before != head:
        write_text(out / MARK, json.dumps(head, indent=2) + "\n")
    return values_of(out / "results.json") or None


def require_folder(out: Path) -> None:
    """Raise a `UserError` where `out` is there and no folder."""
    if os.path.lexists(out) and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder as --out")
    require_place(out)


def require_same(out: Path, kind: str) -> None:
    """Raise a `UserError`, before a model is loaded, where `out` can be no folder, or holds what is no evaluation of
    this kind; `claimed` and sweeps compare the rest."""
    require_folder(out)
    results = values_of(out / "results.json")
    before = values_of(out / MARK).get("evaluation") or results.get("sweep")
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


def write_tables(path: Path, width: int, *parts: Any) -> None:
    """Tables, and lines of text between them, as a file of this width."""
    file = io.StringIO()
    wide = console(file=file, width=width)
    for part in parts:
        text = isinstance(part, str)
        wide.print(part, highlight=not text, soft_wrap=text)
    write_text(path, file.getvalue())
