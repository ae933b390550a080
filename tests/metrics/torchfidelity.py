"""torch-fidelity as the reference, imported with a plain module in torchvision's place, and random weights for it."""

from __future__ import annotations

import functools
import importlib
import importlib.machinery
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn


class StandIn(ModuleType):
    """A module in which any name is there, and is nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return object


def composed(steps: list[Any]) -> Any:
    return lambda image: functools.reduce(lambda value, step: step(value), steps, image)


def pil_to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@contextmanager
def torch_fidelity() -> Iterator[Any]:
    """The package, and no trace of the stand-in afterwards."""
    pytest.importorskip("scipy")
    names = ("torchvision", *(f"torchvision.{name}" for name in ("transforms", "models", "datasets")))
    with pytest.MonkeyPatch.context() as patch:
        for name in (*names, "torchvision.transforms.functional"):
            module = StandIn(name)
            module.__spec__, module.__path__ = importlib.machinery.ModuleSpec(name, None), []
            patch.setitem(sys.modules, name, module)
            parent, _, last = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], last, module)
        transforms: Any = sys.modules["torchvision.transforms"]
        transforms.Compose, transforms.functional.pil_to_tensor = composed, pil_to_tensor
        try:
            package = importlib.import_module("torch_fidelity")
        except ModuleNotFoundError:
            pytest.skip("pip install --no-deps torch-fidelity")
        try:
            yield package
        finally:
            for name in [name for name in sys.modules if name.partition(".")[0] == "torch_fidelity"]:
                del sys.modules[name]


def inception_file(path: Path) -> Path:
    """A file as torch-fidelity publishes InceptionV3's weights, drawn so that activations stay of one size."""
    with torch_fidelity():
        module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
        network: nn.Module = module.FeatureExtractorInceptionV3.__new__(module.FeatureExtractorInceptionV3)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
            patch.setattr(module.torch, "load", lambda *_, **__: {})
            network.__init__("inception", ["2048"], feature_extractor_weights_path="none")  # type: ignore[misc]
    draw = torch.Generator().manual_seed(0)
    state = network.state_dict()
    for name, tensor in state.items():
        if name.endswith("conv.weight"):
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5, generator=draw)
        elif name.endswith(("bn.weight", "running_var")):
            tensor.uniform_(0.5, 1.5, generator=draw)
        elif name.endswith(("bn.bias", "running_mean")):
            tensor.normal_(0, 0.1, generator=draw)
        elif name.startswith("fc"):
            tensor.normal_(0, 0.05, generator=draw)
    torch.save(state, path)
    return path
