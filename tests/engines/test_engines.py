"""Networks run by engines: graphs of OpenVINO, Winograd's convolution, the cache of what was compiled, fallbacks."""

from __future__ import annotations

import copy
import gc
import json
import os
import pickle
import signal
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

import diptych
from diptych.core.errors import UserError
from diptych.engines import accelerate as choosing
from diptych.engines import compiled_cache, say_once
from diptych.engines.accelerate import accelerate
from diptych.engines.parts import parts
from diptych.engines.replace import Part, Runner, replace, restore
from diptych.networks.adm_config import AdmUNetConfig
from diptych.networks.autoencoder import AutoencoderConfig
from diptych.networks.efficient_unet import EfficientUNetConfig
from diptych.networks.lora import Adapter, LowRank, adapt
from tests.engines.small_networks import UNET, random_weights

openvino = pytest.importorskip("openvino")

from diptych.engines import openvino_graph, openvino_network, winograd  # noqa: E402


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DIPTYCH_ENGINE")
    say_once.told.clear()
    return tmp_path / "cache" / "compiled"


def compiled(module: nn.Module, method: str = "forward", precision: Any = "float32") -> Any:
    return openvino_network.OpenVINOMethod(Part(module, method, "network"), precision)


def unet_inputs(rows: int = 3, tokens: int = 5, side: int = 8) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {
        "x": torch.randn(rows, 4, side, side),
        "time": torch.rand(rows) * 1000,
        "context": torch.randn(rows, tokens, 16),
        "context_mask": torch.arange(tokens) < torch.tensor([[tokens], [2], [1]])[:rows],
    }


