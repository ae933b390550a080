"""The page of images in a real browser, from a folder: filters, enlarging, a phone, darkness, no network."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from diptych.evaluation.gallery import Gallery, GalleryImage, GalleryPrompt
from tests.browser import Browser, browser

pytestmark = pytest.mark.slow
EVIL = "\"><img src=x onerror=alert(1)> <script>alert(2)</script> & 'x'"
MODELS = ("one", "runs/two & a very long name of a model")
SHOWN = "[...document.querySelectorAll('article')].filter((one) => one.offsetHeight).length"


@pytest.fixture
def page(tmp_path: Path) -> str:
    prompts = []
    for p, text in enumerate([EVIL, *(f"thing {i} " * 9 for i in range(39))]):
        images = {}
        for m, model in enumerate(MODELS):
            files = [f"images/m {m}#/{p}-{c}.png" for c in range(4)]
            for c, file in enumerate(files):
                (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (32, 32), (p * 6, 120 * m, 60 * c)).save(tmp_path / file)
            images[model] = [GalleryImage(file=file, note=f"score {p}.{c}{EVIL}") for c, file in enumerate(files)]
        notes = dict.fromkeys(MODELS, f"score {p}")
        prompts.append(GalleryPrompt(prompt=text, category=EVIL if p % 2 else "Plain", images=images, notes=notes))
    columns, rows = ["category", *(f"column {i}" for i in range(8))], [[EVIL, *(f"{i}.00±1.00" for i in range(8))]]
    gallery = Gallery(
        title=EVIL, facts={"models": EVIL}, columns=columns, rows=rows, remark=EVIL, prompts=prompts, size=(32, 32)
    )
    (tmp_path / "index.html").write_text(gallery.html(), encoding="utf-8")
    return (tmp_path / "index.html").as_uri()


def unharmed(page: Browser) -> None:
    assert page.errors == [] and page.dialogs == 0
    assert {url.partition(":")[0] for url in page.requests} <= {"file", "data", "about"}


def test_a_browser_shows_the_page(page: str) -> None:
    with browser() as seen:
        seen.open(page)
        assert EVIL in seen.text() and seen.run("document.title") == EVIL
        assert seen.run(SHOWN) == 40
        seen.wait("[...document.images].slice(0, 8).every((one) => one.naturalWidth === 32)")
        assert seen.run("[...document.images].filter((one) => one.complete && one.naturalWidth).length") < 320  # lazily
        seen.run("document.querySelectorAll('nav button')[2].click()")
        assert seen.run(SHOWN) == 20
        seen.run(
            "[...document.querySelectorAll('article')].find((one) => !one.hidden).querySelectorAll('.image')[3].click()"
        )
        seen.wait("document.querySelector('dialog').open")
        captions = "[...document.querySelectorAll('dialog figcaption')].map((one) => one.textContent)"
        assert seen.run(captions) == [f"{model}: score 1.3{EVIL}" for model in MODELS]
        seen.wait("[...document.querySelectorAll('dialog img')].every((one) => one.naturalWidth === 32)")
        seen.key("ArrowRight")  # to the next prompt that is shown
        assert seen.run(captions) == [f"{model}: score 3.0{EVIL}" for model in MODELS]
        seen.key("ArrowLeft")
        seen.key("ArrowLeft")
        assert seen.run(captions)[1] == f"{MODELS[1]}: score 1.2{EVIL}"
        seen.key("Escape")
        assert not seen.run("document.querySelector('dialog').open")
        unharmed(seen)


def test_a_phone_and_darkness(page: str) -> None:
    with browser() as seen:
        light = seen.run("matchMedia('(prefers-color-scheme: dark)').matches")
        seen.resize(390, 844, dark=True, phone=True)
        seen.open(page)
        assert seen.run("document.documentElement.scrollWidth") <= 390
        sides = seen.run("[...document.querySelectorAll('.image')].slice(0, 8).map((one) => one.offsetWidth)")
        assert min(sides) >= 60
        assert min(seen.run("[...document.querySelectorAll('nav button')].map((one) => one.offsetHeight)")) >= 36
        assert not light and seen.run("getComputedStyle(document.body).backgroundColor") == "rgb(18, 18, 20)"
        unharmed(seen)
