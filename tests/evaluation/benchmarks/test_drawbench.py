"""Prompts by category: scores with their controls, text in images, the page, and the command."""

from __future__ import annotations

import html
import json
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from PIL import Image

import diptych
from diptych.cli import main as cli
from diptych.core.errors import UserError
from diptych.evaluation import written_text
from diptych.evaluation.benchmarks import drawbench
from diptych.evaluation.benchmarks.drawbench import evaluate_drawbench
from diptych.evaluation.text_image_scorer import TextImageScorer, open_scorer
from diptych.evaluation.written_text import edit_distance, quoted_text, text_scores
from diptych.models.judge import Judge
from tests.cli.test_cli import one_line
from tests.evaluation import toys

CONCEPTS = ["red disc", "blue box", "green bar", "black cross", "yellow disc", "red box"]
EVIL = 'a sign "Hi <script>alert(1)</script>"'


class Painter:
    """Draws what a prompt says in all but the share `wrong` of its images, where it draws another concept."""

    def __init__(self, wrong: float) -> None:
        self.wrong = wrong

    def generate(self, prompts: list[str], *, seeds: list[int], callback: Any, steps: int = 1) -> Any:
        images, rows = [], []
        for prompt, seed in zip(prompts, seeds, strict=True):
            right = prompt.removeprefix("a ") if prompt.removeprefix("a ") in toys.CONCEPTS else "black bar"
            other = toys.CONCEPTS[(toys.CONCEPTS.index(right) + 7) % len(toys.CONCEPTS)]
            images.append(toys.drawing(other if seed % 100 < 100 * self.wrong else right, "plain"))
            rows.append({"prompt": prompt, "negative": None, "seed": seed, "steps": steps})
        return type("R", (), {"images": images, "metadata": rows})


@pytest.fixture
def scorer(judge: Judge) -> TextImageScorer:
    return TextImageScorer(judge, {"source": "toy", "resize": "none", "score": "100 x cosine"})


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "p.csv"
    lines = [f"a {concept},{'Shapes' if i % 2 else 'Gary Marcus et al. '}" for i, concept in enumerate(CONCEPTS)]
    path.write_text("\n".join(["Prompts,Category", *lines, '"' + EVIL.replace('"', '""') + '",Text', ""]))
    return path


def evaluated(out: Path, scorer: TextImageScorer, table: Path, **more: Any) -> dict[str, Any]:
    models = {"good": lambda: (Painter(0.0), {}), "poor <b>": lambda: (Painter(0.9), {})}
    return evaluate_drawbench(models, out, scorer, prompts=table, **{"images": 6, "batch": 6, **more})


class Page(HTMLParser):
    """The images, scripts, links and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_scores_controls_and_page(tmp_path: Path, scorer: TextImageScorer, table: Path) -> None:
    out = tmp_path / "out"
    results = evaluated(out, scorer, table)
    good, poor = (results["models"][name]["categories"] for name in ("good", "poor <b>"))
    assert list(good) == ["Gary Marcus et al.", "Text", "Shapes", "all prompts"]
    for category in ("Shapes", "Gary Marcus et al."):
        assert good[category]["score"]["value"] > good[category]["other_prompts"]["value"] + 20
        assert good[category]["score"]["value"] > poor[category]["score"]["value"] + 20
        assert good[category]["own_first"]["value"] > 0.6 > 0.3 > poor[category]["own_first"]["value"]
    apart = results["difference"]["Shapes"]
    means = [one["Shapes"]["score"]["value"] for one in (good, poor)]
    assert apart["value"] == pytest.approx(means[0] - means[1]) and apart["first_better"] == 1
    # the same by hand
    lines = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    assert len(lines) == 2 * 7 * 6
    own = [line for line in lines if line["model"] == "good" and line["category"] == "Shapes"]
    by_prompt = [np.mean([one["score"] for one in own if one["prompt"] == p]) for p in {one["prompt"] for one in own}]
    assert good["Shapes"]["score"]["value"] == pytest.approx(np.mean(by_prompt), abs=1e-3)
    assert good["Shapes"]["score"]["error"] == pytest.approx(np.std(by_prompt, ddof=1) / 3**0.5, abs=1e-3)
    vectors = scorer.texts([lines[0]["prompt"]])
    with Image.open(out / lines[0]["file"]) as image:
        assert lines[0]["score"] == pytest.approx(100 * float(scorer.images([image]) @ vectors[0]), abs=1e-2)
    assert "own prompt first" in (out / "results.md").read_text()
    assert json.loads((out / "results.json").read_text())["prompts"]["as_drawbench"] is False

    text = (out / "index.html").read_text()
    page = Page(text)
    files = [str(image["src"]) for image in page.all("img")]
    assert len(files) == 84 and all((out / unquote(file)).is_file() for file in files)
    assert all(image["loading"] == "lazy" and image["alt"] for image in page.all("img"))
    assert EVIL in page.texts and len(page.all("script")) == 1 and "<script>alert" not in text
    assert not re.search(r"""(?:https?:)?//[\w.]""", re.sub(r"^\s*//.*$", "", text, flags=re.MULTILINE))
    assert {a["data-category"] for a in page.all("article")} == {"Gary Marcus et al.", "Text", "Shapes"}
    assert any("prefers-color-scheme: dark" in one for one in page.texts)
    assert html.escape("poor <b>") in text and "<b>" not in text


