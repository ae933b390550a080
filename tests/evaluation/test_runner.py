"""The study runner: what was begun goes on, and two processes in one folder lose nothing."""

from __future__ import annotations

import io
import json
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from rich.console import Console
from rich.table import Table

from diptych.core.errors import UserError
from diptych.evaluation.benchmarks.novel_words import compare
from diptych.evaluation.benchmarks.prompts import evaluate
from diptych.evaluation.image_store import ImageFolder, ImageSheet
from diptych.evaluation.measured_cells import MeasuredCells
from diptych.evaluation.runner import MeasuredStudy, StudyCell, file_name, run_study
from diptych.models.judge import Judge
from tests.evaluation import toys
from tests.evaluation.benchmarks.test_novel_words import PAIRS_OF_TOYS


@dataclass(kw_only=True, eq=False)
class Squares(MeasuredStudy):
    """The number of a cell, squared."""

    writes = ("results.md", "cells", "sheet.png")
    closing = "{out}"
    numbers: Sequence[int] = (1, 2)
    fails: int | None = None

    def cells(self) -> list[StudyCell]:
        return [self.cell(number) for number in self.numbers]

    def cell(self, number: int) -> StudyCell:
        return StudyCell(
            name=str(number),
            key={"number": number},
            count=3,
            strip=str(number),
            generate=lambda part: ([self.image(number) for _ in part], {}),
        )

    def image(self, number: int) -> Image.Image:
        if number == self.fails:
            raise KeyboardInterrupt
        return Image.new("RGB", (4, 4), (number, 0, 0))

    def measure(self, cell: StudyCell, images: list[Image.Image], metadata: dict[str, Any]) -> dict[str, Any]:
        return {"square": cell.key["number"] ** 2, "red": images[0].getpixel((0, 0))[0]}  # type: ignore[index]

    def order(self, record: dict[str, Any]) -> int:
        return record["number"]

    def tables(self, results: dict[str, Any]) -> list[Table | str]:
        return [f"{len(results['cells'])} cells"]

    def report(self, cells: MeasuredCells) -> None:
        pass


def squares(numbers: Sequence[int], seed: int = 0, fails: int | None = None) -> Squares:
    return Squares(head={"settings": {"seed": seed}}, batch=2, sheet=2, numbers=numbers, fails=fails)


def run(study: Squares, out: Path) -> list[dict[str, Any]]:
    return run_study(study, out, Console(file=io.StringIO()))["cells"]


def measure_alone(out: Path, first: int) -> None:
    """In a process of its own: every second number of thirty, from `first` on."""
    run(squares(range(first, 30, 2)), out)


def test_two_processes_in_one_folder_lose_no_cells(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=measure_alone, args=(tmp_path, first)) for first in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    cells = json.loads((tmp_path / "results.json").read_text())["cells"]
    assert [(cell["number"], cell["square"]) for cell in cells] == [(n, n * n) for n in range(30)]


def test_cells_written_by_another_process_are_merged(tmp_path: Path) -> None:
    one, other = MeasuredCells(squares([1]), tmp_path), MeasuredCells(squares([2]), tmp_path)
    one.add(squares([1]).cell(1), {"square": 1})
    other.add(squares([2]).cell(2), {"square": 4})
    one.add(squares([3]).cell(3), {"square": 9})
    assert [cell["number"] for cell in one.complete()["cells"]] == [1, 2, 3]
    assert other.complete() == one.results == json.loads((tmp_path / "results.json").read_text())


def test_a_study_stopped_in_its_first_cell_does_not_block_its_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(squares([1, 2], fails=1), tmp_path)
    assert run(squares([1, 2], seed=5), tmp_path)[0]["square"] == 1
    with pytest.raises(UserError, match=r"other settings \[seed 5, not 0\]"):
        run(squares([1]), tmp_path)


