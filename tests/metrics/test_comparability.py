"""Results that may not be compared, statistics that are none, options without effect: each is refused by name."""

from __future__ import annotations

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diptych.cli.main import main
from diptych.core.errors import UserError
from diptych.core.terminal import console
from diptych.metrics.image_set import Processing
from diptych.metrics.measure import MeasureConfig, measure_images, open_reference
from diptych.metrics.records import differing, unsaid
from diptych.metrics.statistics_files import read_statistics

WIDTH = 192
"""Of the judge's features."""
RESULT: dict[str, Any] = {
    "metric": "fid",
    "value": 1.5,
    "features": {"network": "a", "weights": "b"},
    "settings": {},
    "generated": {"name": "made", "images": 3, "processing": {"size": None}},
    "reference": {"name": "real", "images": 3, "processing": {"size": None}, "sha256": "c"},
}


def images(folder: Path, seed: int, count: int = 3, side: int = 16) -> Path:
    folder.mkdir()
    draw = np.random.default_rng(seed)
    for number in range(count):
        Image.fromarray(draw.integers(0, 256, (side, side, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


def without(place: str) -> dict[str, Any]:
    """The result without one entry."""
    result = copy.deepcopy(RESULT)
    *above, name = place.split(".")
    inner = result
    for step in above:
        inner = inner[step]
    del inner[name]
    return result


@pytest.mark.parametrize(
    "place", ["features", "settings", "generated.images", "generated.processing", "reference.sha256"]
)
def test_two_results_that_keep_silent_of_the_same_are_not_compared(place: str) -> None:
    assert unsaid(RESULT, copy.deepcopy(RESULT)) == []
    assert unsaid(without(place), without(place)) == [f"{place} is not said"]


def test_what_a_metric_does_not_depend_on_need_not_be_said() -> None:
    pixels, alone = without("features") | {"metric": "psnr"}, without("reference") | {"metric": "is"}
    assert unsaid(pixels, pixels) == unsaid(alone, alone) == []
    foreign = RESULT | {"reference": {"name": "a.npz", "statistics": "d"}}
    assert unsaid(foreign, foreign) == []


def test_pairs_with_another_reference_are_not_compared(tmp_path: Path) -> None:
    made, real, other = (images(tmp_path / name, seed) for seed, name in enumerate(("made", "real", "other")))
    one, same, another = (measure_images(made, path, ("psnr",))[0] for path in (real, real, other))
    assert differing(one, same) == unsaid(one, same) == []
    assert differing(one, another) == [
        f"reference.sha256 {one['reference']['sha256']} and {another['reference']['sha256']}"
    ]
    part = measure_images(made, real, ("psnr",), limit=2)[0]
    assert part["generated"]["sha256"] != one["generated"]["sha256"]


@pytest.mark.parametrize(
    "change", [{"value": 10**400}, {"value": True}, {"value": float("nan")}, {"deviation": -(10**400)}, {"error": "1"}]
)
def test_results_whose_numbers_are_none_are_refused(
    change: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([RESULT | change]))
    assert main(["evaluate", "compare", str(path), str(path)]) == 2
    assert "holds no results" in capsys.readouterr().err


def test_names_in_tables_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    table = Table("[red]a[bold]")
    table.add_row(":heart: [b]")
    console().print(table, "[i]line[/i]")
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("[red]a[bold]", ":heart: [b]", "[i]line[/i]"))


def statistics(path: Path, sigma: np.ndarray | None = None, about: Any = None) -> Path:
    draw = np.random.default_rng(0)
    arrays = {
        "mu": draw.normal(size=WIDTH),
        "sigma": np.cov(draw.normal(size=(50, WIDTH)).T) if sigma is None else sigma,
    }
    if about is not None:
        arrays["diptych"] = np.array(json.dumps(about))
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize(
    ("sigma", "said"),
    [
        (np.eye(WIDTH) - np.ones((WIDTH, WIDTH)) / 10, "negative variance"),
        (np.eye(WIDTH) * 1e300, "beyond 1e\\+100"),
    ],
)
def test_statistics_that_no_features_have_are_refused(sigma: np.ndarray, said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        read_statistics(statistics(tmp_path / "s.npz", sigma))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_statistics_of_few_images_are_read_in_any_precision(dtype: type, tmp_path: Path) -> None:
    draw = np.random.default_rng(1).normal(size=(20, WIDTH))
    read = read_statistics(statistics(tmp_path / "s.npz", np.cov(draw.T).astype(dtype)))
    np.testing.assert_allclose(read.gaussian.covariance, np.cov(draw.T), atol=2e-3)
    read_statistics(statistics(tmp_path / "zero.npz", np.zeros((WIDTH, WIDTH), dtype)))


@pytest.mark.parametrize("count", [-5, "many", 1.5, True])
def test_statistics_of_no_number_of_images_are_refused(count: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was not written by diptych"):
        read_statistics(statistics(tmp_path / "s.npz", about={"images": {"images": count}}))


def test_statistics_of_another_processing_are_named(tmp_path: Path) -> None:
    made = images(tmp_path / "made", 0)
    stated = {"images": 50, "sha256": "a", "processing": {"size": None, "jpeg": None}}
    path = statistics(tmp_path / "s.npz", about={"images": stated})
    config = MeasureConfig(features="judge")
    for size in (None, 8):
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            measure_images(made, path, config=config, processing=Processing(size=size), cache=tmp_path / "cache")
        assert any("FID depends on it" in str(one.message) for one in warned) == (size is not None)
    with pytest.raises(UserError, match="cannot be made JPEGs"):
        open_reference(path, Processing(jpeg=90))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--metrics", "psnr", "--k", "4"], "--k is for precision-recall, not for psnr"),
        (["--splits", "4"], "--splits is for is, not for fid"),
        (["--metrics", "fid", "--seed", "4"], "--seed is for kid, is"),
        (["--metrics", "cmmd", "--network-resize", "clip"], "--features (inception): those of cmmd are of clip"),
        (["--metrics", "psnr", "--network-resize", "clean"], "--features (inception)"),
    ],
)
def test_options_that_change_nothing_are_refused(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = images(tmp_path / "made", 0)
    assert main(["evaluate", "images", str(made), str(made), *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("out", ["real", "made", "real/results", "link"])
def test_results_are_not_written_among_the_images(out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real, made = images(tmp_path / "real", 0), images(tmp_path / "made", 1)
    (tmp_path / "link").symlink_to(real)
    before = sorted(tmp_path.rglob("*"))
    arguments = ["evaluate", "unconditional", str(real), "--generated", str(made), "--number", "3", "--k", "2"]
    assert main([*arguments, "--features", "judge", "--out", str(tmp_path / out)]) == 2
    assert "whose images are measured" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before