def close(made: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return bool((made - expected).abs().max() <= tolerance * expected.abs().max())


@torch.no_grad()
def test_a_unet_gives_the_same() -> None:
    unet = random_weights(UNET.build())
    inputs = unet_inputs()
    assert close(compiled(unet)(**inputs), unet(**inputs))


@torch.no_grad()
@pytest.mark.parametrize("augmented", [False, True])
def test_a_pixel_stage_gives_the_same(augmented: bool) -> None:
    config = EfficientUNetConfig(
        channels=32,
        multipliers=(1, 2),
        blocks=(1, 1),
        self_attention_levels=(1,),
        cross_attention_levels=(1,),
        head_width=16,
        context_width=16,
        pooled_width=16,
        concat_channels=3 if augmented else 0,
        augmented=augmented,
    )
    network = random_weights(config.build())
    inputs = {**unet_inputs(side=16), "pooled": torch.randn(3, 16)}
    inputs["x"] = torch.randn(3, 3, 16, 16)
    inputs |= {"concat": torch.randn(3, 3, 16, 16), "level": torch.rand(3)} if augmented else {}
    assert close(compiled(network)(**inputs), network(**inputs))


SMALL = {"channels": 32, "multipliers": (1, 2), "blocks": 1, "attention_levels": (1,), "head_width": 16}
ADM = {
    "adm": AdmUNetConfig(**SMALL, classes=10),
    "imagen": AdmUNetConfig(
        **SMALL, context_width=16, context_projection=32, context_norm_kind="layer", text_pooling_heads=4
    ),
    "deepfloyd": AdmUNetConfig(
        **SMALL, context_width=16, text_pooling_heads=4, activation="gelu", preactivated=True, residual_scale=2**-0.5
    ),
    "imagen-sr": EfficientUNetConfig(
        channels=32,
        multipliers=(1, 2),
        blocks=(1, 1),
        self_attention_levels=(1,),
        cross_attention_levels=(1,),
        head_width=16,
        context_width=16,
        text_pooling_heads=4,
        scale_shift=True,
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("name", ADM)
def test_networks_whose_time_scales_and_shifts_are_compiled(name: str) -> None:
    config = ADM[name]
    network = random_weights(config.build())
    inputs = {**unet_inputs(), "x": torch.randn(3, 3, 8, 8)}
    if config.context_width is None:
        inputs = {"x": inputs["x"], "time": inputs["time"], "label": torch.tensor([1, 2, 3])}
    if config.concat_channels:
        inputs |= {"concat": torch.randn(3, 3, 8, 8), "level": torch.rand(3)}
    runner = compiled(network)
    assert close(runner(**inputs), network(**inputs))
    assert None not in runner._compiled.values(), "it ran in PyTorch"


@torch.no_grad()
def test_an_autoencoder_gives_the_same() -> None:
    config = AutoencoderConfig(channels=32, multipliers=(1, 2), blocks=1, norm_groups=8, attention=True)
    autoencoder = random_weights(config.build())
    images = torch.randn(2, 3, 16, 16)
    latents = torch.randn(2, config.latent_channels, 16 // config.factor, 16 // config.factor)
    assert close(compiled(autoencoder, "decode")(latents), autoencoder.decode(latents))
    assert close(compiled(autoencoder, "moments")(images), autoencoder.moments(images))


@torch.no_grad()
def test_a_vq_is_quantised_by_pytorch_and_decoded_by_the_engine(capfd: pytest.CaptureFixture[str]) -> None:
    config = AutoencoderConfig(channels=32, multipliers=(1, 2), blocks=1, norm_groups=8, codebook=16)
    model = nn.Module()
    model.autoencoder = autoencoder = random_weights(config.build())
    latents = torch.randn(2, config.latent_channels, 8, 8)
    plain = autoencoder.decode(latents)
    decoder = next(part for part in parts(model) if part.name == "decoder")
    runner = compiled(autoencoder, decoder.method)
    replace(decoder, runner)
    assert close(autoencoder.decode(latents), plain)
    assert len(runner._compiled) == 1 and None not in runner._compiled.values(), "it ran in PyTorch"
    assert "runs in PyTorch" not in capfd.readouterr().err


@torch.no_grad()
def test_rows_do_not_depend_on_those_beside_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    run, inputs = compiled(random_weights(UNET.build())), unet_inputs()
    together = run(**inputs)
    for rows in ([0, 1], [1, 2], [2, 0]):
        some = run(**{name: value[rows] for name, value in inputs.items()})
        assert torch.equal(some, together[rows])
    assert len(run._compiled) == 1
    alone = run(**{name: value[:1] for name, value in inputs.items()})
    assert close(alone, together[:1])


@pytest.mark.parametrize("shape", [(1, 64, 32, 32), (2, 64, 34, 37)])
def test_winograds_convolution(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(shape[1], 96, 3, padding=1).requires_grad_(False)
    x = torch.randn(shape)
    used = []

    def convolution(graph: Any, *arguments: Any) -> Any:
        used.append(winograd.convolution(graph, *arguments))
        return used[-1]

    inputs = {"input": (shape, torch.float32)}
    graph = openvino_graph.record(layer, lambda input: nn.Conv2d.forward(layer, input), inputs, convolution)
    request = openvino.Core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}).create_infer_request()
    made = torch.from_numpy(request.infer({"input": x.numpy()})[0])
    exact = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1).float()
    assert used[0] is not None
    assert close(made, exact, 5e-6)


def test_winograd_is_for_large_images_and_where_memory_allows_for_many_channels() -> None:
    def used(side: int, channels: int, memory: int = 2**30) -> int:
        layers = nn.Sequential(*(nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2)))
        counted = []
        convolutions = winograd.Convolutions(memory)

        def convolution(graph: Any, *arguments: Any) -> Any:
            counted.append(convolutions(graph, *arguments))
            return counted[-1]

        inputs = {"input": ((1, channels, side, side), torch.float32)}
        openvino_graph.record(layers, lambda input: nn.Sequential.forward(layers, input), inputs, convolution)
        return sum(node is not None for node in counted)

    assert [used(32, 64), used(31, 64), used(32, 32), used(8, 256)] == [2, 0, 0, 0]
    kernels = 36 * 256 * 256 * 4
    assert [used(16, 256), used(16, 256, kernels), used(16, 256, kernels - 1)] == [2, 1, 0]
    assert winograd.total_memory() > 2**28


def test_winograds_transforms_are_exact_in_rational_numbers() -> None:
    at, g, bt = winograd.transforms()
    rng = np.random.default_rng(0)
    d, kernel = rng.integers(-9, 9, 6).astype(float), rng.integers(-9, 9, 3).astype(float)
    assert np.allclose(at @ ((g @ kernel) * (bt @ d)), np.correlate(d, kernel), atol=1e-12)


@torch.no_grad()
def test_changed_weights_are_seen() -> None:
    network, x = random_weights(nn.Sequential(nn.Conv2d(3, 6, 3), nn.SiLU())), torch.randn(2, 3, 4, 4)
    run = compiled(network)
    before = run(x)
    network[0].weight.mul_(1.5)
    assert close(run(x), network(x))
    network[0].weight.data.mul_(1.5)  # which leaves its version as it was
    assert close(run(x), network(x))
    assert not close(run(x), before, 1e-3)


@torch.no_grad()
@pytest.mark.parametrize("part", [0, 2, -1])
def test_parts_of_weights_that_change_uncounted_are_seen(part: int) -> None:
    network, x = random_weights(nn.Sequential(nn.Conv2d(4, 6, 3), nn.SiLU())), torch.randn(2, 4, 4, 4)
    network.to(memory_format=torch.channels_last)
    run = compiled(network)
    run(x)
    network[0].weight.data[part] *= 5
    assert close(run(x), network(x))


@torch.no_grad()
def test_lora_live_and_merged_and_its_scale() -> None:
    network = random_weights(nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(96, 4)))
    run, x = compiled(network), torch.randn(2, 3, 4, 4)
    plain = run(x)
    for layer in (network[0], network[3]):
        change = LowRank(
            torch.randn(2, *layer.weight.shape[1:]), torch.randn(len(layer.weight), 2, *[1] * (layer.weight.ndim - 2))
        )
        for live in (True, False):
            for scale in (1.0, 0.5, -1.0, -2.0):  # of which the last two have the same hash
                adapt(layer, "style", Adapter(change, scale, live))
                assert close(run(x), network(x))
                assert not close(run(x), plain, 1e-3)
            adapt(layer, "style", None)
    assert torch.equal(run(x), plain)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_lora_in_16_bits_as_most_files_have_it(dtype: torch.dtype) -> None:
    unet = random_weights(UNET.build())
    runner, inputs, plain = compiled(unet), unet_inputs(), unet(**unet_inputs())
    for layer in unet.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)) and layer.weight.shape[1] >= 4:
            kernel = layer.weight.shape[2:]
            down = 0.1 * torch.randn(2, layer.weight.shape[1], *kernel)
            up = 0.1 * torch.randn(layer.weight.shape[0], 2, *([1] * len(kernel)))
            adapt(layer, "style", Adapter(LowRank(down.to(dtype), up.to(dtype)), 0.7, True))
    changed = unet(**inputs)
    assert not close(changed, plain, 1e-2) and close(runner(**inputs), changed)
    assert None not in runner._compiled.values() and all(runner._compiled.values()), "it ran in PyTorch"


