"""The examples run, and what they make is what they say."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from PIL import Image

EXAMPLES = Path(__file__).parent.parent / "examples"


def distance(points: torch.Tensor, data: torch.Tensor) -> float:
    """The mean distance of points to the nearest of the data, and of the data to the nearest point; the larger one."""
    apart = torch.cdist(points, data)
    return max(apart.min(1).values.mean().item(), apart.min(0).values.mean().item())


def test_train_and_sample(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trained samples lie on the spiral, almost as near as other data; those of an untrained network do not."""
    spec = importlib.util.spec_from_file_location("train_and_sample", EXAMPLES / "train_and_sample.py")
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)

    trained = example.main(steps=700, out=str(tmp_path / "spiral.png"))
    torch.manual_seed(1)
    data = example.spiral(2000)
    assert distance(trained, data) < 0.1 < 0.2 < distance(example.main(steps=0, out=str(tmp_path / "noise.png")), data)
    assert Image.open(tmp_path / "spiral.png").size == (512, 256)
    printed = capsys.readouterr().out
    assert "step   500   loss" in printed and f"{tmp_path / 'spiral.png'}: data on the left" in printed
    assert len((EXAMPLES / "train_and_sample.py").read_text().splitlines()) <= 60
