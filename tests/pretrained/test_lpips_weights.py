"""LPIPS against the original package, with a random VGG16 in torchvision's layout; and what is refused."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diptych.core.errors import UserError
from diptych.pretrained import lpips_weights as ours
from diptych.pretrained.lpips_weights import heads_path, read_lpips
from tests.networks.reference import noise, relative_error
from tests.parity import within

PLAN = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
"""VGG16's layers, "M" the poolings: configuration D."""
needs_package = pytest.mark.skipif(importlib.util.find_spec("lpips") is None, reason="pip install --no-deps lpips")


def features() -> nn.Sequential:
    """What torchvision's vgg16().features is, weights drawn so that images stay apart to the last layer."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    inputs = 3
    for step in PLAN:
        if isinstance(step, str):
            layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
            continue
        convolution = nn.Conv2d(inputs, step, kernel_size=3, padding=1)
        nn.init.kaiming_normal_(convolution.weight, nonlinearity="relu")
        nn.init.normal_(convolution.bias, std=0.1)
        layers += [convolution, nn.ReLU(inplace=True)]
        inputs = step
    return nn.Sequential(*layers)


def tensors(trunk: nn.Module) -> dict[str, Tensor]:
    """As torchvision's file has them, with a classifier that is not read."""
    rest = {"classifier.0.weight": torch.ones(2, 2), "classifier.0.bias": torch.ones(2)}
    return {**{f"features.{key}": tensor for key, tensor in trunk.state_dict().items()}, **rest}


@pytest.fixture(scope="module")
def trunk() -> nn.Sequential:
    return features()


@pytest.fixture(scope="module")
def vgg16(trunk: nn.Sequential, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vgg16") / "model.safetensors"
    save_file(tensors(trunk), path)
    return path


@pytest.fixture
def original(trunk: nn.Sequential) -> Iterator[nn.Module]:
    """lpips.LPIPS with this VGG16. A plain module stands in for torchvision, and only while the package is imported."""
    models = SimpleNamespace(vgg16=lambda pretrained: SimpleNamespace(features=trunk))
    stand_in: Any = ModuleType("torchvision")
    stand_in.models = models
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torchvision", stand_in)
        package = importlib.import_module("lpips")
    try:
        yield package.LPIPS(net="vgg", version="0.1", verbose=False)
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "lpips"]:
            del sys.modules[name]


@needs_package
@pytest.mark.parametrize("size", [(32, 32), (50, 35)])
def test_value_and_gradient_are_the_original_package_s(vgg16: Path, original: nn.Module, size: tuple[int, int]) -> None:
    module = read_lpips(vgg16)
    second = noise(3, 3, *size, seed=2).tanh()
    first = (second + torch.tensor([0.02, 0.2, 2.0]).view(3, 1, 1, 1) * noise(3, 3, *size)).clamp(-1, 1)
    values, gradients = [], []
    for distance in (module, original):
        image = first.clone().requires_grad_()
        values.append(distance(image, second).flatten())
        values[-1].log().sum().backward()  # so that near and far images count alike
        gradients.append(image.grad)
    assert values[1].min() > 0 and values[1].max() > 10 * values[1].min()
    files, one, other = "lpips 0.1.4, random VGG16", *values
    within("LPIPS", files, f"distance at {size}, relative", ((one - other).abs() / other).max().item(), 1e-5)
    within("LPIPS", files, f"gradient at {size}, relative", relative_error(*gradients), 1e-5)


@needs_package
def test_the_package_is_found_and_not_imported() -> None:
    assert heads_path().name == "vgg.pth" and heads_path().parts[-4:-1] == ("lpips", "weights", "v0.1")
    assert "lpips" not in sys.modules and "torchvision" not in sys.modules


def save_heads(path: Path, spoil: dict[str, Tensor | None] | None = None) -> Path:
    """Heads that all weigh alike, some keys spoilt or left out."""
    widths = (64, 128, 256, 512, 512)
    heads: dict[str, Tensor | None] = {
        f"lin{i}.model.1.weight": torch.full((1, width, 1, 1), 0.5) for i, width in enumerate(widths)
    }
    save_file({key: tensor for key, tensor in {**heads, **(spoil or {})}.items() if tensor is not None}, path)
    return path


