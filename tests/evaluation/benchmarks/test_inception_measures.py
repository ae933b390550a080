"""FID, Inception Score, precision and recall inside studies: those of `evaluate images`, in the papers' columns."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

from diptych.cli.main import main
from diptych.core.errors import UserError
from diptych.data.dataset import DataConfig, open_dataset
from diptych.evaluation.benchmarks.inpainting import evaluate_inpainting
from diptych.evaluation.benchmarks.layouts import evaluate_layouts
from diptych.evaluation.benchmarks.super_resolution import evaluate_super_resolution
from diptych.evaluation.inception_measures import MEASURED, InceptionMeasures, over_seeds
from diptych.metrics.feature_networks import InceptionFeatures
from diptych.metrics.frechet import frechet_distance
from diptych.metrics.inception_score import inception_score
from diptych.metrics.measure import MeasureConfig, measure_images
from diptych.metrics.neighbours import manifolds
from diptych.models.judge import Judge
from tests.evaluation.benchmarks.test_inpainting import ToyModel as Filler
from tests.evaluation.benchmarks.test_layouts import ToyModel as LayoutModel
from tests.evaluation.benchmarks.test_layouts import scenes
from tests.evaluation.benchmarks.test_super_resolution import SIZE, Enlarger, Largest
from tests.metrics.torchfidelity import inception_file

__all__ = ["scenes"]  # a fixture


class TinyInception:
    """In an InceptionV3's place: 4 x 4 averages as features, and random logits of them."""

    title, width = "InceptionV3 2015-12-05, pool3", 48
    mixed = np.random.default_rng(0).normal(size=(48, 8)) / 20

    def prepare(self, image: Image.Image) -> torch.Tensor:
        return torch.from_numpy(np.array(image.resize((4, 4), Image.Resampling.BOX), np.float32))

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)

    def logits(self, features: Any) -> np.ndarray:
        return np.asarray(features[:]) @ self.mixed

    def describe(self) -> dict[str, Any]:
        return {"network": self.title, "weights": "tiny", "resize": "tf1"}


@pytest.fixture
def tiny() -> InceptionMeasures:
    return InceptionMeasures(TinyInception(), splits=2, k=1, batch=3)  # type: ignore[arg-type]


def expected(real: list[Image.Image], made: list[Image.Image]) -> dict[str, float]:
    """The definitions, on all features at once."""
    network = TinyInception()
    first, second = (network(torch.stack([network.prepare(one) for one in side])).numpy() for side in (real, made))
    found = manifolds(second, first, 1)
    fid, score = frechet_distance(second, first), inception_score(network.logits(second), 2).mean
    return {"fid": fid, "is": score, "precision": found.precision, "recall": found.recall}


def quiet() -> Console:
    return Console(file=io.StringIO(), width=200)


def tiles(path: Path, count: int) -> list[Image.Image]:
    sheet = Image.open(path)
    return [sheet.crop((x, 0, x + SIZE, SIZE)) for x in range(0, count * SIZE, SIZE)]


def published(capsys: pytest.CaptureFixture[str], *command: Path | str) -> str:
    assert main(["evaluate", "published", *map(str, command)]) == 0
    return capsys.readouterr().out


