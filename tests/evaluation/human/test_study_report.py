"""Shares, left-out raters, categories, charts and tables, from answers that are known."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from diptych.core.errors import UserError
from diptych.evaluation.human.answer_store import AnswerStore
from diptych.evaluation.human.rating_table import read_ratings, score_raters
from diptych.evaluation.human.study_charts import draw_charts
from diptych.evaluation.human.study_file import Ask, Task
from diptych.evaluation.human.study_report import report_text, write_report
from diptych.evaluation.human.study_results import study_results
from tests.evaluation.human.answering import answer_all, correct_or

SCORES = {"alpha": "yes", "beta": "no", "reference": "somewhat"}


def in_coco(rater: int, task: Task, ask: Ask) -> str:
    """alpha is always chosen over the reference, beta never; captions fit alpha, not beta, and half the reference."""
    source = task.sides[0].source
    return SCORES[source] if ask.kind == "alignment" else "A" if source == "alpha" else "B"


def test_shares_and_points_of_known_answers(coco: Path) -> None:
    store = AnswerStore(coco)
    answer_all(store, 20, correct_or(in_coco))
    results, ratings = study_results(store, resamples=100)
    assert {name: one["value"] for name, one in results["photorealism"].items()} == {"alpha": 100, "beta": 0}
    points = {name: one["value"] for name, one in results["alignment"].items()}
    assert points == {"alpha": 100, "beta": 0, "reference": 50}
    assert results["ratings"] == {"all": 20 * 6, "counted": 20 * 4} and len(ratings) == 120
    assert all(one["ratings"] == 16 and one["prompts"] == 8 for one in results["photorealism"].values())
    assert any(rating.flipped for rating in ratings) and not all(rating.flipped for rating in ratings)


def test_raters_who_fail_controls_are_left_out(coco: Path) -> None:
    """Rater 1 fails one control of two, rater 5 answers none; what they said does not count."""
    store = AnswerStore(coco)
    answer_all(store, 20, lambda rater, task, ask: ("B" if ask.correct == ("A",) else "A") if rater == 1
               else correct_or(in_coco)(rater, task, ask))  # fmt: skip
    ratings = read_ratings(store)
    scores = {score.rater: score for score in score_raters(store, ratings)}
    assert [rater for rater, score in scores.items() if not score.kept] == [1]
    assert (scores[1].controls, scores[1].correct, scores[2].correct) == (2, 0, 2)
    assert (scores[1].asked, scores[1].answered, scores[1].seconds) == (6, 6, 1.0)
    left = [one for one in ratings if not (one.rater == 5 and one.control)]
    assert not next(score for score in score_raters(store, left) if score.rater == 5).kept
    results, _ = study_results(store, resamples=100)
    assert results["photorealism"]["alpha"]["value"] == 100  # the answers of rater 1 would have changed it
    assert results["ratings"]["counted"] == 19 * 4


@pytest.mark.parametrize("number", range(3))
def test_one_who_always_answers_the_same_is_left_out(coco: Path, number: int) -> None:
    """Whichever button it is: half of the controls are wrong."""
    store = AnswerStore(coco)
    answer_all(
        store,
        20,
        lambda rater, task, ask: ("yes", "somewhat", "no")[number] if ask.kind == "alignment" else "ABA"[number],
        as_shown=True,
    )
    scores = score_raters(store, read_ratings(store))
    assert [(score.controls, score.correct, score.kept) for score in scores] == [(2, 1, False)] * 20


def test_pairs_and_categories_of_known_answers(drawbench: Path) -> None:
    """Colors: the first is better. Shapes: indifferent in quality, the second in alignment."""

    def choose(rater: int, task: Task, ask: Ask) -> str:
        if task.category == "Colors":
            return "A"
        return "indifferent" if ask.kind == "set-quality" else "B"

    store = AnswerStore(drawbench)
    answer_all(store, 12, correct_or(choose))
    results, _ = study_results(store, resamples=100)
    rows = {(row["question"], *row["models"], row["category"]): row for row in results["comparisons"]}
    assert len(rows) == 2 * 3 * 3
    for pair in (("alpha", "beta"), ("alpha", "gamma"), ("beta", "gamma")):
        assert rows["set-quality", *pair, "Colors"]["first"]["value"] == 100
        shapes = rows["set-quality", *pair, "Shapes"]
        assert (shapes["indifferent"]["value"], shapes["preference"]["value"]) == (100, 50)
        assert rows["set-alignment", *pair, "Shapes"]["second"]["value"] == 100
        whole = [rows["set-alignment", *pair, name] for name in ("Colors", "Shapes", "all")]
        assert sum(row["preference"]["ratings"] for row in whole[:2]) == whole[2]["preference"]["ratings"] == 24
        share = 100 * whole[0]["preference"]["ratings"] / 24
        assert whole[2]["preference"]["value"] == pytest.approx(share)
    assert "players" in results["strengths"]["set-quality"]  # each has won somewhere


def test_a_report_is_written(drawbench: Path, coco: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no answers yet"):
        write_report(coco, tmp_path / "early")
    assert not (tmp_path / "early").exists()
    for folder, choose, charts in (
        (coco, in_coco, {"coco.png"}),
        (drawbench, lambda rater, task, ask: ("A", "indifferent", "B")[rater % 3], {"preference.png", "strengths.png"}),
    ):
        store = AnswerStore(folder)
        count = answer_all(store, 18, correct_or(choose))
        out = tmp_path / folder.name
        text = write_report(folder, out, resamples=100)
        files = {path.name for path in out.iterdir()}
        assert files >= {"report.md", "report.json", "answers.csv", *charts}
        assert (folder == drawbench) == ("categories-3.png" in files)
        for name in files:
            if name.endswith(".png"):
                with Image.open(out / name) as image:
                    assert min(image.size) > 300
                assert f"![]({name})" in (out / "report.md").read_text()
        results = json.loads((out / "report.json").read_text())
        assert results["study"] == store.study.id and len(results["raters"]) == 18
        with open(out / "answers.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == count and {row["kept"] for row in rows} == {"1"}
        chosen = {row["chosen"] for row in rows if row["kind"] != "alignment" and not row["control"]}
        assert chosen == ({"alpha", "reference"} if folder == coco else {"alpha", "beta", "gamma", "indifferent"})
        assert "95 % intervals" in text and str(out) in text
    assert write_report(folder, out, resamples=100) == text  # the same answers, the same report


def test_nothing_is_left_when_all_raters_are_left_out(coco: Path, tmp_path: Path) -> None:
    store = AnswerStore(coco)
    wrong = {"photorealism": "B", "alignment": "somewhat"}
    answer_all(store, 10, lambda rater, task, ask: wrong[ask.kind])
    text = write_report(coco, tmp_path / "out", resamples=100)
    assert "No rating is left" in text and "10 raters are left out" in text


@pytest.mark.filterwarnings("error")
def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    """Two dollar signs would be mathematics, and here none that can be read."""
    share = {"value": 50.0, "low": 40.0, "high": 60.0, "ratings": 4, "prompts": 2}
    names = ["$\\frac$", "_b", "<b>|c"]
    row = {"question": "set-quality", "measure": "fidelity", "preference": share, "raters": 1}
    rows = [
        {**row, "models": names[:2], "category": category, "first": share, "indifferent": share, "second": share}
        for category in ("$x$ & $^", "B", "all")
    ]
    players = {name: {"value": 0.0, "low": -1.0, "high": 1.0} for name in names}
    strengths = {"set-quality": {"players": players, "wins": [[0.5] * 3] * 3, "without": 0.0, "ratings": 4}}
    results = {"protocol": "drawbench", "models": names, "comparisons": rows, "strengths": strengths}
    assert draw_charts(results, tmp_path) == ["preference.png", "categories-1.png", "strengths.png"]
    results |= {"raters": [], "ratings": {"all": 4, "counted": 4}}
    results["settings"] = {"threshold": 0.8, "controls": 0, "resamples": 100}
    text = report_text(results)
    assert "\\<b>\\|c" in text and "no control questions" in text
    widths = {line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("| ")}
    assert widths == {8, 6, 7}  # each table keeps its columns
