"""Folders of picture files with their captions beside them or in a table.

A caption is found in this order: a row of `metadata.jsonl`, `captions.jsonl`, `metadata.csv` or `captions.csv` in the
picture's folder or one above it (`file_name` and `text`, as Hugging Face's imagefolder has them, or `caption` or
`captions`); `name.txt`; `name.json`.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from diptych.data.shards import PICTURES
from diptych.errors import UserError

TABLES = ("metadata.jsonl", "captions.jsonl", "metadata.csv", "captions.csv")


class FolderSource:
    """Every picture under a folder, in the order of their paths."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._paths = sorted(p for p in folder.rglob("*") if p.suffix.lower().lstrip(".") in PICTURES and p.is_file())
        self._rows: dict[Path, dict[str, Any]] = {}
        for name in reversed(TABLES):
            for table in sorted(folder.rglob(name)):
                self._rows.update(_read_table(table))

    def __len__(self) -> int:
        return len(self._paths)

    def key(self, index: int) -> tuple[str, str]:
        return str(self.folder), str(self._paths[index].relative_to(self.folder))

    def meta(self, index: int) -> dict[str, Any]:
        from diptych.data.dataset import with_captions

        path = self._paths[index]
        if path in self._rows:
            return with_captions(self._rows[path], None)
        text, beside = path.with_suffix(".txt"), path.with_suffix(".json")
        meta = json.loads(beside.read_text("utf-8")) if beside.exists() else {}
        if not isinstance(meta, dict):
            raise ValueError(f"{beside.name} holds no object")
        return with_captions(meta, text.read_text("utf-8").strip() if text.exists() else None)

    def picture(self, index: int) -> bytes:
        return self._paths[index].read_bytes()

    def tells_split(self, index: int) -> bool:
        return True


def _read_table(table: Path) -> dict[Path, dict[str, Any]]:
    """Rows by the picture that they describe. Raises `UserError` with the line that cannot be read."""
    rows: dict[Path, dict[str, Any]] = {}
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            if table.suffix == ".csv":
                entries: list[Any] = list(csv.DictReader(file))
            else:
                entries = [json.loads(line) for line in file if line.strip()]
    except (ValueError, csv.Error) as error:
        raise UserError(f"cannot read {table}: {error}") from None
    for number, entry in enumerate(entries, 1):
        name = entry.get("file_name") or entry.get("file") or entry.get("image") if isinstance(entry, dict) else None
        if not isinstance(name, str):
            raise UserError(f"{table}, entry {number}: no file_name (the picture's path from the table's folder)")
        rows[table.parent / name] = entry
    return rows
