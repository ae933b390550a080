"""The comparison of sampling speeds: what differs, or does not run as its name says, is never timed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu_sampling import Clock, Study, card_of
from benchmarks.sampling_sides import Ours, cases
from diptych.engines.cuda_method import CudaMethod

CASE = cases(True, torch.device("cpu"))


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def study(out: Path, seconds: float = 60, toy: bool = True) -> Study:
    return Study(CASE, Clock(seconds), out, toy)


def failing(*_: Any) -> Any:
    raise RuntimeError("no graphs here")


def test_only_sides_that_agree_are_timed(tmp_path: Path) -> None:
    it, model, other = study(tmp_path), CASE.model(), CASE.model()
    other.unet.conv_out.weight.data *= 1.05
    it.makers = {
        "diptych": lambda: Ours("diptych", CASE, model, None),
        "other weights": lambda: Ours("other weights", CASE, other, None),
        "no graphs": lambda: Ours("no graphs", CASE, model, lambda part: CudaMethod(part, "none", capture=failing)),
    }
    for name in it.makers:
        it.compare(name)
    it.measure("step", it.step, list(it.makers), 1)
    done = json.loads((tmp_path / "results.json").read_text())
    assert (done["agree, diptych"]["step"], done["agree, diptych"]["decode"]) == (0, 0)
    assert done["about"]["rounding"]["step"] < 1e-6
    assert "the step differs by 5.0e-02 from that of diptych" in done["agree, other weights"]["error"]
    assert "no graphs: cannot run as a CUDA graph here (no graphs here)" in done["agree, no graphs"]["error"]
    assert list(done["step, batch 1"]) == ["diptych"]
    found = done["step, batch 1"]["diptych"]
    assert found["images_per_second"] == pytest.approx(1 / found["seconds"]) and found["least"] <= found["seconds"]
    assert found["tflops"] == pytest.approx(2 * done["about"]["tflop"]["unet"] / found["seconds"])


def test_nothing_is_begun_after_its_time_and_a_rerun_does_it(tmp_path: Path) -> None:
    late, calls = study(tmp_path, -1, toy=False), list[str]()

    def run() -> dict[str, Any]:
        calls.append("run")
        return {"value": 1}

    assert not late.part("a", run, 5) and not calls
    assert json.loads((tmp_path / "results.json").read_text())["a"] == {"skipped": "takes about 5 s, and 0 are left"}
    for _ in range(2):
        again = study(tmp_path, 60, toy=False)
        assert again.part("a", run, 5) and again.done["a"] == {"value": 1}
    assert calls == ["run"]


def test_a_failure_is_told_and_the_next_is_done(tmp_path: Path) -> None:
    it = study(tmp_path)
    assert not it.part("a", failing) and it.part("b", lambda: {"value": 2})
    assert it.done["a"] == {"error": "RuntimeError: no graphs here"}


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA H200", "H200 SXM"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80 GB"),
        ("Tesla T4", "T4, without bfloat16"),
        ("NVIDIA GeForce RTX 4090", "GeForce RTX 4090"),
        ("NVIDIA GeForce GTX 1080", None),
        ("CPU", None),
    ],
)
def test_the_limit_is_that_of_the_card(name: str, title: str | None) -> None:
    found = card_of(name)
    assert (found and found.title) == title
