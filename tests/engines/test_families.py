"""Small models of every family by OpenVINO: the images of PyTorch, with nothing left to it that is not meant to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import diptych
from diptych.core.terminal import print_err
from diptych.engines import say_once
from diptych.engines.accelerate import accelerate
from diptych.engines.calibration import require_ranges
from tests.models import codes, stages
from tests.pretrained import every_family

pytest.importorskip("openvino")
pytest.importorskip("diffusers")

SIDE = 32
WAYS: dict[str, dict[str, Any]] = {
    "negative": {"negative": "a house", "guidance": 3.0},
    "lcm": {"sampler": "lcm"},
    "guidance-interval": {"guidance_interval": (0.2, 0.8), "guidance": 3.0},
    "cache-interval": {"cache_interval": 2, "steps": 4},
    "tile": {"tile": 16},
    "inpainting": {
        "image": stages.drawing(SIDE, SIDE),
        "mask": Image.fromarray(np.repeat(np.array([[0, 255]], np.uint8), SIDE // 2).reshape(1, SIDE).repeat(SIDE, 0)),
    },
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DIPTYCH_ENGINE")
    say_once.told.clear()


def written(name: str, folder: Path) -> dict[str, Any]:
    """What opens a small model of a family."""
    kind = every_family.KINDS[name]
    kind.write(folder)
    return {"source": every_family.place(kind, folder), "tokenizer": every_family.tokenizer(folder), "device": "cpu"}


def images(model: Any, prompt: str, **options: Any) -> np.ndarray:
    made = model.generate([prompt] * 2, **{"seeds": [1, 2], "steps": 3, **options})
    return np.stack([np.asarray(image) for image in made.images]).astype(int)


@pytest.mark.every(3)
@pytest.mark.parametrize("name", ["sd1-file", "sd2-file", "if-base", "ldm-class-vq4", "ldm-plain-kl", "adm-classes"])
def test_a_family_gives_the_images_of_pytorch(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = written(name, tmp_path)
    prompt = "7" if "class" in name else "a red apple"
    options = {"size": (SIDE, SIDE)} if name.startswith(("sd", "ldm")) else {}
    expected = images(diptych.load(**opened, engine="pytorch"), prompt, **options)
    capsys.readouterr()
    assert np.abs(images(diptych.load(**opened, engine="openvino"), prompt, **options) - expected).max() <= 1
    assert "PyTorch" not in capsys.readouterr().err


def test_ways_to_sample_give_the_images_of_pytorch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = written("sd1-file", tmp_path)
    by_pytorch, by_openvino = (diptych.load(**opened, engine=engine) for engine in ("pytorch", "openvino"))
    capsys.readouterr()
    for name, options in WAYS.items():
        options = {"size": (SIDE, SIDE), **options}
        expected = images(by_pytorch, "a red apple", **options)
        with torch.inference_mode(name == "lcm"):
            made = images(by_openvino, "a red apple", **options)
        assert np.abs(made - expected).max() <= 1, name
    assert "PyTorch" not in capsys.readouterr().err


def test_images_of_codes_are_decoded_by_the_engine(capsys: pytest.CaptureFixture[str]) -> None:
    model = codes.system()
    (expected,) = model.generate(["a red picture"], seeds=[3]).images
    assert accelerate(model, "openvino") == {"engine": "openvino"}
    (made,) = model.generate(["a red picture"], seeds=[3]).images
    assert np.abs(np.asarray(made).astype(int) - np.asarray(expected)).max() <= 1
    assert len(vars(model.autoencoder)["decode_entries"]._compiled) == 1
    assert "PyTorch" not in capsys.readouterr().err
    for _ in range(2):
        require_ranges(model)
        print_err("measured")
    assert capsys.readouterr().err.count("int8: measuring the decoder") == 1
