"""Networks in 8-bit integers: what is measured, how far they are off, ranges on disk, models that calibrate."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import diptych
from diptych.cli.main import main
from diptych.core import progress
from diptych.core.errors import UserError
from diptych.engines import calibration, int8_ranges, say_once
from diptych.engines.accelerate import accelerate
from diptych.engines.calibration import RangeCollector, calibrate, expected_error, int8_parts, require_ranges
from diptych.engines.int8_ranges import NetworkRanges, read_ranges, write_ranges
from diptych.engines.network_hash import lora_hash
from diptych.engines.replace import Part, replace
from diptych.networks.feature_cache import FeatureCache
from diptych.networks.lora import Adapter, LowRank, adapt
from diptych.pretrained.load import EMBEDDED
from tests.engines.small_networks import UNET, random_weights
from tests.models import latents, stages

openvino = pytest.importorskip("openvino")

from diptych.engines import openvino_graph, openvino_network  # noqa: E402
from diptych.engines.int8_graph import Int8Layers, rounded_weight  # noqa: E402


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DIPTYCH_ENGINE")
    say_once.told.clear()
    return tmp_path / "cache" / "int8"


def small_network() -> Any:
    """A convolution from 3 channels, one that may be of integers, a linear layer likewise, one on vectors."""
    return random_weights(
        nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 32, 3, padding=1), nn.Flatten(2), nn.Linear(64, 48)
        )
    )


def measured(module: nn.Module, *args: Any, **kwargs: Any) -> NetworkRanges:
    with torch.no_grad(), RangeCollector(module) as collector:
        module(*args, **kwargs)
    return NetworkRanges(layers=collector.ranges(), lora=lora_hash(module))


def relative(made: torch.Tensor, expected: torch.Tensor) -> float:
    return ((made - expected).square().mean() / expected.square().mean()).sqrt().item()


def test_ranges_are_those_of_what_layers_read_and_some_layers_are_left_out() -> None:
    network, x = small_network(), torch.randn(2, 3, 8, 8)
    layers = measured(network, x).layers
    assert list(layers) == ["2.weight", "4.weight"]
    read = network[1](network[0](x))
    assert layers["2.weight"].low == read.min() < 0 and layers["2.weight"].high == read.max()

    unet = random_weights(UNET.build())
    inputs = {"x": torch.randn(2, 4, 8, 8), "time": torch.rand(2), "context": torch.randn(2, 5, 16)}
    names = measured(unet, **inputs).layers
    left = {name for name, tensor in unet.named_parameters() if tensor.ndim > 1} - set(names)
    assert {"conv_in.weight", "conv_out.weight"} < left
    assert all("time" in name or "skip" in name or name.startswith("conv_") for name in left)


def test_a_range_that_grows_over_calls_is_their_union() -> None:
    layer = random_weights(nn.Sequential(nn.Linear(16, 16)))
    with RangeCollector(layer) as collector:
        for x in (torch.linspace(1, 2, 32), torch.linspace(-3, 1, 32)):
            layer(x.view(1, 2, 16))
    assert collector.ranges()["0.weight"][:2] == (-3.0, 2.0)
    with RangeCollector(layer) as collector:
        layer(torch.full((1, 2, 16), torch.inf))
    with pytest.raises(UserError, match=r"0\.weight reads values that are not finite"):
        collector.ranges()


def test_the_expected_error_is_that_of_rounding() -> None:
    torch.manual_seed(0)
    x, layer = torch.randn(4096, 64), nn.Linear(64, 96, bias=False).requires_grad_(False)
    low, high = (value.item() for value in x.aminmax())
    step = (high - low) / 255
    integers, scales = rounded_weight(layer.weight)
    made = ((x - low) / step).round().mul(step).add(low) @ (integers * scales).T
    expected = expected_error(layer.weight, low, high, x.square().mean().item(), layer(x).square().mean().item())
    assert relative(made, layer(x)) == pytest.approx(expected, rel=0.05)
    assert integers.dtype == torch.int8 and integers.abs().amax(1).eq(127).all()


@torch.no_grad()
def test_layers_with_ranges_multiply_integers() -> None:
    network, x = small_network(), torch.randn(1, 3, 8, 8)
    ranges = measured(network, x)
    shapes = {"input": ((1, 3, 8, 8), torch.float32)}
    int8 = Int8Layers(ranges.layers)
    graph = openvino_graph.record(network, lambda input: nn.Sequential.forward(network, input), shapes, None, int8)
    kinds = Counter(node.get_type_name() for node in graph.get_ops())
    assert kinds["FakeQuantize"] == 2
    compiled = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    ran = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    types = [(info["layerType"].astype(str), info["runtimePrecision"].astype(str)) for info in ran]
    layers = [(kind, dtype) for kind, dtype in types if kind in ("Convolution", "FullyConnected")]
    assert [dtype for _, dtype in layers] == ["f32", "u8", "u8"]


@torch.no_grad()
def test_a_unet_is_a_little_off_and_a_layer_with_a_large_error_is_not_rounded() -> None:
    unet = random_weights(UNET.build())
    inputs = {"x": torch.randn(2, 4, 8, 8), "time": torch.rand(2), "context": torch.randn(2, 5, 16)}
    ranges = measured(unet, **inputs)
    run = openvino_network.OpenVINOMethod(Part(unet, "forward", "U-Net"), "int8", ranges=ranges)
    assert 1e-4 < relative(run(**inputs), unet(**inputs)) < 0.03
    none = {name: layer._replace(error=1.0) for name, layer in ranges.layers.items()}
    exact = openvino_network.OpenVINOMethod(Part(unet, "forward", "U-Net"), "int8", ranges=NetworkRanges(layers=none))
    assert relative(exact(**inputs), unet(**inputs)) < 1e-5


@torch.no_grad()
def test_the_halves_of_a_feature_cache_have_the_ranges_of_the_network(capsys: pytest.CaptureFixture[str]) -> None:
    unet = random_weights(UNET.build())
    inputs = {"x": torch.randn(2, 4, 8, 8), "time": torch.rand(2), "context": torch.randn(2, 5, 16)}
    part = Part(unet, "forward", "U-Net")
    replace(part, openvino_network.OpenVINOMethod(part, "int8", ranges=measured(unet, **inputs)))
    cache = FeatureCache(unet, 2)
    for _ in range(2):  # a full call and a shallow one
        assert 1e-4 < relative(cache(**inputs), part.eager(**inputs)) < 0.03
    assert "LoRA" not in capsys.readouterr().err


@torch.no_grad()
def test_ranges_are_of_all_calls_and_take_no_more_memory_with_each() -> None:
    layer = random_weights(nn.Linear(32, 32))
    calls = [scale * torch.randn(1, 4, 32) for scale in (1.0, 3.0, 2.0)]
    with RangeCollector(layer) as collector:
        for x in calls:
            layer(x)
    low, high, error = collector.ranges()["weight"]
    assert (low, high) == (torch.cat(calls).min().item(), torch.cat(calls).max().item())
    made = torch.cat([layer(x) for x in calls])
    squares = [values.square().mean().item() for values in (torch.cat(calls), made)]
    assert error == pytest.approx(expected_error(layer.weight, low, high, *squares), rel=1e-4)
    assert collector.measures["weight"].numel() == 5
    with collector:
        layer(calls[0] * torch.nan)
    with pytest.raises(UserError, match="not finite"):
        collector.ranges()


def test_the_hash_of_lora_is_another_with_its_alpha() -> None:
    layer, hashes = nn.Linear(8, 6), set[str]()
    for alpha in (2.0, 4.0):
        adapt(layer, "style", Adapter(LowRank(torch.ones(2, 8), torch.ones(6, 2), alpha), 1.0, True))
        hashes.add(lora_hash(layer))
    assert len(hashes) == 2


@torch.no_grad()
def test_lora_is_applied_and_a_line_says_that_ranges_are_without_it(capsys: pytest.CaptureFixture[str]) -> None:
    network, x = small_network(), torch.randn(1, 3, 8, 8)
    part = Part(network, "forward", "network")
    run = openvino_network.OpenVINOMethod(part, "int8", ranges=measured(network, x))
    run(x)
    assert "LoRA" not in capsys.readouterr().err
    for live in (True, False):
        adapt(network[4], "style", Adapter(LowRank(torch.randn(2, 64), torch.randn(48, 2)), 0.1, live))
        assert relative(run(x), network(x)) < 0.03
    assert capsys.readouterr().err.count("the network was measured without its LoRA") == 1


def test_ranges_are_kept_by_weights_and_what_is_wrong_is_told(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = small_network()
    part, ranges = Part(network, "forward", "network"), measured(network, torch.randn(1, 3, 8, 8))
    assert read_ranges(part) is None
    path = write_ranges(part, ranges.layers)
    assert path.parent == cache
    stored = read_ranges(part)
    assert stored is not None and stored.lora == ""
    for name, layer in stored.layers.items():
        assert layer == pytest.approx(ranges.layers[name], rel=1e-3)

    change = Adapter(LowRank(torch.randn(2, 64), torch.randn(48, 2)), 1.0, True)
    adapt(network[4], "style", change)
    assert (without := read_ranges(part)) and without == stored
    write_ranges(part, measured(network, torch.randn(1, 3, 8, 8)).layers)
    assert (with_lora := read_ranges(part)) and with_lora.lora == lora_hash(network) and with_lora != stored
    adapt(network[4], "style", None)

    whole = path.read_text()
    known = json.loads(whole)
    other = {**known, "of": {**known["of"], "weights": "0"}}
    infinite = {**known, "layers": {**known["layers"], "2.weight": [-1, float("inf"), 0.1]}}
    swapped = {**known, "layers": {"2.weight": [1, -1, 0.1]}}
    unknown = {**known, "layers": {"7.weight": [-1, 1, 0.1]}}
    short = {**known, "layers": {"2.weight": [-1]}}
    wrong = [json.dumps(value) for value in (other, infinite, swapped, unknown, short, [], None, {"layers": 3})]
    for text in (whole[: len(whole) // 2], "", "\0", *wrong):
        path.write_text(text)
        say_once.told.clear()
        for _ in range(2):  # as when a model is opened
            assert read_ranges(part) is None
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and "is not used" in lines[0], text
    network[2].weight.mul_(2)
    assert read_ranges(part) is None and not capsys.readouterr().err


def test_a_model_calibrates_once_and_gives_the_same_images_from_the_same_seed(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = []
    for _ in range(2):
        model = latents.system()
        assert accelerate(model, precision="int8")["precision"] == "int8"
        made = model.generate(["a red picture"], seeds=[1], steps=3)
        images.append(np.asarray(made.images[0]).astype(int))
    assert capsys.readouterr().err.count("int8: measuring the U-Net and the decoder") == 1
    assert len(list(cache.iterdir())) == 2
    assert np.array_equal(*images)
    plain = np.asarray(latents.system().generate(["a red picture"], seeds=[1], steps=3).images[0]).astype(int)
    assert 0 < np.abs(images[0] - plain).mean() < 15  # of random weights


def test_calibrating_is_deterministic_and_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = latents.system()
    places = [tmp_path / name for name in "ab"]
    files = [[path.read_bytes() for path in calibrate(model, ["a red picture"], place, steps=2)] for place in places]
    assert files[0] == files[1] and len(files[0]) == 2
    assert all(part.method not in vars(part.module) for part in int8_parts(model))


def test_all_stages_of_a_cascade_calibrate() -> None:
    cascade = stages.cascade()
    require_ranges(cascade)
    assert all(read_ranges(part) for part in int8_parts(cascade))


def test_the_models_of_the_package_come_with_ranges(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "calibrate", lambda model: pytest.fail("calibrates"))
    for name in EMBEDDED:
        model = diptych.load(name, device="cpu", engine="pytorch")
        require_ranges(model)
        assert all(len(ranges.layers) > 5 for part in int8_parts(model) if (ranges := read_ranges(part)))
    assert not capsys.readouterr().err
    assert len(list(int8_ranges.SHIPPED.iterdir())) == 6


def test_the_command_measures_on_prompts_of_a_file(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    latents.system("minilm").save(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("a red picture\n")
    line = ["calibrate", "--model", str(tmp_path / "model"), "--steps", "2"]
    monkeypatch.setattr(progress, "FIRST", 0.0)
    assert main([*line, "--prompts", str(tmp_path / "prompts.txt")]) == 0
    said = capsys.readouterr()
    paths = said.out.split()
    assert "measuring: 1 of 2, " in said.err
    assert sorted(paths) == sorted(map(str, cache.iterdir())) and len(paths) == 2
    model = diptych.load(tmp_path / "model", device="cpu", precision="int8")
    assert "measuring" not in capsys.readouterr().err
    assert model.origin is not None and model.origin.options["precision"] == "int8"
    for wrong in (["--prompts", "nowhere.txt"], ["--stop", "1"], ["--out", str(tmp_path / "prompts.txt")]):
        assert main([*line, *wrong]) == 2  # before anything is measured
        assert len(capsys.readouterr().err.strip().splitlines()) == 1