def test_the_same_again_generates_nothing_and_other_settings_are_refused(
    tmp_path: Path, scorer: TextImageScorer, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    results = evaluated(out, scorer, table)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png")}
    monkeypatch.setattr(Painter, "generate", lambda *_, **__: pytest.fail("it generated"))
    assert json.dumps(evaluated(out, scorer, table)) == json.dumps(results)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.png")} == before
    with pytest.raises(UserError, match=r"settings \[images 6, not 5\]"):
        evaluated(out, scorer, table, images=5)


def test_text_is_read_where_prompts_ask_for_it(tmp_path: Path, scorer: TextImageScorer, table: Path) -> None:
    seen: list[Image.Image] = []

    def read(image: Image.Image) -> list[str]:
        seen.append(image)
        return ["HI", "script alert"]

    results = evaluated(tmp_path / "out", scorer, table, reader=(read, {"ocr": "fake", "version": "1"}))
    assert len(seen) == 2 * 6
    written = results["models"]["good"]["written"]
    assert written["words"]["value"] == pytest.approx(3 / 5) and written["exact"]["value"] == 0
    assert "read: HI / script alert" in (tmp_path / "out" / "index.html").read_text()
    assert "text read by" in (tmp_path / "out" / "index.html").read_text()


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ('A sign that says "Keep Off".', "Keep Off"),
        ("A cake with “Forty” on it", "Forty"),
        ("The words 'no dogs' on John's door", "no dogs"),
        ('"A" and "B"', "A B"),
        ("John's and Ann's boots", None),
        ("A cat", None),
    ],
)
def test_quoted_text(prompt: str, text: str | None) -> None:
    assert quoted_text(prompt) == text


def test_text_scores() -> None:
    assert text_scores("Keep Off!", ["keep", "OFF"]) == {"words": 1, "letters": 1, "exact": 1}
    assert text_scores("the the", ["the"])["words"] == 0.5
    assert text_scores("abcd", ["abxd"]) == {"words": 0, "letters": 0.75, "exact": 0}
    assert text_scores("abc", []) == {"words": 0, "letters": 0, "exact": 0}
    assert [edit_distance(*pair) for pair in (("kitten", "sitting"), ("", "ab"), ("ab", "ab"), ("flaw", "lawn"))] == [
        3,
        2,
        0,
        2,
    ]


def test_without_rapidocr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr_onnxruntime", None)
    assert written_text.open_reader() is None
    with pytest.raises(UserError, match=r"pip install 'diptych\[ocr\]'"):
        written_text.require_reader()


