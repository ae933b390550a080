"""The studies of first stages, in a toy's size: each compares what it says, and tells it again from what is stored."""

from __future__ import annotations

import dataclasses
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import compression, first_stages
from diptych.models.judge import SHIPPED
from tests.evaluation import toys


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.write_shard(tmp_path_factory.mktemp("toys"))


def options(**changes: Any) -> Namespace:
    values: dict[str, Any] = {"size": "small", "steps": 100, "data": Path("d"), "features": Path("f"), "threads": None}
    values |= {
        "perceptual_weight": 0.1,
        "adversarial_weight": 0.5,
        "start": 0.4,
        "lead": 0.1,
        "seed": 3,
        "device": "cpu",
    }
    values |= {"run": Path("runs"), "minutes": None, **changes}
    return Namespace(**values)


def test_the_arms_differ_in_the_terms_alone() -> None:
    made = [first_stages.recipe(arm, options()) for arm in first_stages.ARMS]
    terms = [(one.system.perceptual is not None, one.system.adversarial is not None) for one in made]  # type: ignore[union-attr]
    assert terms == [(False, False), (True, False), (True, True)]
    bare = [dataclasses.replace(one.system, perceptual=None, adversarial=None) for one in made]  # type: ignore[type-var]
    assert bare[0] == bare[1] == bare[2]
    assert made[0].training == made[1].training == made[2].training and made[0].data == made[2].data
    assert made[2].system.adversarial.start == 40  # type: ignore[union-attr]


@pytest.mark.slow
def test_one_command_trains_and_measures_the_terms(data: Path, tmp_path: Path) -> None:
    command = ["--data", str(data), "--features", str(SHIPPED), "--steps", "2", "--pictures", "4", "--device", "cpu"]
    command += ["--start", "0", "--run", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    assert first_stages.main(command) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["name"] for row in results["models"]] == list(first_stages.ARMS)
    assert all({"psnr", "ssim", "perceptual", "frechet"} <= row.keys() for row in results["models"])
    told = json.loads((tmp_path / "out" / "history.json").read_text())["runs"][first_stages.ARMS[-1]]["train"]
    assert [row["step"] for row in told] == [1, 2] and all(row["adaptive_weight"] > 0 for row in told)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.safetensors")}
    (tmp_path / "out" / "curves.png").unlink()
    assert first_stages.main([*command, "--report"]) == 0
    assert (tmp_path / "out" / "curves.png").stat().st_size > 1000
    assert (tmp_path / "out" / "margins.md").read_text().count("±") == 6
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.safetensors")}


def test_each_factor_has_the_same_network_over_its_own_latents() -> None:
    made = {factor: compression.diffusion(factor, options()) for factor in compression.FACTORS}
    networks = {
        factor: one.system.model.network if factor == 1 else one.system.model.unet  # type: ignore[union-attr]
        for factor, one in made.items()
    }
    same = {dataclasses.replace(network, in_channels=1, out_channels=1) for network in networks.values()}
    assert len(same) == 1 and [network.in_channels for network in networks.values()] == [3, 4, 8, 16]
    assert all(compression.autoencoder(factor, 8).factor == factor for factor in (4, 8, 16))
    assert len({one.training for one in made.values()}) == 1, "equal compute"


@pytest.mark.slow
def test_one_command_compares_the_factors(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = compression.Size(autoencoder=8, unet=16, minutes=(0.001, 0.001), images=6)
    monkeypatch.setitem(compression.SIZES, "small", small)
    monkeypatch.setattr(compression, "STEPS", 2)
    monkeypatch.setattr(compression, "FACTORS", (1, 8))
    folders = ["--run", str(tmp_path / "run"), "--out", str(tmp_path / "out")]
    assert compression.main(["--data", str(data), "--device", "cpu", *folders]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["factor"] for row in results["models"]] == [1, 8]
    assert all(row["frechet"] > 0 for row in results["models"]) and results["between_drawings"] > 0
    assert all(row["training_steps"] >= 1 and row["pictures_painted_a_second"] > 0 for row in results["models"])
    table = (tmp_path / "out" / "results.md").read_text()
    assert "| LDM-8 | 8 x 8 x 8 |" in table and "| LDM-1 | 64 x 64 x 3 |" in table
    (tmp_path / "out" / "plot.png").unlink()
    assert compression.main([*folders, "--report"]) == 0
    assert (tmp_path / "out" / "plot.png").stat().st_size > 1000 and (
        tmp_path / "out" / "results.md"
    ).read_text() == table
