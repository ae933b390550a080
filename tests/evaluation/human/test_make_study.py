"""Studies ask what the paper asks, balanced, with controls whose answer is known, and betray nothing."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diptych.core.errors import DiptychWarning, UserError
from diptych.core.image_files import fit_image, read_image
from diptych.evaluation.human.control_tasks import words_of
from diptych.evaluation.human.image_pools import read_pool
from diptych.evaluation.human.make_study import categories_of, make_coco, make_drawbench
from diptych.evaluation.human.study_file import read_study
from diptych.evaluation.human.study_images import common_size
from diptych.evaluation.set_files import write_image
from diptych.models.metadata import png_texts
from tests.evaluation.human.conftest import PROMPTS, write_images


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_each_pair_is_asked_once_of_each_source(coco: Path) -> None:
    study = read_study(coco)
    tasks = [task for task in study.tasks if not task.control]
    asked = Counter((task.asks[0].kind, task.prompt, tuple(side.source for side in task.sides)) for task in tasks)
    assert set(asked.values()) == {1}
    prompts = {prompt for _, prompt, _ in asked}
    assert len(prompts) == 8 and prompts < set(PROMPTS)
    for kind, sides in (
        ("photorealism", [("alpha", "reference"), ("beta", "reference")]),
        ("alignment", [("alpha",), ("beta",), ("reference",)]),
    ):
        assert {(p, s) for k, p, s in asked if k == kind} == {(p, s) for p in prompts for s in sides}


def test_a_batch_has_each_caption_once_and_all_sources_alike(coco: Path) -> None:
    study = read_study(coco)
    assert len(study.batches) == 2 * 2 + 2 * 3
    assert sorted(name for batch in study.batches for name in batch.tasks) == sorted(
        task.id for task in study.tasks if not task.control
    )
    for batch in study.batches:
        tasks = [study.task[name] for name in batch.tasks]
        assert len({task.prompt for task in tasks}) == len(tasks) == 4
        sources = ("alpha", "beta") if batch.part == "photorealism" else ("alpha", "beta", "reference")
        counts = [sum(task.sides[0].source == source for task in tasks) for source in sources]
        assert max(counts) - min(counts) <= 1
        assert {task.asks[0].kind for task in tasks} == {batch.part}


def test_controls_have_the_answer_that_they_say(folders: Path, tmp_path: Path) -> None:
    coco = tmp_path / "study"
    study = make_coco(coco, {"a": folders / "alpha"}, folders / "reference", pairs=8, batch=4, controls=8)
    reference = read_pool("reference", folders / "reference")
    original = {
        prompt: np.asarray(fit_image(read_image(reference.images[prompt][0]), (24, 24))) for prompt in reference.images
    }
    seen = set()
    for batch in study.batches:
        asked = {study.task[name].prompt for name in batch.tasks}
        for task in (study.task[name] for name in batch.controls):
            first = pixels(coco / "images" / f"{task.sides[0].images[0]}.png")
            own = next(prompt for prompt, image in original.items() if np.array_equal(image, first))
            assert own not in asked
            correct = task.asks[0].correct
            if batch.part == "photorealism":
                worse = pixels(coco / "images" / f"{task.sides[1].images[0]}.png")
                assert correct == ("A",) and np.abs(worse.astype(int) - first).mean() > 10
            elif correct == ("no",):
                assert not words_of(task.prompt) & words_of(own)
            else:
                assert correct == ("yes", "somewhat") and task.prompt == own
            seen.add(correct)
    assert seen == {("A",), ("no",), ("yes", "somewhat")}


def test_images_say_nothing(coco: Path) -> None:
    """No metadata, one size, and names that are hashes; the folder holds these files and no others."""
    study = read_study(coco)
    files = sorted((coco / "images").iterdir())
    assert [path.stem for path in files] == sorted(study.images)
    for path in files:
        with Image.open(path) as image:
            image.load()
            assert image.size == (24, 24) and not image.info
        assert len(path.stem) == 32 and int(path.stem, 16) >= 0


def test_the_same_seed_makes_the_same_study(folders: Path, tmp_path: Path) -> None:
    def make(name: str, seed: int) -> bytes:
        make_coco(tmp_path / name, {"a": folders / "alpha"}, folders / "reference", pairs=4, batch=2, seed=seed)
        return (tmp_path / name / "study.json").read_bytes()

    first = make("one", 0)
    assert make("two", 0) == first != make("three", 1)
    names = [sorted(path.name for path in (tmp_path / name / "images").iterdir()) for name in ("one", "two")]
    assert names[0] == names[1]


def test_every_pair_of_models_is_compared_on_each_prompt(drawbench: Path) -> None:
    study = read_study(drawbench)
    asked = Counter(
        (task.prompt, tuple(side.source for side in task.sides)) for task in study.tasks if not task.control
    )
    pairs = [("alpha", "beta"), ("alpha", "gamma"), ("beta", "gamma")]
    assert asked == {(prompt, pair): 1 for prompt in PROMPTS for pair in pairs}
    assert {task.category for task in study.tasks} == {"Colors", "Shapes"}
    for batch in study.batches:
        tasks = [study.task[name] for name in batch.tasks]
        assert {task.category for task in tasks} == {batch.part}
        assert len({task.prompt for task in tasks}) == len(tasks)
        assert all(len(side.images) == 2 for task in tasks for side in task.sides)
        for task in (study.task[name] for name in batch.controls):
            # It looks like the others: two questions, of which one is scored.
            assert [ask.kind for ask in task.asks] == ["set-quality", "set-alignment"]
            assert sorted(len(ask.correct) for ask in task.asks) == [0, 1] and task.prompt


def test_prompts_come_from_pngs_texts_and_names(tmp_path: Path, folders: Path) -> None:
    """Metadata as diptych writes it into PNG and JPEG, a text beside the image, and the name of the reference image."""
    folder = tmp_path / "mixed"
    folder.mkdir()
    image = Image.new("RGB", (16, 16), "red")
    for seed in (5, 3):
        info = PngInfo()
        for key, text in png_texts({"prompt": "a red  Circle", "seed": seed, "size": [16, 16]}).items():
            info.add_text(key, text)
        image.save(folder / f"made-{8 - seed}.png", pnginfo=info)
    write_image(image, folder / "made-9.jpg", {"prompt": "a red circle", "seed": 4}, quality=90)
    image.save(folder / "beside.jpg")
    (folder / "beside.txt").write_text("a green square\n")
    image.save(folder / "011.png")
    image.save(folder / "stray.png")
    with pytest.warns(DiptychWarning, match=r"1 images have no prompt .* such as stray\.png"):
        pool = read_pool("mixed", folder, like=read_pool("reference", folders / "reference"))
    assert {key: [path.name for path in paths] for key, paths in pool.images.items()} == {
        "a red circle": ["made-5.png", "made-9.jpg", "made-3.png"],  # by seed
        "a green square": ["beside.jpg"],
        "a white cross": ["011.png"],
    }
    assert pool.prompts["a red circle"] == "a red Circle" and pool.without == 1


def test_categories_are_those_of_the_table(tmp_path: Path) -> None:
    path = tmp_path / "bench.csv"
    path.write_text('Prompts,Category\n"A cat, asleep.",Colors\nNine dogs,"Gary Marcus et al. "\na cat,\n')
    assert categories_of(path) == [
        ("A cat, asleep.", "Colors"),
        ("Nine dogs", "Gary Marcus et al."),
        ("a cat", "no category"),
    ]


def test_mistakes_are_one_line_and_leave_nothing(folders: Path, tmp_path: Path) -> None:
    models, reference = {"a": folders / "alpha"}, folders / "reference"
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"12 prompts .* 200 are needed: give --pairs 12"):
        make_coco(out, models, reference)
    with pytest.raises(UserError, match="fewer than 8 images of 12 of 12 prompts"):
        make_drawbench(out, {**models, "b": folders / "beta"}, folders / "prompts.csv")
    with pytest.raises(UserError, match="twice or more"):
        make_drawbench(out, models)
    with pytest.raises(UserError, match="called reference"):
        make_coco(out, {"reference": reference}, reference, pairs=1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no image with a prompt"):
        make_coco(out, {"a": tmp_path / "empty"}, reference, pairs=1)
    with pytest.raises(UserError, match="is no folder"):
        make_coco(out, {"a": tmp_path / "none"}, reference, pairs=1)
    broken = write_images(tmp_path / "broken", PROMPTS[:2], 1, 0)
    (broken / "000.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    with pytest.raises(UserError, match=r"000\.png"):
        make_coco(out, {"a": broken}, reference, pairs=2, controls=0)
    assert not out.exists() and not list(tmp_path.glob(".diptych*"))


def test_a_study_is_never_written_over(coco: Path, folders: Path) -> None:
    before = (coco / "study.json").read_bytes()
    with pytest.raises(UserError, match="is there already"):
        make_coco(coco, {"a": folders / "alpha"}, folders / "reference", pairs=1)
    assert (coco / "study.json").read_bytes() == before


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.update(version=2),
        lambda values: values.update(format="x"),
        lambda values: values.pop("tasks"),
        lambda values: values["images"].pop(),
        lambda values: values["batches"][0]["tasks"].append("none"),
        lambda values: values["tasks"][0]["asks"][0].update(kind="x"),
        lambda values: values["tasks"][0].update(extra=1),
    ],
)
def test_a_damaged_study_is_one_line(coco: Path, change: object) -> None:
    path = coco / "study.json"
    values = json.loads(path.read_text())
    change(values)  # type: ignore[operator]
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=r"study\.json"):
        read_study(coco)


def test_the_common_size_is_that_of_images_as_they_are_shown(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("RGB", (30, 20)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("RGB", (16, 16)).save(tmp_path / "small.png")
    assert common_size([tmp_path / "small.png", tmp_path / "turned.jpg"]) == (20, 30)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    for name in ("broken.png", "none.png"):
        with pytest.raises(UserError, match=rf"{name} cannot be read as an image \(.+\): remove it"):
            common_size([tmp_path / name])
