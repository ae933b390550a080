"""A study as a folder of pages that need no server, and the answers that come back from them as files."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diptych.core.disk import replacing, require_place
from diptych.core.errors import UserError
from diptych.core.json_files import read_named_json
from diptych.evaluation.human.answer_store import AnswerStore, BadAnswer, GivenAnswer, Rater, check_answer
from diptych.evaluation.human.study_file import IMAGES
from diptych.evaluation.human.study_server import page_data
from diptych.serving.safe_files import page_files, read_inside

SCRIPTS = ("answers.js", "screen.js", "study.js")
"""In an order in which each needs only those before it."""
FORMAT = "diptych-study-answers"
MOST_BYTES = 2**25
"""Of a file with answers."""


def export_study(folder: Path, out: Path, raters: int | None = None) -> list[Path]:
    """Write a page for each rater, `rater-1.html` and so on, and the images, into a new folder; return the pages.

    A page holds its rater's screens and no token of the server; scripts and styles are in it, because a browser loads
    no modules from file://. Its answers stay in the browser's storage until they are saved as a file.

    raters: as in `serve_study`.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is there already: name a new folder")
    require_place(out)
    store = AnswerStore(folder)
    try:
        known = store.raters()
        everyone = store.raters(raters or (0 if known else len(store.study.batches)))
        pages = page_files("diptych.evaluation.human", "pages")
        used = {name for rater in everyone for task in rater.plan.tasks for name in images_of(store, task)}
        with replacing(out) as partial:
            (partial / IMAGES).mkdir(parents=True)
            for name in sorted(used):
                data = read_inside(folder / IMAGES, f"{name}.png")
                if data is None:
                    raise UserError(f"{folder / IMAGES / name}.png is missing: make the study again")
                (partial / IMAGES / f"{name}.png").write_bytes(data)
            for rater in everyone:
                values = {**page_data(store, rater, answers=False), "rater": rater.code, "number": rater.number + 1}
                page = whole_page(pages, values)
                (partial / page_name(rater)).write_text(page, encoding="utf-8")
        return [out / page_name(rater) for rater in everyone]
    finally:
        store.close()


def page_name(rater: Rater) -> str:
    return f"rater-{rater.number + 1}.html"


def images_of(store: AnswerStore, task: str) -> list[str]:
    return [name for side in store.study.task[task].sides for name in side.images]


def whole_page(pages: dict[str, bytes], values: dict[str, Any]) -> str:
    """The page with its style, its scripts joined, and its data in it. "<" in the data is written as \\u003c: no text
    of a prompt can end the element."""
    html = pages["index.html"].decode()
    data = json.dumps(values, ensure_ascii=False).replace("<", "\\u003c").replace("\u2028", "\\u2028")
    script = f"\n{joined(pages)}"
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    data_element = f'<script type="application/json" id="study-data">{data}</script>'
    parts = {
        '<link rel="stylesheet" href="pages/study.css">': f"<style>\n{pages['study.css'].decode()}</style>",
        '<script type="module" src="pages/study.js"></script>': f"{data_element}\n"
        f'    <script type="module">{script}</script>',
        '<meta charset="utf-8">': '<meta charset="utf-8">\n    '
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
    }
    for old, new in parts.items():
        assert html.count(old) == 1
        html = html.replace(old, new)
    return html


def joined(pages: dict[str, bytes]) -> str:
    """The modules as one: without imports from each other, and without `export`."""
    text = "\n".join(pages[name].decode() for name in SCRIPTS)
    return re.sub(
        r"^export (?=class |function |async |const )", "", re.sub(r"^import .*;\n", "", text, flags=re.M), flags=re.M
    )


def import_answers(folder: Path, files: Sequence[Path]) -> list[tuple[Path, int, int, int]]:
    """Take in files that raters saved: (file, rater from 1, answers, new ones). All files are taken in, or none; a
    file that is taken in again adds nothing. Raises a `UserError` that names file and answer."""
    store = AnswerStore(folder)
    try:
        read = [(path, *read_answers(store, path)) for path in files]
        new = store.add_all([(rater, given, path.name) for path, rater, given in read])
        return [
            (path, rater.number + 1, len(given), count) for (path, rater, given), count in zip(read, new, strict=True)
        ]
    finally:
        store.close()


def read_answers(store: AnswerStore, path: Path) -> tuple[Rater, list[GivenAnswer]]:
    """The rater and the answers of a file."""
    if path.is_file() and path.stat().st_size > MOST_BYTES:
        raise UserError(f"{path} is too large for a file of answers")
    values = read_named_json(path, "answers, as the page saves them")
    if not isinstance(values, dict) or values.get("format") != FORMAT or not isinstance(values.get("answers"), list):
        raise UserError(f"{path} holds no answers as an exported page saves them")
    if values.get("study") != store.study.id:
        raise UserError(f"{path} has answers to another study ({values.get('study')}, not {store.study.id})")
    code = values.get("rater")
    rater = store.by_code(code) if isinstance(code, str) else None
    if rater is None:
        raise UserError(f"{path} is of no rater of {store.folder}: was it exported from another copy of the study?")
    given = []
    for number, one in enumerate(values["answers"], 1):
        try:
            answer = GivenAnswer(**{name: one[name] for name in GivenAnswer._fields})
            check_answer(store.study, rater.plan, answer)
        except (KeyError, TypeError):
            raise UserError(f"{path}, answer {number} is no object with {', '.join(GivenAnswer._fields)}") from None
        except BadAnswer as error:
            raise UserError(f"{path}, answer {number}: {error}") from None
        given.append(answer)
    return rater, given
