"""The comparison of the two U-Nets, at the size of a toy: it measures what it says, and goes on where it stopped."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import efficient_unet
from benchmarks.efficient_unet import NEAR, efficient, equal_plain, in_turn, recipe, table
from benchmarks.full_size import count, stage
from diptych.networks.efficient_unet import EfficientUNetConfig
from diptych.networks.unet import UNetConfig
from tests.models.latents import write_images

TOY = ["--steps", "2", "--batch", "2", "--channels", "8", "--validation", "2", "--repeats", "1", "--device", "cpu"]


@pytest.mark.parametrize("channels", [8, 16])
def test_the_plain_network_has_as_many_parameters(channels: int) -> None:
    ours = efficient(channels)
    plain = equal_plain(ours)
    assert abs(count(plain) / count(ours) - 1) <= NEAR
    assert plain.multipliers == ours.multipliers
    assert (plain.concat_channels, plain.augmented, plain.context_width) == (3, True, None)


def test_where_there_is_none_it_says_so() -> None:
    tiny = EfficientUNetConfig(
        channels=4,
        multipliers=(1,),
        blocks=(1,),
        self_attention_levels=(0,),
        cross_attention_levels=(),
        head_width=4,
        norm_groups=1,
    )
    with pytest.raises(ValueError, match="no plain U-Net has"):
        equal_plain(tiny)


@pytest.mark.slow
def test_the_papers_network_has_a_plain_equal_too() -> None:
    network = stage("imagen-sr-256").network
    assert isinstance(network, EfficientUNetConfig)
    plain = equal_plain(network, step=8)
    assert abs(count(plain) / count(network) - 1) <= NEAR
    assert (plain.context_width, plain.pooled_width, plain.multipliers) == (4096, None, (1, 2, 4, 8))


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with images and what the command made of them, once; all of it in thumbnails."""
    folder = tmp_path_factory.mktemp("compared")
    write_images(folder / "pictures")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("STEPS", 1), ("SIZE", 32), ("CROP", 16)):
            patch.setattr(efficient_unet, name, value)
        assert efficient_unet.main([*arguments(folder), *TOY]) == 0
        yield folder


def arguments(folder: Path) -> list[str]:
    return ["--data", str(folder / "pictures"), "--run", str(folder / "run"), "--out", str(folder / "out")]


def test_one_command_trains_both_and_measures(compared: Path) -> None:
    results: dict[str, Any] = json.loads((compared / "out" / "results.json").read_text())
    assert set(results["networks"]) == {"efficient", "plain"}
    for told in results["networks"].values():
        assert [step for step, _ in told["validation"]] == [1, 2]
        assert all(0 < loss < 10 for _, loss in told["validation"])
        assert told["training_step_seconds"] > 0
    assert set(results["seconds"]) == {"forward_32px", "forward_backward_16px_x2", "sample_32px"}
    for taken in results["seconds"].values():
        assert all(0 < it["least"] <= it["median"] < 60 for it in taken.values())
    lines = (compared / "out" / "results.md").read_text().splitlines()
    assert lines[2].startswith("| parameters | ")
    assert len({line.count("|") for line in lines}) == 1
    assert (compared / "out" / "curves.png").stat().st_size > 1000


def test_both_are_trained_alike(compared: Path) -> None:
    configs = [
        json.loads((compared / "run" / f"{name}-8" / "config.json").read_text()) for name in ("efficient", "plain")
    ]
    networks = [config["system"]["model"].pop("network") for config in configs]
    assert [network["kind"] for network in networks] == ["efficient-unet", "unet"]
    assert configs[0] == configs[1]
    assert configs[0]["data"]["crop"] == 16


def test_a_rerun_trains_nothing_again(compared: Path) -> None:
    before = json.loads((compared / "out" / "results.json").read_text())
    written = {path: path.stat().st_mtime_ns for path in (compared / "run").rglob("*.safetensors")}
    assert efficient_unet.main([*arguments(compared), *TOY]) == 0
    assert written == {path: path.stat().st_mtime_ns for path in (compared / "run").rglob("*.safetensors")}
    after = json.loads((compared / "out" / "results.json").read_text())
    assert before["networks"] == after["networks"]


def test_calls_are_timed_in_turn_and_the_first_round_does_not_count() -> None:
    order: list[str] = []

    def slow() -> None:
        order.append("slow")
        time.sleep(0.5 if len(order) <= 2 else 0.02)

    taken = in_turn({"slow": slow, "fast": lambda: order.append("fast")}, repeats=3)
    assert order == ["slow", "fast"] * 4
    assert 0.02 <= taken["slow"]["least"] <= taken["slow"]["median"] < 0.4
    assert taken["fast"]["median"] < taken["slow"]["median"]
    assert taken["slow"]["processor"] < 0.02, "sleeping costs no processor time"


def test_the_table_says_how_many_times_the_plain_one_takes() -> None:
    ours, theirs = {"median": 2.0, "least": 1.0, "processor": 1.5}, {"median": 5.0, "least": 4.0, "processor": 6.0}
    seconds = {"sample_128px": {"efficient": ours, "plain": theirs}}
    text = table({"networks": {"efficient": {"parameters": 1000}, "plain": {"parameters": 1010}}, "seconds": seconds})
    assert "| seconds sample 128px, median | 2.0000 | 5.0000 | 2.50 |" in text
    assert "| seconds sample 128px, processor | 1.5000 | 6.0000 | 4.00 |" in text
    assert "| parameters | 1,000 | 1,010 | 1.01 |" in text


def test_without_a_gpu_the_full_size_is_counted_only(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(efficient_unet.torch.cuda, "is_available", lambda: False)
    assert efficient_unet.main(["--size", "full", "--out", str(tmp_path)]) == 2
    assert "counted, not timed" in capsys.readouterr().err
    networks = json.loads((tmp_path / "full.json").read_text())["networks"]
    assert UNetConfig.from_dict(networks["plain"]["network"]).channels > 128
    assert networks["efficient"]["parameters"] == count(stage("imagen-sr-256").network)


def test_the_recipe_says_what_is_compared(tmp_path: Path) -> None:
    wanted = {"steps": 400, "batch": 16, "validation": 128, "seed": 3, "device": "cpu", "data": tmp_path}
    made = recipe(efficient(16), Namespace(**wanted))
    assert (made.training.steps, made.training.seed, made.training.validate_every) == (400, 3, 50)
    assert (made.data.crop, made.data.size) == (efficient_unet.CROP, efficient_unet.SIZE)
