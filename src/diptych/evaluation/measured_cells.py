"""Cells whose numbers stay in results.json, each written when it is measured, with its first images as a strip."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from diptych.core.disk import write_text
from diptych.core.errors import UserError
from diptych.core.folder_lock import locked
from diptych.core.images import grid
from diptych.evaluation.folder import MARK, as_json, differences, require_folder, require_free
from diptych.evaluation.image_store import read_image
from diptych.models.provenance import save_generated

if TYPE_CHECKING:
    from diptych.evaluation.runner import MeasuredStudy, StudyCell


class MeasuredCells:
    """The results of a `MeasuredStudy` in its folder. Each writing first reads what other processes have added.

    Raises a `UserError` where the folder holds the results of something else.
    """

    def __init__(self, study: MeasuredStudy, out: Path) -> None:
        self.study, self.out = study, out
        self.results: dict[str, Any] = {**as_json(study.head), "cells": []}
        require_folder(out)
        with locked(out):
            if not (out / "results.json").exists():
                require_free(out, (*study.writes, MARK))
            self._read()
            if not self.results["cells"]:
                self._write()

    def has(self, cell: StudyCell) -> bool:
        """Whether a cell was measured, and its strip is there."""
        measured = any(is_of(record, cell) for record in self.results["cells"])
        return measured and (cell.strip is None or bool(self.strip(cell.strip)))

    def add(self, cell: StudyCell, numbers: dict[str, Any]) -> None:
        """Write a cell's numbers, in the place of those that it may have had."""
        with locked(self.out):
            self._read()
            others = [record for record in self.results["cells"] if not is_of(record, cell)]
            self.results["cells"] = sorted([*others, {**cell.key, **numbers}], key=self.study.order)
            self._write()

    def complete(self) -> dict[str, Any]:
        """Write what follows from all cells; returns the results."""
        with locked(self.out):
            self._read()
            if summary := self.study.summary(self.results):
                self.results |= summary
                self._write()
        return self.results

    def save_strip(self, name: str, images: list[Image.Image]) -> None:
        """The first images side by side."""
        count = min(self.study.sheet, len(images))
        save_generated(grid(images[:count], count, gap=0), self._strip_path(name))

    def strip(self, name: str) -> list[Image.Image]:
        """The images of a strip; none where there is no such file."""
        if (strip := read_image(self._strip_path(name))) is None:
            return []
        side = strip.height  # its images are square
        return [strip.crop((x, 0, x + side, side)) for x in range(0, strip.width, side)][: self.study.sheet]

    def _strip_path(self, name: str) -> Path:
        return self.out / self.study.strips / f"{name.replace('/', '-')}.png"

    def _write(self) -> None:
        write_text(self.out / "results.json", json.dumps(self.results, indent=2) + "\n")

    def _read(self) -> None:
        """Take over the cells in the file, and members of entries that grow."""
        path = self.out / "results.json"
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        except (ValueError, OSError):
            raise UserError(f"{path} is not readable JSON: delete it, or name another folder") from None
        if not isinstance(before, dict) or not {*self.study.head, "cells"} <= before.keys():
            raise UserError(f"{path} holds the results of something else: name another folder")
        if not before["cells"]:  # nothing was measured
            return
        now, then = (self.study.identity(one) for one in (self.results, before))
        for name in self.study.grows:
            if name in now:  # members that both have must be equal
                common = then[name].keys() & now[name].keys()
                now[name], then[name] = ({one: head[name][one] for one in common} for head in (now, then))
            self.results[name] = {**before[name], **self.results[name]}
        if now != then:
            changed = differences(then, now)
            raise UserError(f"{self.out} holds results with other {changed}: name another folder, or delete it")
        self.results["cells"] = before["cells"]


def is_of(record: dict[str, Any], cell: StudyCell) -> bool:
    """Whether numbers in results.json are those of a cell."""
    return all(record.get(name) == value for name, value in cell.key.items())
