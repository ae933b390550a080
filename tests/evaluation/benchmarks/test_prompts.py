"""The study of prompts: a perfect model reaches the ceiling, noise stays at chance, and the files can be read."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich import box
from rich.console import Console
from rich.table import Table

from diptych.core.errors import UserError
from diptych.core.terminal import console
from diptych.evaluation import report
from diptych.evaluation.benchmarks.prompts import evaluate
from diptych.models.judge import Judge
from tests.evaluation import toys


class Perfect:
    """Paints exactly the real rendering of each prompt."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[str], list[int]]] = []
        self.known = {}
        for _, image, meta in toys.examples():
            self.known[meta["captions"][0 if meta["kind"] == "scene" else 1]] = image

    def generate(self, prompts: list[str], *, seeds: list[int], steps=None, guidance=None, sampler=None):
        self.calls.append((prompts, seeds))
        images = [self.draw(p, s) for p, s in zip(prompts, seeds, strict=True)]
        return SimpleNamespace(images=images, metadata=[{"steps": steps or 7, "sampler": "ddim"} for _ in prompts])

    def draw(self, prompt: str, seed: int) -> Image.Image:
        return self.known[prompt]


class Noise(Perfect):
    def draw(self, prompt: str, seed: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def run(model, data: Path, out: Path, judge: Judge, **options) -> dict:
    return evaluate(model, data, out, judge=judge, console=Console(file=io.StringIO()), batch=7, **options)


def test_a_perfect_model_scores_like_the_ceiling(judge: Judge, toy_data: Path, tmp_path: Path) -> None:
    model = Perfect()
    results = run(model, toy_data, tmp_path, judge)
    for group in results["groups"].values():
        assert group["generated"] == group["real"]
        assert group["of_real"] == {"top1": 1.0, "top5": 1.0}
        assert group["frechet"] == pytest.approx(0, abs=1e-4)
        assert group["shuffled"]["top1"]["value"] < group["generated"]["top1"]["value"] / 2
    held_out = results["groups"]["held-out"]
    assert held_out["of_ceiling"] == {"top1": 1.0, "top5": 1.0}
    assert held_out["generated"]["top5"]["value"] > 3 * held_out["chance"]["top5"]["value"]
    seen = results["groups"]["seen"]
    assert seen["generated"]["top1"]["value"] > 10 * seen["chance"]["top1"]["value"]
    assert seen["generated"]["place"]["value"] < 0.2 < seen["shuffled"]["place"]["value"]
    assert set(results["scenes"]) == {"colours", "positional", "all"}
    assert results["scenes"]["all"]["generated"] == results["scenes"]["all"]["real"]
    # Every image was requested once, with a seed of its own.
    seeds = [seed for _, part in model.calls for seed in part]
    assert seeds == list(range(len(seeds)))
    assert max(len(part) for _, part in model.calls) == 7


def test_noise_scores_at_chance(judge: Judge, toy_data: Path, tmp_path: Path) -> None:
    results = run(Noise(), toy_data, tmp_path, judge)
    seen = results["groups"]["seen"]
    chance = seen["chance"]["top1"]["value"]
    place = seen["generated"]["place"]
    assert abs(place["value"] - seen["chance"]["place"]["value"]) < 4 * place["error"]
    assert seen["generated"]["top1"]["value"] <= chance + 3 * math.sqrt(chance * (1 - chance) / seen["pictures"])
    assert seen["frechet"] > results["frechet_between_real"]
    assert results["scenes"]["all"]["generated"]["value"] < 0.6


def test_written_files(judge: Judge, toy_data: Path, tmp_path: Path) -> None:
    results = run(Perfect(), toy_data, tmp_path / "one", judge, images=3, scenes=2, steps=5)
    again = run(Perfect(), toy_data, tmp_path / "two", judge, images=3, scenes=2, steps=5)
    assert json.loads((tmp_path / "one" / "results.json").read_text()) == results == again
    assert results["settings"] == {"pictures": 3, "scenes": 2, "seed": 0, "steps": 5, "sampler": "ddim"}
    assert results["data"]["manifest"] == "a1b2"
    assert results["judge"]["fingerprint"] == judge.fingerprint()
    rows = [json.loads(line) for line in (tmp_path / "one" / "pictures.jsonl").read_text().splitlines()]
    assert [r["group"] for r in rows] == ["seen"] * 3 + ["held-out"] * 3 + ["scenes"] * 4
    right = sum(r["rank"] == 0 for r in rows if r["group"] == "seen")
    assert results["groups"]["seen"]["generated"]["top1"]["value"] == right / 3
    assert "of ceiling" in (tmp_path / "one" / "results.md").read_text()
    for name in ("seen", "held-out", "scenes"):
        assert Image.open(tmp_path / "one" / f"{name}.png").width > 96
    other = run(Perfect(), toy_data, tmp_path / "three", judge, images=3, scenes=0, seed=1)
    assert other["scenes"] == {}
    assert (tmp_path / "three" / "pictures.jsonl").read_text() != (tmp_path / "one" / "pictures.jsonl").read_text()


def test_data_without_held_out_drawings_is_refused(judge: Judge, tmp_path: Path) -> None:
    toys.drawing("red disc", "plain").save(tmp_path / "one.png")
    (tmp_path / "one.txt").write_text("a red disc")
    with pytest.raises(UserError, match="no held-out drawings"):
        run(Perfect(), tmp_path, tmp_path / "out", judge)


def test_borders_of_a_contact_sheet_show_correct_and_wrong() -> None:
    blue = Image.new("RGB", (16, 16), "blue")
    cells = [
        report.SheetCell(prompt="a blue box " * 9, images=(blue, blue), correct=(True, False), notes=("box", "disc")),
        report.SheetCell(prompt="a box", images=(blue, blue), correct=(None, None), notes=("", "")),
    ]
    page = report.contact_sheet(cells, columns=1, side=32)
    colours = {page.getpixel((x, y)) for x in range(page.width) for y in range(page.height)}
    for colour in (report.GREEN, report.RED, report.GREY):
        assert tuple(bytes.fromhex(colour[1:])) in colours
    assert page.getpixel((8 + 3 + 16, 8 + 3 + 16)) == (0, 0, 255)


def test_prompts_of_a_class_conditional_model_are_its_class_names(judge: Judge, toy_data: Path, tmp_path: Path) -> None:
    model = Noise()
    model.classes = ("red disc", "blue box")  # type: ignore[attr-defined]
    results = run(model, toy_data, tmp_path, judge)
    assert {prompt for part, _ in model.calls for prompt in part} <= {"red disc", "blue box"}
    assert results["scenes"] == {} and results["groups"]["seen"]["pictures"] > 0
    assert results["concepts"] > 2, "the judge still names among all"
    model.classes = ("a style",)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match="no seen drawings of the model's classes"):
        run(model, toy_data, tmp_path / "other", judge)