def test_a_folder_a_file_and_the_hub_hold_the_same(
    vgg16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = save_heads(tmp_path / "heads.safetensors")
    one = read_lpips(vgg16, heads)
    assert one.name.startswith("LPIPS (VGG16 v0.1), ") and not any(p.requires_grad for p in one.parameters())
    assert read_lpips(str(vgg16.parent), heads).name == one.name
    # As timm names what follows the convolutions, in the hub's cache and without a network.
    renamed = {k.replace("classifier.0", "pre_logits.fc1"): tensor for k, tensor in load_file(vgg16).items()}
    home = tmp_path / "models--timm--vgg16.tv_in1k"
    snapshot = home / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0123abc")
    (snapshot / "config.json").write_text("{}")
    save_file({**renamed, "head.fc.weight": torch.ones(2, 2)}, snapshot / "model.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert read_lpips("timm/vgg16.tv_in1k", heads).name == one.name
    assert read_lpips(vgg16, save_heads(heads, {"lin2.model.1.weight": torch.ones(1, 256, 1, 1)})).name != one.name


def test_a_pickle_needs_leave(vgg16: Path, tmp_path: Path) -> None:
    heads, path = save_heads(tmp_path / "heads.safetensors"), tmp_path / "vgg16-397923af.pth"
    torch.save(load_file(vgg16), path)
    with pytest.raises(UserError, match=r"vgg16-397923af\.pth is a pickle.*--allow-pickle"):
        read_lpips(path, heads)
    assert read_lpips(path, heads, allow_pickle=True).name == read_lpips(vgg16, heads).name
    torch.save(load_file(heads), tmp_path / "vgg.pth")  # a file that is named is not the installed package's
    with pytest.raises(UserError, match=r"vgg\.pth is a pickle"):
        read_lpips(vgg16, tmp_path / "vgg.pth")


@pytest.mark.parametrize(
    ("key", "tensor", "says"),
    [
        ("features.28.bias", None, r"key 'features\.28\.bias' of Vgg16 is missing \(1 missing"),
        ("features.0.weight", torch.ones(64, 1, 3, 3), r"'features\.0\.weight' has shape \(64, 1, 3, 3\), but Vgg16"),
        ("features.30.weight", torch.ones(1), r"unexpected key 'features\.30\.weight'"),
        ("features.2.bias", torch.full((64,), torch.nan), r"'features\.2\.bias' holds NaN"),
    ],
)
def test_another_network_than_vgg16_is_refused(
    trunk: nn.Module, tmp_path: Path, key: str, tensor: Tensor | None, says: str
) -> None:
    changed = {**tensors(trunk), key: tensor}
    path = tmp_path / "model.safetensors"
    save_file({name: value for name, value in changed.items() if value is not None}, path)
    with pytest.raises(UserError, match=says):
        read_lpips(path, save_heads(tmp_path / "heads.safetensors"))


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (None, r"key 'lin1\.model\.1\.weight' is missing"),
        (torch.ones(1, 128), r"key 'lin1\.model\.1\.weight' has the unexpected shape"),
        (torch.ones(1, 64, 1, 1), r"has shape \(1, 64\)"),
        (torch.full((1, 128, 1, 1), -0.1), r"key 'lin1\.model\.1\.weight' has negative weights"),
    ],
)
def test_other_heads_are_refused(vgg16: Path, tmp_path: Path, tensor: Tensor | None, says: str) -> None:
    with pytest.raises(UserError, match=says):
        read_lpips(vgg16, save_heads(tmp_path / "heads.safetensors", {"lin1.model.1.weight": tensor}))


def test_what_is_not_there_is_said_with_what_to_do(
    vgg16: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"no VGG16 at .*timm/vgg16\.tv_in1k"):
        read_lpips(tmp_path / "nothing.safetensors")
    with pytest.raises(UserError, match=r"no file .*model\.safetensors"):
        read_lpips(tmp_path)
    with pytest.raises(UserError, match="no heads of LPIPS at"):
        read_lpips(vgg16, tmp_path / "vgg.pth")
    monkeypatch.setattr(ours.importlib.util, "find_spec", lambda name, package=None: None)
    with pytest.raises(UserError, match="pip install --no-deps lpips"):
        read_lpips(vgg16)