def test_a_measured_study_resumes_after_the_last_cell(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(squares([1, 2, 3], fails=3), tmp_path)
    assert [cell["number"] for cell in json.loads((tmp_path / "results.json").read_text())["cells"]] == [1, 2]
    assert [cell["number"] for cell in run(squares([1, 2, 3], fails=1), tmp_path)] == [1, 2, 3], "1 is not made again"
    (tmp_path / "cells" / "2.png").unlink()
    with pytest.raises(KeyboardInterrupt):
        run(squares([2], fails=2), tmp_path)  # a cell whose images are gone is made again


class Stopping:
    """Draws the concept of a prompt, and stops in the middle."""

    def __init__(self, calls: int | None = None) -> None:
        self.left, self.generated = calls, 0

    def generate(self, prompts: list[str], *, seeds: list[int], steps: int = 5) -> SimpleNamespace:
        if self.left is not None and self.generated >= self.left:
            raise KeyboardInterrupt
        self.generated += 1
        images = [toys.drawing(toys.CONCEPTS[(len(p) + s) % 20], "plain") for p, s in zip(prompts, seeds, strict=True)]
        return SimpleNamespace(images=images, metadata=[{"steps": steps, "prompt": prompt} for prompt in prompts])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("study", ["prompts", "novel words"])
def test_a_stopped_image_study_generates_only_missing_images(
    study: str, judge: Judge, toy_data: Path, tmp_path: Path
) -> None:
    def whole(model: Stopping, out: Path, **more: Any) -> dict[str, Any]:
        quiet = Console(file=io.StringIO())
        given: dict[str, Any] = {"judge": judge, "console": quiet, "batch": 4, **more}
        if study == "prompts":
            return evaluate(model, toy_data, out, name="it", images=10, scenes=3, **given)
        return compare([("runs/it", model)], toy_data, out, pairs=PAIRS_OF_TOYS[:12], images=1, **given)

    reference = Stopping()
    results = whole(reference, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        whole(Stopping(calls=3), tmp_path / "stopped")
    with pytest.raises(UserError, match=r"with other (data and )?settings \[seed 0, not 1\]"):
        whole(Stopping(), tmp_path / "stopped", seed=1)
    mine = tmp_path / "stopped" / "cells" / "mine.txt"
    mine.write_text("keep me")
    model = Stopping()
    assert whole(model, tmp_path / "stopped") == results
    assert [path.name for path in mine.parent.iterdir()] == ["mine.txt"], "its own images were no results"
    mine.unlink()
    mine.parent.rmdir()
    assert model.generated == reference.generated - 3
    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_a_damaged_image_is_generated_again(tmp_path: Path) -> None:
    store = ImageFolder(tmp_path, ["0.png", "1.png"], ("steps",))
    store.save([0, 1], [Image.new("RGB", (4, 4), "red"), Image.new("RGB", (4, 4), "blue")], {"steps": 5, "seed": 7})
    (tmp_path / "1.png").write_bytes((tmp_path / "1.png").read_bytes()[:40])
    first, second = store.load()
    assert first is not None and first.getpixel((0, 0)) == (255, 0, 0) and second is None
    assert store.metadata() == {"steps": 5}


def test_an_image_sheet_is_read_only_for_equal_settings(tmp_path: Path) -> None:
    images = [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(19)]
    store = ImageSheet(tmp_path / "a.png", 19, 4, {"seed": 0})
    store.save(range(10), images[:10], {})
    assert store.load() == [None] * 19, "not complete"
    store.save(range(10, 19), images[10:], {})
    loaded = ImageSheet(tmp_path / "a.png", 19, 4, {"seed": 0}).load()
    assert [image.getpixel((3, 3)) for image in loaded if image is not None] == [(i, 0, 0) for i in range(19)]
    assert ImageSheet(tmp_path / "a.png", 19, 4, {"seed": 1}).load() == [None] * 19
    assert ImageSheet(tmp_path / "a.png", 40, 4, {"seed": 0}).load() == [None] * 40


def test_cells_of_different_names_have_different_files() -> None:
    names = ["seen", "runs/a", "runs-a", "runs a", "…"]
    assert file_name("seen") == "seen" and len({file_name(name) for name in names}) == len(names)
    assert not any("/" in file_name(name) for name in names)