def test_nan_is_a_dash_in_tables() -> None:
    nan = math.nan
    assert report.percent({"value": 0.5, "error": 0.25}) == "50.0±25.0"
    assert report.percent({"value": 0.5, "error": nan}) == "50.0±–"
    assert report.percent({"value": 0.5}) == "50.0"
    assert report.number({"value": nan, "error": nan}, 2) == "–±–" and report.number(None, 2) == ""
    assert report.signed({"value": 0.5, "error": nan}, 1) == "+0.5±–"
    assert report.plain(nan, 2) == "–" and report.plain(None, 2) == "" and report.plain(1.0, 2) == "1.00"


def test_a_table_in_a_pipe_is_not_cut(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    table = Table("name", "words", box=box.MARKDOWN)
    table.add_row("n", "a word " * 40)
    console().print(table)
    assert "a word " * 39 in capsys.readouterr().out


@pytest.mark.parametrize("change", [{"seed": 1}, {"images": 2}, {"steps": 7}, {"model": Noise()}, {"name": "other"}])
def test_a_folder_holds_one_evaluation(judge: Judge, toy_data: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    settings: dict[str, Any] = {"model": Perfect(), "images": 3, "scenes": 0, "steps": 5}

    def study(**more: Any) -> dict:
        model = (options := settings | more).pop("model")
        return run(model, toy_data, tmp_path, judge, **options)

    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    results, before = study(), files()
    with pytest.raises(UserError, match=r"holds the results with other (settings|model|data)"):
        study(**change)
    assert files() == before
    assert study() == results and files() == before, "the same again shows what is there"
    for name in ("results.json", "results.md"):  # killed before its end, it goes on
        (tmp_path / name).unlink()
    assert study() == results and files() == before


def test_results_of_something_else_are_never_overwritten(judge: Judge, toy_data: Path, tmp_path: Path) -> None:
    for name in ("results.json", "results.md", "pictures.jsonl", "seen.png"):
        out = tmp_path / name.replace(".", "-")
        out.mkdir()
        (out / name).write_text("mine")
        with pytest.raises(UserError, match=f"holds the results of something else .{name}"):
            run(Perfect(), toy_data, out, judge, images=3, scenes=0)
        assert [path.read_text() for path in out.iterdir()] == ["mine"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file: name a folder"):
        run(Perfect(), toy_data, tmp_path / "file", judge)
