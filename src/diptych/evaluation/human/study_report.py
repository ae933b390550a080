"""The report of a study: tables in markdown, charts, the results as JSON, every answer as CSV."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from diptych.core.disk import make_folder, require_place, write_text
from diptych.core.errors import UserError
from diptych.evaluation import plots
from diptych.evaluation.human.answer_store import AnswerStore
from diptych.evaluation.human.preference import FEW, RESAMPLES
from diptych.evaluation.human.questions import QUESTIONS
from diptych.evaluation.human.rating_table import Rating
from diptych.evaluation.human.study_charts import draw_charts
from diptych.evaluation.human.study_results import study_results
from diptych.evaluation.report import DASH


def write_report(folder: Path, out: Path, resamples: int = RESAMPLES) -> str:
    """Write report.md, report.json, answers.csv and charts of the study in `folder` into `out`; return the text."""
    plots.require()
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder as --out")
    require_place(out)
    store = AnswerStore(folder)
    try:
        results, ratings = study_results(store, resamples)
    finally:
        store.close()
    make_folder(out)
    charts = draw_charts(results, out)
    kept = {rater["rater"] for rater in results["raters"] if rater["kept"]}
    text = report_text(results)
    write_text(out / "report.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    write_text(out / "answers.csv", answers_table(ratings, kept))
    write_text(out / "report.md", "\n".join([text, *(f"![]({name})\n" for name in charts)]))
    return f"{text}\n{out}: report.md, report.json, answers.csv, {', '.join(charts) or 'no charts'}"


def report_text(results: Mapping[str, Any]) -> str:
    """The report in markdown, without charts."""
    raters = results["raters"]
    left_out = sum(not rater["kept"] for rater in raters)
    threshold = results["settings"]["threshold"]
    ratings = results["ratings"]
    controls = "the study has no control questions"
    if results["settings"]["controls"]:
        share = f"less than {threshold:.0%} of their control questions correctly"
        controls = f"{left_out} raters are left out, who answered {share}"
    parts = [
        f"# Human study: {cell(', '.join(results['models']))} ({results['protocol']})\n",
        f"{ratings['counted']:,} ratings of {len(raters) - left_out} raters; {controls}. In brackets: 95 % intervals "
        f"by a bootstrap over prompts ({results['settings']['resamples']:,} resamples).\n",
    ]
    if results["protocol"] == "coco":
        parts += coco_tables(results)
    elif results["comparisons"]:
        parts += comparison_tables(results["comparisons"])
    if not ratings["counted"]:
        parts.append("No rating is left.\n")
    for kind, one in results.get("strengths", {}).items():
        parts += strength_table(QUESTIONS[kind].measure, one)
    names = ("rater", "part", "answered", "controls", "kept", "seconds")
    rows = [
        (
            str(rater["rater"]),
            rater["part"],
            f"{rater['answered']} of {rater['asked']}",
            f"{rater['correct']} of {rater['controls']}" if rater["controls"] else DASH,
            "yes" if rater["kept"] else "no",
            f"{rater['seconds']:.1f}",
        )
        for rater in raters
    ]
    parts += ["## Raters\n", table(names, rows), "Seconds: median of an answer.\n"]
    return "\n".join(parts)


def coco_tables(results: Mapping[str, Any]) -> list[str]:
    names = ("", "photorealism, %", "caption alignment", "ratings of an image")
    rows = []
    for source in dict.fromkeys((*results["photorealism"], *results["alignment"])):
        found = [results[kind].get(source) for kind in ("photorealism", "alignment")]
        each = [f"{one['ratings'] / one['prompts']:.1f}" if one else DASH for one in found]
        rows.append((source, *map(interval, found), " / ".join(each)))
    return [
        "## Photorealism and alignment\n",
        table(names, rows),
        "Photorealism: how often the model's image was chosen over the reference. Alignment: mean of yes = 100, "
        "somewhat = 50, no = 0.\n",
    ]


def comparison_tables(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    parts = []
    for key in dict.fromkeys((row["question"], *row["models"]) for row in rows):
        own = [row for row in rows if (row["question"], *row["models"]) == key]
        kind, first, second = key
        names = ("category", "prompts", "raters", first, "indifferent", second, f"{first}, ties as half")
        lines = [
            (
                row["category"],
                str(row["preference"]["prompts"]),
                str(row["raters"]),
                *(interval(row[name]) for name in ("first", "indifferent", "second", "preference")),
            )
            for row in own
        ]
        parts += [f"## {QUESTIONS[kind].measure.capitalize()}: {cell(first)} and {cell(second)}, %\n"]
        parts += [table(names, lines)]
    return parts


def strength_table(measure: str, one: Mapping[str, Any]) -> list[str]:
    """Bradley-Terry strengths, strongest first."""
    title = f"## Strengths by {measure}\n"
    if "reason" in one:
        return [title, f"None: {one['reason']}.\n"]
    order = sorted(one["players"], key=lambda name: -one["players"][name]["value"])
    places = [list(one["players"]).index(name) for name in order]
    rows = [
        (name, interval(one["players"][name], 2), *(f"{one['wins'][i][j]:.2f}" if i != j else "" for j in places))
        for name, i in zip(order, places, strict=True)
    ]
    note = "Bradley-Terry: natural logarithms of strengths, of mean 0; then the chance to win against each.\n"
    if one["without"] >= FEW:
        note += f"No intervals: {one['without']:.0%} of the resamples have no finite strengths.\n"
    return [title, table(("", "log strength", *(f"over {name}" for name in order)), rows), note]


def interval(share: Mapping[str, Any] | None, places: int = 1) -> str:
    """`61.3 [55.0, 67.2]`."""
    if share is None:
        return DASH
    value, low, high = (
        "" if share[name] is None else f"{share[name]:z.{places}f}" for name in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]" if low else value


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A markdown table."""
    lines = [names, ["-"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines) + "\n"


def cell(text: str) -> str:
    """Text that ends no cell and is no HTML."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "\\<")


def answers_table(ratings: Sequence[Rating], kept: set[int]) -> str:
    """Every answer that counts as a row, those of raters who are left out and of controls too."""
    names = [one.name for one in fields(Rating) if one.name != "sides"]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*names, "first", "second", "chosen", "kept"])
    for rating in ratings:
        values = [getattr(rating, name) for name in names]
        first, second = (*rating.sides, "")[:2]
        writer.writerow([*values, first, second, rating.chosen, int(rating.rater in kept)])
    return file.getvalue()
