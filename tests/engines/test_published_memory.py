"""Published models in miniature: offloaded, rounded and counted as ours are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import diptych
from diptych.cli.memory_report import memory_of
from diptych.engines.offload import LayersOffload, PartsOffload, tensor_bytes
from diptych.engines.placement import Placement
from diptych.engines.sampling_memory import Sampling
from diptych.engines.weight_precision import QuantisedLayer
from tests.models.stages import equal
from tests.pretrained import sd_models, tiny_if

CPU = torch.device("cpu")


@pytest.fixture(scope="module", params=["sd1", pytest.param("if", marks=pytest.mark.slow)])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(request.param) / "model"
    if request.param == "sd1":
        return sd_models.folder(path)
    tiny_if.pipeline(tiny_if.BASE).save_pretrained(path)
    return path


def text_of(model: Any) -> Any:
    return model.text.model


@pytest.mark.filterwarnings("ignore::diptych.core.errors.DiptychWarning")
def test_they_make_the_same_bits_offloaded(folder: Path) -> None:
    prompts, options = ["a red apple", "two cats"], {"steps": 2, "seeds": [1, 2]}
    images = diptych.load(folder, "cpu", engine="pytorch").generate(prompts, **options).images
    for way in (PartsOffload(CPU, 0), LayersOffload(CPU, 0)):
        model: Any = Placement(CPU, way).apply(diptych.load(folder, "cpu", engine="pytorch"))
        assert equal(images, model.generate(prompts, **options).images)
        assert all(p.untyped_storage().nbytes() <= 8 for p in list(text_of(model).parameters())[-4:])  # it is away
    rounded: Any = diptych.load(folder, "cpu", weight_precision="int8")
    assert not equal(images, rounded.generate(prompts, **options).images)
    assert any(isinstance(layer, QuantisedLayer) for layer in text_of(rounded).modules())


@pytest.mark.slow
def test_they_are_counted_without_their_weights(folder: Path) -> None:
    model: Any = diptych.load(folder, "cpu", engine="pytorch")
    parts = {part.name: part for part in memory_of(str(folder), Sampling(batch=2))["parts"]["stored"]}
    network: Any = getattr(model, "unet", getattr(model, "network", None))
    (name,) = [name for name in parts if name.startswith(("U-Net", "stage"))]
    assert parts[name].weights == tensor_bytes([network]) and parts[name].activations > 0
    t5 = hasattr(model, "network")  # which is of bfloat16 on a GPU
    assert parts["text encoder"].weights == tensor_bytes([text_of(model)]) // (2 if t5 else 1)
