"""Results that studies, measures and trainings left on disk, read again: what they are, and which file says so."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from diptych.core.errors import UserError
from diptych.metrics.records import is_result

RESULTS, LOG = "results.json", "metrics.jsonl"
MADE_BY = {
    "guidance": "diptych sweep guidance --model MODEL --data DATA --out FOLDER",
    "augmentation": "diptych sweep augmentation --model MODEL --data DATA --out FOLDER",
    "guides": "python -m benchmarks.guidance --out FOLDER",
    "measured": "diptych evaluate fid-30k ... --guidance W --metrics fid,clip-score --out FOLDER",
    "efficient-unet": "python -m benchmarks.efficient_unet --out FOLDER",
    "compression": "python -m benchmarks.compression --out FOLDER",
    "unseen": "diptych unseen --model MODEL --model MODEL --data DATA --out FOLDER",
    "training": "diptych train RECIPE --run-dir FOLDER",
}
"""Kind of results -> the command that makes them."""


@dataclass(frozen=True)
class StoredResult:
    """One file of results."""

    path: Path
    kind: str
    """A key of `MADE_BY`."""
    values: Any
    """The file's content: for `training` the config as `config`, and the lines of the log as `lines`."""
    sha256: str
    """Of the file, its first letters."""

    @property
    def name(self) -> str:
        """As it stands under a plot: the path as it was given."""
        return self.path.as_posix()


def read_stored(paths: Sequence[Path]) -> list[StoredResult]:
    """The results in files and folders; of a folder that has none itself, those in its folders.

    Raises a `UserError` for a path that is not there, is damaged, or holds nothing that curves are drawn from.
    """
    results: dict[Path, StoredResult] = {}
    for path in paths:
        for one in _read(path):
            results.setdefault(one.path.resolve(), one)
    return list(results.values())


def _read(path: Path) -> list[StoredResult]:
    if not path.exists():
        raise UserError(f"no {path}: name a folder of results, such as `{MADE_BY['guidance']}` writes")
    if path.is_file():
        one = _read_log(path) if path.name.endswith(".jsonl") else _read_results(path)
        if one is None:
            raise UserError(f"{path} holds no results that curves are drawn from: {_kinds()}")
        return [one]
    folders = [path, *sorted(entry for entry in path.iterdir() if entry.is_dir())]
    files = [[folder / RESULTS, folder / LOG] for folder in folders]
    read = [[_read_log(file) if file.name == LOG else _read_results(file) for file in row] for row in files]
    found = [[one for one in row if one is not None] for row in read]
    if not any(found):
        raise UserError(f"{path} holds no {RESULTS} or {LOG} that curves are drawn from: {_kinds()}")
    return found[0] or [one for row in found[1:] for one in row]


def _kinds() -> str:
    return f"name a folder of `{MADE_BY['guidance']}`, of another study, of measured images or of a training"


def _read_results(path: Path) -> StoredResult | None:
    if not path.is_file():
        return None
    text = _text(path)
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        raise UserError(f"{path} is not readable JSON: make it again, or name another folder") from None
    kind = kind_of(values)
    return None if kind is None else StoredResult(path, kind, values, _hash(text))


def _read_log(path: Path) -> StoredResult | None:
    """A training's log, with the config beside it. A last line that a kill cut is left out."""
    config = path.parent / "config.json"
    if not path.is_file() or not config.is_file():
        return None
    text, lines = _text(path), []
    rows = text.splitlines()
    for number, row in enumerate(rows, 1):
        try:
            line = json.loads(row)
            step = line["step"]
        except (ValueError, TypeError, KeyError, RecursionError):
            if number == len(rows):
                continue
            raise UserError(f"line {number} of {path} is no line of a training's log: name another folder") from None
        if isinstance(step, int) and isinstance(line.get("kind"), str):
            lines.append(line)
    try:
        values = json.loads(_text(config))
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise UserError(f"{config} is not readable JSON: name another folder")
    return StoredResult(path, "training", {"config": values, "lines": lines}, _hash(text))


def kind_of(values: Any) -> str | None:
    """Which study the content of a results.json is of; none of `MADE_BY`."""
    if isinstance(values, list) and values and all(map(is_result, values)):
        return "measured"
    if not isinstance(values, dict):
        return None
    if values.get("sweep") in ("guidance", "augmentation", "guides"):
        return str(values["sweep"])
    networks, models = values.get("networks"), values.get("models")
    if isinstance(networks, dict) and {"efficient", "plain"} <= networks.keys():
        return "efficient-unet"
    if isinstance(models, list) and models and all(isinstance(one, dict) and "factor" in one for one in models):
        return "compression"
    if "wordings" in values and isinstance(values.get("found"), dict):
        return "unseen"
    return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:120]}") from None


def _hash(text: str) -> str:
    return sha256(text.encode()).hexdigest()[:16]
