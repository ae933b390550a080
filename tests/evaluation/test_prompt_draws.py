"""Draws of captions, with each choice that papers leave out, and the prompts in DrawBench's categories."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from diptych.cli import main as cli
from diptych.core.errors import UserError
from diptych.data.prompt_files import read_prompts
from diptych.evaluation.prompt_draws import (
    CATEGORIES,
    OWN_PROMPTS,
    against_drawbench,
    draw_captions,
    draw_record,
    record_path,
)
from tests.cli.test_cli import one_line

IMAGES, EACH = 60, 5


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    path = tmp_path / "captions_val2014.json"
    path.write_text(
        json.dumps(
            {
                "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(IMAGES)],
                "annotations": [
                    {"id": 1000 * c + i, "image_id": i, "caption": f"{i}: {c}\n"}
                    for c in range(EACH)
                    for i in range(IMAGES)
                ],
            }
        )
    )
    return path


def ids(rows: list[Any]) -> list[tuple[int, int]]:
    return [(row.fields["image_id"], row.id // 1000) for row in rows]


def test_one_caption_of_each_image(coco: Path) -> None:
    rows, record = draw_captions(coco, 40, seed=3)
    pairs = ids(rows)
    assert len({image for image, _ in pairs}) == 40
    assert all(row.prompt == f"{image}: {place}" for row, (image, place) in zip(rows, pairs, strict=True))
    assert len({place for _, place in pairs}) == EACH and rows[0].fields["file_name"] == f"{pairs[0][0]}.jpg"
    assert ids(draw_captions(coco, 10, seed=3)[0]) == pairs[:10]
    assert ids(draw_captions(coco, 40, seed=4)[0]) != pairs
    settings = {"captions": 300, "images": 60, "number": 40, "per_image": 1, "caption": "random", "seed": 3}
    assert record.items() >= settings.items() and len(record["sha256"]) == 64


def test_the_first_caption_is_that_of_the_same_images(coco: Path) -> None:
    rows, _ = draw_captions(coco, 40, caption="first", seed=3)
    assert [place for _, place in ids(rows)] == [0] * 40
    assert [image for image, _ in ids(rows)] == [image for image, _ in ids(draw_captions(coco, 40, seed=3)[0])]


def test_several_or_all_captions(coco: Path) -> None:
    counts = Counter(image for image, _ in ids(draw_captions(coco, None, per_image=3)[0]))
    assert len(counts) == IMAGES and set(counts.values()) == {3}
    everything, record = draw_captions(coco, None, per_image=None)
    assert len(set(ids(everything))) == 300 and record["per_image"] == "all" and record["caption"] is None
    counts = Counter(image for image, _ in ids(everything[:150]))
    assert len(set(counts.values())) > 1  # images are not drawn evenly: captions are


def test_the_order_of_the_file_does_not_matter(coco: Path) -> None:
    before = ids(draw_captions(coco, 40)[0])
    values = json.loads(coco.read_text())
    values["annotations"].reverse()
    coco.write_text(json.dumps(values))
    assert ids(draw_captions(coco, 40)[0]) == before


def test_the_command_records_the_draw(coco: Path, capsys) -> None:
    out = coco.parent / "p.jsonl"
    words = ["prompts", "coco", str(coco), "--number", "20", "--seed", "2", "--out", str(out)]
    assert cli.main(words) == 0
    assert "20 of 300 captions of 60 images, 1 of each image, drawn at random, seed 2" in capsys.readouterr().out
    assert read_prompts(out) == draw_captions(coco, 20, seed=2)[0]
    assert draw_record(out)["seed"] == 2
    assert cli.main(words) == 0  # again
    capsys.readouterr()
    assert "holds something else" in one_line(capsys, *words[:-3], "3", "--out", str(out))
    out.write_text(out.read_text() + '"a cat"\n')
    assert record_path(out).exists() and draw_record(out) == {}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--number", "61"], "has 60 captions with 1 of each of 60 images, fewer than 61"),
        (["--number", "301", "--per-image", "all"], "has 300 captions in all, fewer than 301"),
        (["--number", "0"], "must be at least 1"),
        (["--per-image", "some"], "must be a whole number"),
        (["--caption", "last"], "unknown choice 'last'"),
    ],
)
def test_draws_that_cannot_be(coco: Path, capsys, more: list[str], said: str) -> None:
    assert said in one_line(capsys, "prompts", "coco", str(coco), "--out", str(coco.parent / "p.jsonl"), *more)
    assert not (coco.parent / "p.jsonl").exists()


def test_a_file_without_images_is_refused(tmp_path: Path, capsys) -> None:
    path = tmp_path / "p.txt"
    path.write_text("a cat\n")
    assert "row 1: it has no image_id" in one_line(
        capsys, "prompts", "coco", str(path), "--out", str(tmp_path / "p.jsonl")
    )


# DrawBench's categories


def test_our_prompts_have_the_counts_of_drawbench() -> None:
    rows = read_prompts(OWN_PROMPTS)
    assert OWN_PROMPTS.read_text().startswith("Prompts,Category\n")
    assert against_drawbench(rows) is None and len({row.prompt for row in rows}) == len(rows) == sum(
        CATEGORIES.values()
    )
    quoted = [row for row in rows if row.fields["category"] == "Text"]
    assert all(row.prompt.count('"') == 2 for row in quoted)


def test_the_table_is_written_and_checked(tmp_path: Path, capsys) -> None:
    out = tmp_path / "p.csv"
    assert cli.main(["prompts", "drawbench", "--out", str(out)]) == 0
    assert "200 prompts in 11 categories: Colors 25, Conflicting 10" in capsys.readouterr().out
    out.write_text(out.read_text().replace("Gary Marcus et al.", "Gary Marcus et al. "))  # as it was published
    assert cli.main(["prompts", "drawbench", "--check", str(out)]) == 0
    capsys.readouterr()
    out.write_text(out.read_text() + "A cat.,Animals\n")
    assert "Animals: 1, not 0" in one_line(capsys, "prompts", "drawbench", "--check", str(out))
    assert "holds something else" in one_line(capsys, "prompts", "drawbench", "--out", str(out))
    assert "give --out FILE" in one_line(capsys, "prompts", "drawbench")


def test_missing_prompts_are_counted(tmp_path: Path) -> None:
    rows = read_prompts(OWN_PROMPTS)[1:]
    assert against_drawbench(rows) == "Colors: 24, not 25"
    with pytest.raises(UserError):
        read_prompts(tmp_path / "none.csv")
