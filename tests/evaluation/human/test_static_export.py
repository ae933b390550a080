"""Exported pages hold one rater's screens and nothing more; files that come back are checked and taken in once."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from diptych.core.errors import UserError
from diptych.evaluation.human.answer_store import AnswerStore
from diptych.evaluation.human.make_study import make_coco
from diptych.evaluation.human.static_export import export_study, import_answers
from tests.evaluation.human.conftest import write_images


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="study-data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def file_of(folder: Path, data: dict[str, Any], count: int, **change: Any) -> Path:
    """A file as the page saves it, with the first `count` questions answered."""
    questions = [question for task in data["tasks"] for question in task["questions"]][:count]
    answers = [
        {"nonce": f"{n:032x}", "question": question["id"], "choice": question["choices"][0]["value"], "milliseconds": n}
        for n, question in enumerate(questions)
    ]
    values = {"format": "diptych-study-answers", "study": data["study"], "rater": data["rater"], "answers": answers}
    path = folder / f"answers-{len(list(folder.glob('answers-*')))}.json"
    path.write_text(json.dumps({**values, **change}))
    return path


def test_pages_need_nothing_but_their_images(coco: Path, tmp_path: Path) -> None:
    pages = export_study(coco, tmp_path / "out", raters=3)
    assert [page.name for page in pages] == ["rater-1.html", "rater-2.html", "rater-3.html"]
    store = AnswerStore(coco)
    used = set()
    for page, rater in zip(pages, store.raters(), strict=True):
        text, data = page.read_text(), data_of(page)
        assert [task["id"] for task in data["tasks"]] == list(rater.plan.tasks) and data["rater"] == rater.code
        assert rater.token not in text and not re.search(r"alpha|beta|control|degraded", json.dumps(data))
        assert not re.search(r'(src|href)="(?!data:)', text) and not re.search(r"^(import|export) ", text, re.MULTILINE)
        used |= {name for task in data["tasks"] for side in task["sides"] for name in side}
    assert {path.stem for path in (tmp_path / "out" / "images").iterdir()} == used
    with pytest.raises(UserError, match="is there already"):
        export_study(coco, tmp_path / "out")


def test_a_prompt_cannot_end_the_data(tmp_path: Path) -> None:
    prompt = "</script><script>alert(1)</script>\u2028<!--"
    images = write_images(tmp_path / "images", [prompt, "a cat"], 1, 0)
    reference = write_images(tmp_path / "reference", [prompt, "a cat"], 1, 1)
    make_coco(tmp_path / "study", {"m": images}, reference, pairs=2, controls=0)
    page = export_study(tmp_path / "study", tmp_path / "out")[1]
    assert page.read_text().count("<script") == 2 and "<!--" not in page.read_text()
    assert "</script><script>alert(1)</script> <!--" in [task["prompt"] for task in data_of(page)["tasks"]]


def test_files_are_taken_in_once(coco: Path, tmp_path: Path) -> None:
    pages = [data_of(page) for page in export_study(coco, tmp_path / "out", raters=2)]
    half, whole, other = file_of(tmp_path, pages[0], 3), file_of(tmp_path, pages[0], 6), file_of(tmp_path, pages[1], 6)
    assert [found[1:] for found in import_answers(coco, [half])] == [(1, 3, 3)]
    assert [found[1:] for found in import_answers(coco, [whole, other, half])] == [(1, 6, 3), (2, 6, 6), (1, 3, 0)]
    assert [found[1:] for found in import_answers(coco, [whole])] == [(1, 6, 0)]
    assert len(AnswerStore(coco).last_answers()) == 12


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "x"}, "holds no answers"),
        ({"answers": {}}, "holds no answers"),
        ({"study": "0" * 16}, "another study"),
        ({"rater": "x" * 22}, "of no rater"),
        ({"rater": None}, "of no rater"),
        ({"answers": [{}]}, "answer 1 is no object"),
        ({"answers": ["x"]}, "answer 1 is no object"),
        (
            {"answers": [{"nonce": "0" * 32, "question": "x", "choice": "A", "milliseconds": 1}]},
            "answer 1: .*not asked",
        ),
    ],
)
def test_a_file_that_is_wrong_is_refused_and_all_with_it(coco: Path, tmp_path: Path, change: Any, reason: str) -> None:
    data = data_of(export_study(coco, tmp_path / "out")[0])
    good, bad = file_of(tmp_path, data, 6), file_of(tmp_path, data, 6, **change)
    with pytest.raises(UserError, match=rf"{bad.name}.*{reason}"):
        import_answers(coco, [good, bad])
    assert not AnswerStore(coco).last_answers()


def test_files_that_contradict_each_other_are_refused_and_all_with_them(coco: Path, tmp_path: Path) -> None:
    pages = [data_of(page) for page in export_study(coco, tmp_path / "out", raters=2)]
    good, one = (file_of(tmp_path, page, 6) for page in pages)
    values = json.loads(one.read_text())
    twice = file_of(tmp_path, pages[1], 6, answers=[{**answer, "nonce": "0" * 32} for answer in values["answers"]])
    with pytest.raises(UserError, match=f"{twice.name}: two different answers have the same nonce"):
        import_answers(coco, [good, twice])
    assert not AnswerStore(coco).last_answers()


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 100_000, b"\xff\xfe", b"null", b'"x"'])
def test_a_file_that_is_no_json_is_one_line(coco: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "answers.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"answers\.json"):
        import_answers(coco, [path])
    with pytest.raises(UserError, match=r"no file .*none\.json"):
        import_answers(coco, [tmp_path / "none.json"])