@torch.no_grad()
def test_the_alpha_of_live_lora_is_part_of_what_is_kept_on_disk() -> None:
    network, x = random_weights(nn.Sequential(nn.Linear(8, 6))), torch.randn(2, 8)
    down, up = torch.randn(2, 8), torch.randn(6, 2)
    for alpha in (2.0, 4.0):
        adapt(network[0], "style", Adapter(LowRank(down, up, alpha), 1.0, True))
        assert close(compiled(network)(x), network(x))


@torch.no_grad()
def test_replaced_layers_are_seen() -> None:
    network, x = random_weights(nn.Sequential(nn.Linear(8, 6), nn.SiLU())), torch.randn(2, 8)
    network.config = UNET  # type: ignore[assignment]
    run = compiled(network)
    run(x)
    network[1] = nn.ReLU()
    assert close(run(x), network(x))
    assert close(compiled(network)(x), network(x)), "what is on disk is of the layer before"


@torch.no_grad()
def test_numbers_of_layers_that_change_are_seen() -> None:
    class Scaled(nn.Sequential):
        scale = 1.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.scale * super().forward(x)

    network, x = random_weights(Scaled(nn.Linear(8, 6), nn.LayerNorm(6))), torch.randn(2, 8)
    network.scale, network.config = 2.0, UNET  # type: ignore[assignment]
    run = compiled(network)
    run(x)
    for layer, name in ((network[1], "eps"), (network, "scale")):
        setattr(layer, name, 0.5)
        assert close(run(x), network(x)), name
        assert close(compiled(network)(x), network(x)), f"what is on disk is of another {name}"