def test_rapidocr_reads_printed_words() -> None:
    pytest.importorskip("rapidocr_onnxruntime")
    from PIL import ImageDraw, ImageFont

    page = Image.new("RGB", (400, 120), "white")
    ImageDraw.Draw(page).text((20, 30), "Keep Off", fill="black", font=ImageFont.load_default(size=60))
    opened = written_text.open_reader()
    assert opened is not None
    assert text_scores("keep off", opened[0](page))["letters"] > 0.8


def test_a_clip_of_transformers_scores(tmp_path: Path) -> None:
    from tests.pretrained.test_load_guide import clip_folder

    scorer = open_scorer(str(clip_folder(tmp_path)), "cpu")
    texts = scorer.texts(["a cat", "a dog " * 200])
    images = scorer.images([Image.new("RGB", (40, 40), "red"), Image.new("RGB", (40, 40), "blue")])
    assert texts.shape == images.shape and torch.allclose(texts.norm(dim=1), torch.ones(2))
    with pytest.raises(UserError, match="the scorer: no model at"):
        open_scorer(str(tmp_path / "none"), "cpu")
    assert scorer.facts["resize"].startswith("antialiased bicubic") and len(scorer.facts["sha256"]) == 64


# The command


def test_the_command(tmp_path: Path, table: Path, judge: Judge, scorer: TextImageScorer, monkeypatch, capsys) -> None:
    from diptych.evaluation import text_image_scorer

    monkeypatch.setattr(text_image_scorer, "open_scorer", lambda *_, **__: scorer)
    monkeypatch.setattr(diptych, "load", lambda name, device, **_: Painter(0.0 if name == "latent" else 0.9))
    out = tmp_path / "out"
    words = ["evaluate", "drawbench", "--prompts", str(table), "--images", "2", "--ocr", "off", "--out", str(out)]
    assert cli.main([*words, "--model", "latent", "--model", "cascade", "--steps", "3"]) == 0
    assert f"the images by prompt are in {out}/index.html" in capsys.readouterr().out
    assert "latent - cascade" in (out / "results.md").read_text()
    said = one_line(capsys, *words, "--model", "latent", "--steps", "4")
    assert "holds the results with other" in said and "settings [steps 3, not 4]" in said
    for more, message in (
        (["--model", "a", "--model", "a"], "two different ones"),
        (["--model", "a", "--model", "b", "--model", "c"], "give one --model"),
        (["--prompts", str(tmp_path / "none.csv")], "is no file"),
    ):
        assert message in one_line(capsys, *words[:-1], str(tmp_path / "new"), *more)
    (tmp_path / "plain.txt").write_text("a cat\n")
    assert "has no category" in one_line(capsys, *words, "--prompts", str(tmp_path / "plain.txt"))
    assert not (tmp_path / "new").exists()


def test_a_set_that_was_made_before_is_taken(tmp_path: Path, scorer: TextImageScorer, table: Path, monkeypatch) -> None:
    monkeypatch.setattr(diptych, "load", lambda source, device: Painter(0.0))
    out = tmp_path / "out"
    words = ["generate", "--prompts", str(table), "--images-per-prompt", "6", "--batch", "6", "--steps", "2"]
    assert cli.main([*words, "--model", "good", "--out", str(out / "images" / "good")]) == 0
    painter = Painter(0.0)
    monkeypatch.setattr(painter, "generate", lambda *_, **__: pytest.fail("it generated"))
    models = {"good": lambda: (painter, {"steps": 2})}
    evaluate_drawbench(models, out, scorer, prompts=table, images=6, batch=6, options={"steps": 2})
    assert len((out / "scores.jsonl").read_text().splitlines()) == 42
    (tmp_path / "other").mkdir()
    (out / "images").rename(tmp_path / "other" / "images")
    with pytest.raises(UserError, match=r"images/good holds a set of other settings \[steps 2, not 3\]"):
        evaluate_drawbench(
            {"good": lambda: (painter, {"steps": 3})}, tmp_path / "other", scorer, prompts=table, images=6
        )


def test_our_prompts_are_the_default() -> None:
    assert len(drawbench.read_categories()) == 200
