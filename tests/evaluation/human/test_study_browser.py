"""Raters in a real browser: keys, clicks, a reload, a server that is killed and comes back, pages without a server."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from diptych.evaluation.human.answer_store import AnswerStore
from diptych.evaluation.human.make_study import make_coco, make_drawbench
from diptych.evaluation.human.static_export import export_study, import_answers
from tests.browser import Browser, browser, chromium
from tests.evaluation.human.conftest import write_images

PROMPTS = ["<script>alert(1)</script> & a cat", "a dog", "two red birds", "a blue house", "one tree"]
pytestmark = pytest.mark.slow


@contextlib.contextmanager
def served(folder: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """The server as a process of its own, killed at the end, and its links."""
    command = [sys.executable, "-m", "diptych", "study", "serve", str(folder), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
    try:
        links = []
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("serving"):
                break
            links.append(line.split()[0])
        yield process, links
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chromium()
    root = tmp_path_factory.mktemp("browsed")
    for seed, name in enumerate(("alpha", "beta")):
        write_images(root / name, PROMPTS, 2, seed, side=32)
    write_images(root / "reference", PROMPTS, 1, 9, side=32)
    return root


def begin(page: Browser) -> None:
    page.wait("document.querySelector('.primary')")
    page.run("document.querySelector('.primary').click()")
    at(page, 1)


def at(page: Browser, number: int) -> None:
    page.wait(f"document.title.startsWith('Question {number} of') && document.querySelector('.question')")
    page.wait(f"document.querySelector('main').dataset.shown === '{number}'")


def thanked(page: Browser) -> None:
    page.wait("document.querySelector('h1')?.textContent === 'Thank you'")


def choices(folder: Path, number: int) -> list[str]:
    """What a rater answered, in the order of their questions, as shown."""
    store = AnswerStore(folder)
    rater = store.raters()[number]
    answers = store.answers_of(rater)
    store.close()
    asked = [ask.id for name in rater.plan.tasks for ask in store.study.task[name].asks]
    return [answers.get(question, "") for question in asked]


def test_two_raters_a_reload_and_a_killed_server(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    make_coco(folder, {"alpha": images / "alpha"}, images / "reference", pairs=4, controls=1)
    with browser() as page:
        with served(folder) as (process, links):
            port = int(links[0].split("/#")[0].rpartition(":")[2])
            page.open(links[0])  # photorealism: keys
            begin(page)
            for number, key in enumerate("12", 1):
                at(page, number)
                page.key(key)
            at(page, 3)
            page.reload()
            at(page, 3)  # where it was
            assert choices(folder, 0)[:3] == ["A", "B", ""]
            page.key("ArrowLeft")
            at(page, 2)
            assert page.run("document.querySelector('[aria-pressed=true]').dataset.value") == "B"
            page.key("1")  # a change of mind
            at(page, 3)
            page.key("ArrowRight")  # not before it is answered
            process.send_signal(signal.SIGKILL)
            process.wait()
            page.key("1")
            page.wait("document.getElementById('saved').textContent.startsWith('Not saved yet')")
        with served(folder, port) as (_, again):
            assert again == links
            at(page, 4)  # saved after all
            page.key("2")
            at(page, 5)
            page.key("2")
            thanked(page)
            assert choices(folder, 0) == ["A", "A", "A", "B", "B"]
            page.reload()
            thanked(page)
            offline = [error for error in page.errors if "ERR_CONNECTION" not in error]

            page.resize(390, 844, phone=True)
            page.open(again[1])  # alignment, on a phone: touches
            begin(page)
            seen = ""
            for number in range(1, 6):
                at(page, number)
                assert page.run("document.documentElement.scrollWidth <= innerWidth")
                seen += page.text()
                box = page.run(
                    "JSON.stringify(document.querySelectorAll('.choices button')[1].getBoundingClientRect())"
                )
                x, y = json.loads(box)["x"] + 5, json.loads(box)["y"] + 5
                page.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[{"x": x, "y": y}])
                page.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
            thanked(page)
            assert choices(folder, 1) == ["somewhat"] * 5
            assert PROMPTS[0] in seen and page.dialogs == 0  # the script is text

            page.open(again[0][:-5] + "wrong")
            page.wait("document.body.innerText.includes('This link is not known')")
        asked = {url.split("/#")[0].split("/")[2] for url in page.requests if url.startswith("http")}
        assert asked == {f"127.0.0.1:{port}"}
        assert not offline and not [
            error for error in page.errors if "ERR_CONNECTION" not in error and "401" not in error
        ]


def test_the_page_speaks_to_screen_readers(images: Path, tmp_path: Path) -> None:
    """Names and roles as the browser tells them to assistive software."""
    folder = tmp_path / "study"
    models = {name: images / name for name in ("alpha", "beta")}
    make_drawbench(folder, models, set_size=2)
    with served(folder) as (_, links), browser() as page:
        page.open(links[0])
        begin(page)
        nodes = page.call("Accessibility.getFullAXTree")["nodes"]
        found = [(node["role"]["value"], node["name"]["value"]) for node in nodes if node.get("name", {}).get("value")]
        names = dict.fromkeys(name for role, name in found if role == "button")
        assert {"I prefer set A", "I am indifferent", "I prefer set B"} <= names.keys()
        assert {f"Image {n} of 2 in set {side}: enlarge" for n in (1, 2) for side in "AB"} <= names.keys()
        assert ("group", "Which set of images is of higher quality?") in found
        assert ("progressbar", "Progress") in found and "status" in [node["role"]["value"] for node in nodes]
        assert page.run(
            "document.activeElement.dataset.question === document.querySelector('.question').dataset.question"
        )
        for key in "13":  # both questions of the first screen
            page.key(key)
        at(page, 2)
        assert choices(folder, 0)[:2] == ["A", "B"]
        page.run("document.querySelector('.image').click()")
        page.wait("document.getElementById('large').open")
        page.key("1")  # answers nothing while an image is enlarged
        page.key("Escape")
        page.wait("!document.getElementById('large').open")
        assert choices(folder, 0)[2:4] == ["", ""] and not page.errors


def test_an_exported_page_keeps_its_answers_and_gives_them_back(images: Path, tmp_path: Path) -> None:
    folder, out, downloads = tmp_path / "study", tmp_path / "pages", tmp_path / "downloads"
    make_coco(folder, {"alpha": images / "alpha"}, images / "reference", pairs=4, controls=1)
    page_file = export_study(folder, out)[1]
    downloads.mkdir()
    with browser() as page:
        page.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
        page.open(page_file.as_uri())
        begin(page)
        for number, key in enumerate("123", 1):
            at(page, number)
            page.key(key)
        at(page, 4)
        page.reload()
        at(page, 4)
        for number in (4, 5):
            at(page, number)
            page.key("1")
        thanked(page)
        page.run("document.querySelector('.primary').click()")
        saved = downloads / "answers-rater-2.json"
        for _ in range(200):
            if saved.exists() and saved.stat().st_size:
                break
            page.run("new Promise((done) => setTimeout(done, 50))")
        assert all(url.startswith(("file:", "blob:", "data:")) for url in page.requests) and not page.errors
        assert page.dialogs == 0
    assert [found[1:] for found in import_answers(folder, [saved])] == [(2, 5, 5)]
    assert [found[1:] for found in import_answers(folder, [saved])] == [(2, 5, 0)]
    assert choices(folder, 1) == ["yes", "somewhat", "no", "yes", "yes"]