@torch.no_grad()
def test_hooked_layers_run_in_pytorch(capsys: pytest.CaptureFixture[str]) -> None:
    network, x, seen = random_weights(nn.Sequential(nn.Linear(8, 6), nn.SiLU())), torch.randn(2, 8), []
    run = compiled(network)
    hook = network[0].register_forward_hook(lambda layer, inputs, output: seen.append(output))
    assert torch.equal(run(x), network(x)) and len(seen) == 2
    assert "runs in PyTorch as long as something is hooked" in capsys.readouterr().err
    hook.remove()
    assert close(run(x), network(x)) and run._compiled
    prune.l1_unstructured(network[0], "weight", 0.5)
    assert torch.equal(run(x), network(x))


@torch.no_grad()
def test_where_nothing_is_attended_to() -> None:
    unet, inputs = random_weights(UNET.build()), unet_inputs()
    inputs["context_mask"][1] = False
    assert close(compiled(unet)(**inputs), unet(**inputs))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_weights_of_other_types_run_in_pytorch(dtype: torch.dtype, capsys: pytest.CaptureFixture[str]) -> None:
    layer, x = random_weights(nn.Linear(8, 6)).to(dtype), torch.randn(2, 8, dtype=dtype)
    assert torch.equal(compiled(layer)(x), layer(x))
    assert str(dtype) in capsys.readouterr().err


@torch.no_grad()
def test_what_follows_operations_sees_those_of_pytorch() -> None:
    layer, x = random_weights(nn.Linear(8, 6)), torch.randn(3, 2, 8)
    plain = copy.deepcopy(layer)
    run = compiled(layer)
    replace(run.part, run)
    assert close(torch.func.vmap(layer)(x), plain(x))
    with FlopCounterMode(display=False) as counter:
        layer(x)
    assert counter.get_total_flops() == 2 * 6 * 8 * 6 and not run._compiled


def test_weights_made_for_inference_alone() -> None:
    with torch.inference_mode():
        layer, x = random_weights(nn.Linear(8, 6)), torch.randn(2, 8)
        assert close(compiled(layer)(x), layer(x))


@torch.no_grad()
def test_a_model_that_has_run_can_be_pickled() -> None:
    layer, x = random_weights(nn.Linear(8, 6)), torch.randn(2, 8)
    run = compiled(layer)
    replace(run.part, run)
    expected = layer(x)
    read = pickle.loads(pickle.dumps(layer))
    assert vars(read)["forward"].part.module is read
    assert torch.equal(read(x), expected)


@torch.no_grad()
def test_a_network_that_is_no_longer_used_is_freed_at_once() -> None:
    layer = random_weights(nn.Sequential(nn.Linear(8, 6), nn.SiLU()))
    run = compiled(layer)
    replace(run.part, run)
    copied = copy.deepcopy(layer)
    seen = [weakref.ref(each) for each in (layer, copied, run)]
    gc.disable()
    try:
        for network in (layer, copied):
            network(torch.randn(2, 8))
            assert vars(network)["forward"]._compiled
        del layer, copied, network, run
        assert [each() for each in seen] == [None] * 3
    finally:
        gc.enable()


@torch.no_grad()
def test_a_fork_does_not_wait_for_ever(capfd: pytest.CaptureFixture[str]) -> None:
    layer, x = random_weights(nn.Linear(8, 6)), torch.randn(1, 8)
    run = compiled(layer)
    run(x)
    if (child := os.fork()) == 0:
        os._exit(0 if torch.equal(run(x), layer(x)) else 1)
    for _ in range(100):
        if (ended := os.waitpid(child, os.WNOHANG))[0]:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        ended = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(ended[1]) == 0
    assert "fork" in capfd.readouterr().err


@torch.no_grad()
def test_what_openvino_cannot_compile_runs_in_pytorch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Broken:
        def compile_model(self, *how: Any) -> Any:
            raise RuntimeError("out of something\nat a place")

    monkeypatch.setattr(openvino_network, "core", Broken)
    layer, x = random_weights(nn.Linear(8, 6)), torch.randn(2, 8)
    assert torch.equal(compiled(layer)(x), layer(x))
    assert capsys.readouterr().err.splitlines() == [
        "diptych: the network runs in PyTorch: OpenVINO cannot compile it (out of something)"
    ]


