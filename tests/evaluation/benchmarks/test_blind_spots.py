"""What measures miss: a whole study on small drawings, its resuming, and a study with people made of its images."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from rich.console import Console

from diptych.core.errors import UserError
from diptych.evaluation.benchmarks import blind_spots
from diptych.evaluation.benchmarks.blind_spots import KINDS, measure_blind_spots
from diptych.evaluation.human.answer_store import AnswerStore
from diptych.evaluation.human.fault_study import agreement_with_people
from diptych.evaluation.human.make_study import make_drawbench
from diptych.evaluation.set_measures import DIRECTIONS
from tests.evaluation.human.answering import answer_all

NAMES = ("cat", "dog", "cow", "pig", "fox", "car", "bus", "egg", "pen", "key", "bed", "jar")


class MeanColours:
    """Features of 4 x 4 cells, in place of a network."""

    device, width = torch.device("cpu"), 48

    def describe(self) -> dict:
        return {"network": "cells", "weights": "none"}

    def prepare(self, image: Image.Image) -> torch.Tensor:
        return torch.tensor(np.asarray(image.resize((4, 4), Image.Resampling.BOX), np.float32) / 255)

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


class FirstCells:
    """Scores: the images' first cells against a vector of each text."""

    def __init__(self) -> None:
        self.facts = {"source": "cells"}

    def texts(self, prompts: list[str]) -> torch.Tensor:
        rows = [torch.randn(48, generator=torch.Generator().manual_seed(len(prompt))) for prompt in prompts]
        return torch.stack(rows) / 48

    def images(self, images: list[Image.Image]) -> torch.Tensor:
        return torch.stack([MeanColours().prepare(one).flatten() for one in images])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings of 12 things in two styles, as emoji shards have them."""
    folder = tmp_path_factory.mktemp("drawings")
    with tarfile.open(folder / "single-0000.tar", "w") as tar:
        for n, name in enumerate(NAMES):
            for style in ("round", "square"):
                image, file = Image.new("RGB", (32, 32), "white"), io.BytesIO()
                draw = getattr(ImageDraw.Draw(image), "ellipse" if style == "round" else "rectangle")
                draw((4 + n % 4, 3 + n % 3, 27, 27), fill=(20 * n, 200 - 15 * n, 90), outline="black")
                image.save(file, "PNG")
                meta = {"kind": "single", "concept": name, "style": style, "captions": [f"a {style} {name}"]}
                for ending, content in (("png", file.getvalue()), ("json", json.dumps(meta).encode())):
                    entry = tarfile.TarInfo(f"{style}-{name}.{ending}")
                    entry.size = len(content)
                    tar.addfile(entry, io.BytesIO(content))
    return folder


def run(data: Path, out: Path, **options) -> dict:
    options = {"images": 10, "trials": 2, "resamples": 2, "k": 1, "people": 3, "batch": 8, **options}
    console = Console(file=io.StringIO(), width=600)  # wider than any path
    results = measure_blind_spots(data, out, MeanColours(), FirstCells(), console=console, **options)  # type: ignore
    return {**results, "printed": console.file.getvalue().replace(str(out), "OUT")}  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def study(data: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    out = tmp_path_factory.mktemp("blind")
    return SimpleNamespace(out=out, results=run(data, out))


def test_every_part_is_measured_printed_and_drawn(study: SimpleNamespace) -> None:
    cells = {(cell["part"], cell["kind"]): cell for cell in study.results["cells"]}
    assert [kind for part, kind in cells if part == "graded"] == list(KINDS)
    for kind in KINDS:
        cell = cells["graded", kind]
        assert {len(values) for values in cell["values"].values()} == {5} and cell["tau"].keys() == DIRECTIONS.keys()
        assert len({cell["values"]["fid"][0] for cell in (cell, cells["invisible", "JPEG of 95"])}) == 1
    assert cells["graded", "colour cast"]["tau"]["fid"]["value"] == 1
    assert cells["graded", "wrong object"]["tau"]["fid"] | {"low": 0, "high": 0} == {"value": 0, "low": 0, "high": 0}
    assert (
        cells["graded", "wrong object"]["values"]["alignment"][4] != cells["graded", "noise"]["values"]["alignment"][0]
    )
    psnr = cells["graded", "noise"]["psnr"]
    assert psnr == sorted(psnr, reverse=True) and cells["invisible", "noise of 1.5"]["psnr"][0] > psnr[0]
    assert "Order of levels" in study.results["printed"] and "wrong object (" in study.results["printed"]
    for name in ("plot.png", "sheet.png"):
        with Image.open(study.out / name) as image:
            assert min(image.size) > 300


def test_a_complete_study_is_printed_again_and_one_that_was_stopped_goes_on(
    study: SimpleNamespace, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object) -> dict:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(blind_spots, "measure_counts", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(data, tmp_path)
    monkeypatch.setattr(blind_spots.BlindSpots, "halves", stopped)  # all of these are there
    monkeypatch.setattr(blind_spots.blind_spot_report, "plot", lambda *_: None)
    assert run(data, tmp_path) == study.results == run(data, study.out)
    with pytest.raises(UserError, match=r"holds results with other settings \[k 1, not 2\]"):
        run(data, tmp_path, k=2)


def test_people_are_shown_the_same_images_and_their_order_is_compared(
    study: SimpleNamespace, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    people = study.out / "people"
    folders = {path.name: path for path in sorted(people.iterdir()) if path.is_dir()}
    assert len(folders) == len(KINDS) and "few-different" not in folders and "original" in folders
    asked = (people / "README.md").read_text()
    assert all(f"={name}'" in asked for name in folders)
    models = {
        name.replace("-", " "): folders[name] for name in ("original", "noise", "blur", "colour-cast", "contrast")
    }
    make_drawbench(tmp_path / "study", models, set_size=1)
    store = AnswerStore(tmp_path / "study")
    liked = {name: n for n, name in enumerate(models)}

    def choose(rater: int, task, ask) -> str:
        one, other = (liked[side.source] for side in task.sides)
        if abs(one - other) == 1 and rater % 3 == 0:  # neighbours are told apart less well
            return "A" if one > other else "B"
        return "A" if one < other else "B"

    answer_all(store, 30, choose)
    store.close()
    monkeypatch.setattr(blind_spots.blind_spot_report, "plot", lambda *_: None)
    found = run(data, study.out, answers=tmp_path / "study")["people"]
    assert found["order"] == ["noise", "blur", "colour cast", "contrast"]
    assert found["tau"].keys() == DIRECTIONS.keys() and found["ratings"] == 2 * 3 * 30
    exact = {kind: float(n) for kind, n in liked.items()}
    worse = {"fid": exact, "kid": {kind: -n for kind, n in exact.items()}}
    assert agreement_with_people(tmp_path / "study", worse)["tau"] == {"fid": 1, "kid": -1}


def test_what_cannot_be_measured_is_refused(study: SimpleNamespace, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"24 single drawings, and twice 13 are needed: give --images"):
        run(data, tmp_path, images=13)
    with pytest.raises(UserError, match="no more than k = 5 neighbours"):
        run(data, tmp_path, k=5)
    with pytest.raises(UserError, match="no study"):
        run(data, study.out, answers=tmp_path)
    plain = tmp_path / "plain"
    plain.mkdir()
    for number in range(20):
        Image.new("RGB", (16, 16), (number, 0, 0)).save(plain / f"{number}.png")
        (plain / f"{number}.txt").write_text(f"a red {number}")
    with pytest.raises(UserError, match="say no style"):
        run(plain, tmp_path / "o")
    assert not (tmp_path / "o").exists()