def test_super_resolution_has_the_columns_of_the_papers_table(
    tiny: InceptionMeasures, judge: Judge, toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = open_dataset(DataConfig(path=str(toy_data), size=SIZE, split="train"))
    truth = [dataset[i].image for i in range(len(dataset))]
    models = [("runs/noisy", Enlarger(truth, noise=30)), ("perfect", Enlarger(truth))]
    options: dict[str, Any] = {"images": 6, "split": "train", "judge": judge, "console": quiet()}
    results = evaluate_super_resolution(models, toy_data, tmp_path, inception=tiny, perceptual=Largest(), **options)
    rows = {row["name"]: row for row in results["models"]}
    assert list(rows) == ["bicubic", "runs/noisy", "perfect", "first stage, of the truth"]
    assert rows["perfect"]["fid"]["value"] == pytest.approx(0, abs=1e-6) and rows["perfect"]["precision"]["value"] == 1
    chosen = np.random.Generator(np.random.PCG64(0)).permutation(len(truth))[:6]
    real = [Image.fromarray(truth[int(i)]) for i in chosen]
    each = [expected(real, tiles(tmp_path / "painted" / f"runs-noisy-{seed}.png", 6)) for seed in (0, 1)]
    for name in MEASURED:
        assert rows["runs/noisy"][name] == pytest.approx(over_seeds(each)[name])
    assert results["inception"]["splits"] == 2
    table = (tmp_path / "results.md").read_text()
    assert " FID " in table and " precision " in table and " PSNR, dB " in table and " source " not in table
    files = sorted((tmp_path / "measures").iterdir())
    assert len(files) == 4
    said = published(capsys, "super-resolution", *files, "--dataset", "imagenet")
    assert "SR3" in said and "runs-noisy" in said and "factor 2, theirs 4" in said
    # The images are there: another call without these measures is no other study.
    assert "inception" not in evaluate_super_resolution(models, toy_data, tmp_path, perceptual=Largest(), **options)


def test_inpainting_has_hard_and_all_masks_in_the_papers_columns(
    tiny: InceptionMeasures, judge: Judge, toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"images": 5, "seeds": 2, "split": "train", "judge": judge, "perceptual": None}
    run = [("it", Filler())], toy_data, tmp_path
    results = evaluate_inpainting(*run, inception=tiny, console=quiet(), **options)
    lines = {(line["row"], line["share"]): line for line in results["rows"]}
    cells = [cell for cell in results["cells"] if (cell["row"], cell["share"]) == ("it", "all")]
    for name in MEASURED:
        assert lines["it", "all"][name] == pytest.approx(over_seeds([{name: c[name]} for c in cells])[name])
    assert lines["it", "40-50 %"]["fid"]["value"] != lines["it", "all"]["fid"]["value"]
    table = (tmp_path / "results.md").read_text()
    assert " FID " in table and " FID, 40-50 % " in table
    folder = tmp_path / "measures"
    hard = folder / "it-hard.json"
    assert json.loads(hard.read_text())[0]["value"] == lines["it", "40-50 %"]["fid"]["value"]
    said = published(capsys, "inpainting", folder / "it.json", "--hard", hard, "--dataset", "places")
    assert "LaMa" in said and f"{lines['it', 'all']['fid']['value']:.2f}" in said
    with pytest.raises(UserError, match="other settings"):
        evaluate_inpainting(*run, console=quiet(), **options)


def test_layouts_are_measured_against_the_real_scenes(
    tiny: InceptionMeasures, judge: Judge, scenes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, Any] = {"scenes": 6, "seeds": 2, "judge": judge, "console": quiet(), "name": "boxes"}
    results = evaluate_layouts(LayoutModel(), scenes, tmp_path, inception=tiny, **options)
    row = results["inception"]["rows"]["painted"]
    made = [Image.open(tmp_path / "painted" / f"{i:04d}-0.png").convert("RGB") for i in range(6)]
    chosen = results["settings"]["scenes"]
    assert chosen == 6 and row["is"]["value"] == pytest.approx(expected(made, made)["is"])
    assert row["fid"]["value"] == pytest.approx(0, abs=1) and row["fid"]["count"] == 2  # the toy draws the truth
    swapped = evaluate_layouts(LayoutModel(swaps=True), scenes, tmp_path / "b", inception=tiny, **options)
    assert swapped["inception"]["rows"]["painted"]["fid"]["value"] > 10 * row["fid"]["value"] + 1
    said = published(capsys, "layout", tmp_path / "measures" / "painted.json", "--dataset", "coco")
    assert "LDM-4" in said and "boxes" in (tmp_path / "results.md").read_text()


def test_too_few_images_and_options_without_the_features_are_refused_first(
    tiny: InceptionMeasures, judge: Judge, toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Enlarger()
    tiny.splits = 9
    with pytest.raises(UserError, match="in 9 parts needs as many generated images, not 8"):
        evaluate_super_resolution(
            [("m", model)], toy_data, tmp_path, images=8, split="train", judge=judge, inception=tiny
        )
    tiny.splits, tiny.k = 2, 8
    with pytest.raises(UserError, match="k = 8 need more images"):
        evaluate_super_resolution(
            [("m", model)], toy_data, tmp_path, images=8, split="train", judge=judge, inception=tiny
        )
    assert not model.requests
    command = [
        "evaluate",
        "super-resolution",
        "--model",
        "latent",
        "--data",
        str(toy_data),
        "--out",
        str(tmp_path / "o"),
    ]
    for options, words in (
        (["--splits", "3"], "--splits is for --features inception"),
        (["--features", "inception"], "name them as --inception-weights PATH"),
        (["--features", "inception", "--inception-weights", str(tmp_path / "none.pth")], "none.pth"),
    ):
        assert main([*command, *options]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.slow  # for the sake of InceptionV3's random weights: the measures are compared with `expected` above
def test_measures_are_those_of_evaluate_images(tmp_path: Path) -> None:
    """On random weights in the format of torch-fidelity's file, features written in parts."""
    weights = inception_file(tmp_path / "weights.pth")
    draw = np.random.default_rng(0)
    sides: dict[str, list[Image.Image]] = {"real": [], "made": []}
    for side, images in sides.items():
        (tmp_path / side).mkdir()
        for number in range(4):
            images.append(Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8)))
            images[-1].save(tmp_path / side / f"{number}.png")
    measures = InceptionMeasures(InceptionFeatures(weights, allow_pickle=True), splits=2, k=1, batch=3)
    found = measures(measures.features(sides["real"]), sides["made"])
    results = measure_images(
        tmp_path / "made",
        tmp_path / "real",
        ("fid", "is", "precision-recall"),
        config=MeasureConfig(splits=2, k=1),
        weights={"inception": weights},
        allow_pickle=True,
        cache=tmp_path / "cache",
    )
    theirs = {result["metric"]: result["value"] for result in results}
    assert found == pytest.approx({name: theirs[name] for name in MEASURED}, rel=1e-5)