@torch.no_grad()
@pytest.mark.parametrize("error", [RuntimeError("Exception from src/a.cpp:1:\nno memory\n"), MemoryError()])
def test_what_openvino_fails_at_runs_in_pytorch(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: Any) -> Any:
        raise error

    layer, x = random_weights(nn.Linear(8, 6)), torch.randn(3, 8)
    run = compiled(layer)
    run(x)
    monkeypatch.setattr(openvino_network, "infer", fail)
    for _ in range(2):
        assert torch.equal(run(x), layer(x))
    assert capsys.readouterr().err.splitlines() == [
        f"diptych: the network runs in PyTorch: OpenVINO failed ({str(error)[-10:-1] or 'MemoryError'})"
    ]
    monkeypatch.setattr(compiled_cache, "code_hash", fail)
    assert torch.equal(compiled(layer)(x), layer(x))
    assert "OpenVINO cannot compile it" in capsys.readouterr().err


@torch.no_grad()
def test_after_an_interrupt_no_request_is_left_running(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    layer = random_weights(nn.Sequential(*(nn.Conv2d(64, 64, 3, padding=1) for _ in range(4))))
    run, x = compiled(layer), torch.randn(2, 64, 96, 96)
    run(x)
    ((requests,),) = [run._compiled.values()]
    first, second = ({"input": row} for row in x.split(1))

    class Interrupted:
        waited = 0

        def start_async(self, *how: Any, **more: Any) -> None:
            requests[0].start_async(*how, **more)

        def wait(self) -> None:
            self.waited += 1
            if self.waited == 1:
                raise KeyboardInterrupt
            requests[0].wait()

    with pytest.raises(KeyboardInterrupt):
        openvino_network.infer([Interrupted(), requests[1]], [first, second])  # type: ignore[list-item]
    assert all(request.wait_for(0) for request in requests)


@torch.no_grad()
def test_no_rows_give_none() -> None:
    layer = random_weights(nn.Linear(8, 6))
    assert compiled(layer)(torch.empty(0, 8)).shape == (0, 6)


def test_gradients_training_and_autocast_are_left_to_pytorch() -> None:
    calls = []

    class Counting(Runner):
        def run(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            calls.append(1)
            return self.part.eager(*args, **kwargs)

    layer = nn.Linear(3, 3)
    part = Part(layer, "forward", "layer")
    replace(part, Counting(part))
    x = torch.randn(2, 3, requires_grad=True)
    layer.eval()(x).sum().backward()
    assert x.grad is not None and not calls
    with torch.no_grad():
        layer.train()(x)
        with torch.autocast("cpu", torch.bfloat16):
            layer.eval()(x)
        assert not calls
        layer.eval()(x)
        assert len(calls) == 1
        copied = copy.deepcopy(layer)
        assert vars(copied)["forward"].part.module is copied
        restore(part)
        layer(x)
        assert len(calls) == 1


@torch.no_grad()
def test_what_was_compiled_is_kept_and_a_damaged_file_is_made_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layer, x = random_weights(nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU())), torch.randn(1, 3, 8, 8)
    expected = compiled(layer)(x)
    (file,) = cache.glob("*.compiled")
    recorded = []
    record = openvino_graph.record
    monkeypatch.setattr(openvino_graph, "record", lambda *arguments: recorded.append(1) or record(*arguments))
    assert torch.equal(compiled(layer)(x), expected) and not recorded

    whole = file.read_bytes()
    wrong_name = json.loads(whole.split(b"\n")[0])
    wrong_name["key"]["openvino"] = "0"
    damages = (
        whole[: len(whole) // 2],
        whole[:-1] + bytes([whole[-1] ^ 1]),
        b"",
        b"{",
        b"[]\n",
        b"[" * 900_000 + b"\n",
        json.dumps(wrong_name).encode() + b"\n" + whole.split(b"\n", 1)[1],
    )
    for number, damage in enumerate(damages, 1):
        file.write_bytes(damage)
        say_once.told.clear()
        assert torch.equal(compiled(layer)(x), expected)
        assert len(recorded) == number
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == (number < len(damages)) and all("compiled again" in line for line in lines)


@torch.no_grad()
def test_the_cache_is_bounded_and_optional(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(4):
        compiled_cache.write({"number": number}, bytes(1000))
    monkeypatch.setenv("DIPTYCH_COMPILED_BYTES", "2500")
    compiled_cache.write({"number": 4}, bytes(1000))
    assert sum(path.stat().st_size for path in cache.iterdir()) < 2500
    assert compiled_cache.read({"number": 4}) is not None
    stale, fresh = cache / "a.compiled.1.part", cache / "a.compiled.2.part"
    stale.write_bytes(bytes(10)), fresh.write_bytes(bytes(10))
    os.utime(stale, (0, 0))
    (cache / "dangling.compiled").symlink_to(cache / "nothing")  # as one that another process just removed
    compiled_cache.write({"number": 7}, bytes(1000))
    assert compiled_cache.read({"number": 7}) is not None
    assert fresh.exists() and not stale.exists()
    for wrong in ("plenty", "-1", ""):
        monkeypatch.setenv("DIPTYCH_COMPILED_BYTES", wrong)
        compiled_cache.write({"number": 6}, bytes(1000))
        assert capsys.readouterr().err.count(f"is {wrong!r}, no number of bytes") == bool(wrong)
    monkeypatch.setenv("DIPTYCH_COMPILED_BYTES", "10")
    compiled_cache.write({"number": 5}, bytes(1000))
    assert compiled_cache.read({"number": 5}) is None
    monkeypatch.setenv("DIPTYCH_CACHE", "/dev/null/nowhere")
    layer, x = random_weights(nn.Linear(3, 4)), torch.randn(1, 3)
    monkeypatch.delenv("DIPTYCH_COMPILED_BYTES")
    capsys.readouterr()
    for _ in range(2):
        assert close(compiled(layer)(x), layer(x))
    said = "what is compiled cannot be kept in /dev/null/nowhere/compiled (Not a directory)"
    assert capsys.readouterr().err.splitlines() == [f"diptych: {said}: the next process compiles it again"]


@torch.no_grad()
def test_what_cannot_be_translated_or_does_not_fit_runs_in_pytorch(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Sorted(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sort().values

    x = torch.randn(2, 9)
    assert torch.equal(compiled(Sorted().eval())(x), x.sort().values)
    assert capsys.readouterr().err.count("runs in PyTorch: OpenVINO has no translation of the operation aten.sort") == 1

    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if x.sum() > 0 else x - 1

    assert torch.equal(compiled(Branching().eval())(x), torch.stack([x, x]).sum(0) / 2 + (1 if x.sum() > 0 else -1))
    assert "runs in PyTorch" in capsys.readouterr().err

    monkeypatch.setattr(openvino_network, "free_memory", lambda: 1000)
    unet, inputs = random_weights(UNET.build()), unet_inputs()
    assert torch.equal(compiled(unet)(**inputs), unet(**inputs))
    assert "GiB, and 0.0 are free" in capsys.readouterr().err


@torch.no_grad()
def test_inputs_that_are_not_for_it_run_in_pytorch() -> None:
    unet, inputs = random_weights(UNET.build()), unet_inputs()
    run = compiled(unet)
    assert torch.equal(
        run(inputs["x"], inputs["time"][:1], context=inputs["context"]),
        unet(inputs["x"], inputs["time"][:1], context=inputs["context"]),
    )
    assert not run._compiled


def test_engines_that_cannot_be_had_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for engine, device, precision, words in (
        ("openvno", cpu, "float32", "openvino"),
        ("openvino", gpu, "float32", "runs on CPUs"),
        ("pytorch", cpu, "int8", "OpenVINO computes in int8"),
        ("auto", gpu, "int8", "on CPUs"),
    ):
        with pytest.raises(UserError, match=words):
            choosing.choose_engine(engine, device, precision)  # type: ignore[arg-type]
    for engine, precision in (("compile", "float32"), ("pytorch", "int8")):
        monkeypatch.setenv("DIPTYCH_ENGINE", engine)
        with pytest.raises(UserError, match=rf"the engine {engine} of \$DIPTYCH_ENGINE"):
            choosing.choose_engine("auto", cpu, precision)  # type: ignore[arg-type]
    monkeypatch.delenv("DIPTYCH_ENGINE")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert choosing.choose_engine("auto", cpu, "float32") == "pytorch"
    for engine, precision in (("openvino", "float32"), ("auto", "int8")):
        with pytest.raises(UserError, match=r"pip install 'diptych\[cpu\]'"):
            choosing.choose_engine(engine, cpu, precision)  # type: ignore[arg-type]
    monkeypatch.setattr("diptych.engines.compute_precision.fast_bf16", lambda device: False)
    with pytest.raises(UserError, match="emulated"):
        diptych.load(precision="bf16", device="cpu")
    with pytest.raises(UserError, match="float32"):
        diptych.load(precision="float33", device="cpu")  # type: ignore[arg-type]


def test_an_openvino_that_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "openvino.py").write_text("raise ImportError('libtbb.so.12 is not there')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.split(".")[0] == "openvino" or "openvino_" in name]:
        monkeypatch.delitem(sys.modules, name)
    model = diptych.load(device="cpu")
    assert "forward" not in vars(model.unet) and "engine" not in model.origin.options
    assert capsys.readouterr().err.splitlines() == [
        "diptych: OpenVINO cannot be imported (libtbb.so.12 is not there): networks run in PyTorch"
    ]
    for engine in ("openvino", "auto"):
        with pytest.raises(UserError, match=r"libtbb.so.12 is not there\): install it again"):
            accelerate(model, engine)
        monkeypatch.setenv("DIPTYCH_ENGINE", "openvino")


def test_models_whose_weights_are_of_another_type(capsys: pytest.CaptureFixture[str]) -> None:
    model = diptych.load(device="cpu", engine="pytorch")
    model.unet.to(torch.bfloat16), model.autoencoder.to(torch.bfloat16)
    assert accelerate(model) == {} and "forward" not in vars(model.unet)
    assert capsys.readouterr().err.splitlines() == [
        "diptych: networks with weights in bfloat16 run in PyTorch: OpenVINO is for float32"
    ]
    with pytest.raises(UserError, match="the engine openvino is for weights in float32, and these are in bfloat16"):
        accelerate(model, "openvino")


def test_the_defaults_images_are_the_same_by_openvino() -> None:
    model = diptych.load(device="cpu", engine="pytorch")
    (expected,) = model.generate(["a red apple"], seeds=[3], steps=2).images
    chosen = accelerate(model)
    assert chosen == {"engine": "openvino"}
    (made,) = model.generate(["a red apple"], seeds=[3], steps=2).images
    assert np.abs(np.asarray(made).astype(int) - np.asarray(expected)).max() <= 1
    loaded = diptych.load(device="cpu")
    result = loaded.generate(["a red apple"], seeds=[3], steps=2)
    assert np.array_equal(np.asarray(result.images[0]), np.asarray(made))
    assert result.metadata[0]["model"]["engine"] == "openvino"
    both = loaded.generate(["the red cat", "a red apple"], seeds=[0, 3], steps=2)  # as many tokens
    assert np.array_equal(np.asarray(both.images[1]), np.asarray(made)), "an image depends on those beside it"


def test_a_cascade_runs_its_stages_by_openvino() -> None:
    images = {}
    for engine in ("pytorch", "openvino"):
        model = diptych.load("cascade", device="cpu", engine=engine)  # type: ignore[arg-type]
        images[engine] = np.asarray(model.generate(["a red apple"], seeds=[0], steps=2, stop=2).images[0]).astype(int)
    assert "forward" in vars(model.stage(0).network)
    assert np.abs(images["pytorch"] - images["openvino"]).max() <= 1


def test_without_openvino_a_line_says_so_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for _ in range(2):
        model = diptych.load(device="cpu")
    assert capsys.readouterr().err.count("pip install 'diptych[cpu]'") == 1
    assert "forward" not in vars(model.unet)
    monkeypatch.setenv("DIPTYCH_ENGINE", "pytorch")
    say_once.told.clear()
    diptych.load(device="cpu")
    assert not capsys.readouterr().err
