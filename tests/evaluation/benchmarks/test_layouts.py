"""The study of layouts: models that follow boxes, that swap them, and that get captions alone score apart."""

from __future__ import annotations

import io
import json
import math
import tarfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from diptych.core.errors import UserError
from diptych.encoders.layout import parse_layout
from diptych.evaluation.benchmarks.layouts import difference, evaluate_layouts, other_scenes, swapped
from diptych.evaluation.scores import clustered_mean, crop_box, error_over_seeds
from diptych.models.judge import Judge
from tests.evaluation import toys

LEFT, RIGHT = (0.0, 0.25, 0.5, 0.75), (0.5, 0.25, 1.0, 0.75)


class ToyModel:
    """Paints the two things of a layout where they belong, or each where the other does."""

    def __init__(self, swaps: bool = False, breaks: int | None = None) -> None:
        self.swaps, self.breaks, self.generated = swaps, breaks, 0

    def generate(self, prompts: list[str], *, seeds: list[int], steps: int = 5) -> SimpleNamespace:
        if self.breaks is not None and self.generated >= self.breaks:
            raise KeyboardInterrupt
        self.generated += len(prompts)
        return SimpleNamespace(images=[self.draw(prompt) for prompt in prompts], metadata=[{}])

    def draw(self, prompt: str) -> Image.Image:
        names = [box.name for box in sorted(parse_layout(prompt), key=lambda box: box.left)]
        return toys.pair(*(reversed(names) if self.swaps else names))


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy world, its scenes of two with their objects."""
    folder = tmp_path_factory.mktemp("boxed")
    with tarfile.open(folder / "toys-0000.tar", "w") as tar:
        for key, image, meta in toys.examples():
            if meta["kind"] == "scene":
                i, step = map(int, key.split("-")[1:])
                names = toys.CONCEPTS[i], toys.CONCEPTS[(i + step) % len(toys.CONCEPTS)]
                boxes = zip(names, (LEFT, RIGHT), strict=True)
                meta = {**meta, "objects": [{"concept": name, "box": box} for name, box in boxes]}
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            for name, data in ((f"{key}.png", buffer.getvalue()), (f"{key}.json", json.dumps(meta).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return folder


def study(model, data: Path, out: Path, judge: Judge, **options) -> dict:
    options = {"scenes": 16, "seeds": 2, "batch": 5, **options}
    return evaluate_layouts(model, data, out, judge=judge, console=Console(file=io.StringIO()), **options)


def test_a_model_that_follows_boxes_scores_like_real_scenes_and_one_that_swaps_them_does_not(
    scenes: Path, judge: Judge, tmp_path: Path
) -> None:
    good = study(ToyModel(), scenes, tmp_path / "good", judge)
    bad = study(ToyModel(swaps=True), scenes, tmp_path / "bad", judge)
    rows, wrong = good["rows"], bad["rows"]
    assert good["boxes"] == rows["painted"]["boxes"] == 32
    assert rows["painted"]["top1"]["value"] == rows["real"]["top1"]["value"] > 4 * good["chance"]["top1"]["value"]
    assert rows["painted"]["top1"]["over_seeds"] == 0 and rows["real"]["top1"]["over_seeds"] is None
    assert good["chance"]["of_few"]["value"] == pytest.approx(1 / 20, rel=0.2)
    assert rows["painted"]["of_few"]["value"] >= rows["painted"]["top1"]["value"]
    assert wrong["painted"]["top1"]["value"] < rows["painted"]["top1"]["value"] / 2
    # What one puts into the box of another is what the other finds there: all but what is drawn over at the seam.
    other = "painted, box of another thing in it"
    assert wrong[other]["top5"]["value"] == pytest.approx(rows["painted"]["top5"]["value"], abs=0.15)
    assert rows[other]["top5"]["value"] < rows["painted"]["top5"]["value"]
    margin = good["margins"]["painted - painted, boxes of other scenes"]["top1"]
    floor = rows["painted, boxes of other scenes"]["top1"]["value"]
    assert margin["value"] == pytest.approx(rows["painted"]["top1"]["value"] - floor)
    assert good["margins"]["painted - real"]["top1"] == {"value": 0, "error": 0}


def test_a_stopped_layout_study_generates_only_missing_images(scenes: Path, judge: Judge, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        study(ToyModel(breaks=10), scenes, tmp_path, judge)
    model = ToyModel()
    found = study(model, scenes, tmp_path, judge)
    assert model.generated == 32 - 10
    again = ToyModel()
    assert study(again, scenes, tmp_path, judge) == found and again.generated == 0
    assert json.loads((tmp_path / "results.json").read_text()) == found
    assert "boxes of other scenes" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "layouts.png").stat().st_size < 150_000
    with pytest.raises(UserError, match="with other settings"):
        study(model, scenes, tmp_path, judge, seed=1)


def test_a_model_of_captions_is_compared_with_the_layout_model(scenes: Path, judge: Judge, tmp_path: Path) -> None:
    class CaptionModel(ToyModel):
        def draw(self, prompt: str) -> Image.Image:
            assert prompt.startswith("a ") and " left of " in prompt
            return Image.new("RGB", (16, 16), "white")

    found = study(ToyModel(), scenes, tmp_path, judge, words=CaptionModel(), scenes=6)
    assert found["rows"]["from words"]["top1"]["value"] < found["rows"]["painted"]["top1"]["value"]
    assert "painted - from words" in found["margins"]


def test_data_without_boxes_is_refused(toy_data: Path, judge: Judge, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no held-out scenes with objects"):
        study(ToyModel(), toy_data, tmp_path, judge)


def test_crop_box_is_centred_on_white() -> None:
    image = Image.new("RGB", (40, 20), "white")
    image.paste("red", (10, 5, 30, 10))
    cut = np.asarray(crop_box(image, (0.25, 0.25, 0.75, 0.5), 50)).astype(int)
    red = np.argwhere((cut == (255, 0, 0)).all(2))
    assert red.min(0).tolist() == [19, 3] and red.max(0).tolist() == [29, 46]  # 44 x 11, as four to one
    assert (cut[:19] == 255).all() and (cut[30:] == 255).all()
    assert crop_box(image, (0.5, 0.5, 0.5001, 0.5001), 8).size == (8, 8)


def test_other_scenes_never_gives_a_scene_its_own_boxes() -> None:
    own = [[(i / 10, 0.0, i / 10 + 0.01 * (k + 1), 1.0) for k in range(1 + i % 3)] for i in range(8)]
    found = other_scenes(own, seed=0)
    assert [len(row) for row in found] == [len(row) for row in own]
    assert all(not set(row) & set(mine) for row, mine in zip(found, own, strict=True))
    assert found == other_scenes(own, seed=0) != other_scenes(own, seed=1)
    assert other_scenes([[LEFT, RIGHT]], seed=0) == [[None, None]]


def test_swapped_gives_the_box_of_another_concept() -> None:
    assert swapped([("cat", LEFT), ("dog", RIGHT)]) == [RIGHT, LEFT]
    assert swapped([("cat", LEFT), ("cat", RIGHT)]) == [None, None]
    assert swapped([("cat", LEFT), ("cat", RIGHT), ("dog", (0, 0, 1, 1))]) == [(0, 0, 1, 1), (0, 0, 1, 1), LEFT]


def test_clustered_mean_of_clusters_of_one_has_the_binomial_error() -> None:
    hits = np.random.default_rng(0).integers(0, 2, 40).astype(float)
    value, error, count = clustered_mean([np.array([[hit]]) for hit in hits])
    assert (value, count) == (hits.mean(), 40)
    assert error == pytest.approx(hits.std(ddof=1) / math.sqrt(40))


def test_clustered_mean_has_the_error_of_a_bootstrap_over_clusters() -> None:
    """Each box twice tells no more than once; a bootstrap over scenes agrees."""
    draw = np.random.default_rng(1)
    scenes = [draw.random((3, n)) < draw.random() for n in draw.integers(1, 5, 60)]
    values = [scene.astype(float) for scene in scenes]
    value, error, count = clustered_mean(values)
    twice = clustered_mean([np.repeat(scene, 2, axis=1) for scene in values])
    assert twice[:2] == pytest.approx((value, error)) and twice[2] == 2 * count
    means = [scene.mean(0) for scene in values]
    again = [np.concatenate([means[i] for i in draw.integers(0, 60, 60)]).mean() for _ in range(2000)]
    assert error == pytest.approx(np.std(again), rel=0.15)


def test_nan_is_left_out_of_means_and_differences() -> None:
    seen, unseen = np.array([[1.0, 0.0], [1.0, 1.0]]), np.full((2, 1), np.nan)
    assert clustered_mean([seen, unseen])[::2] == (0.75, 2)
    assert error_over_seeds([seen, unseen]) == pytest.approx(np.std([0.5, 1.0], ddof=1) / math.sqrt(2))
    assert error_over_seeds([seen[:1]]) is None
    both = [np.stack([seen] * 3, -1)], [np.stack([1 - seen, seen, np.full((2, 2), np.nan)], -1)]
    assert difference(*both)["top1"]["value"] == pytest.approx(0.5)
    assert difference(*both)["boxes"] == 0  # of the last measure
