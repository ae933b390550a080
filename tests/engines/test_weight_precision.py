"""Weights in 8 bits: what is rounded and by how much, what stays, what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import diptych
from diptych.cli import main as cli
from diptych.core.errors import UserError
from diptych.encoders.configs import T5Config
from diptych.engines import weight_precision
from diptych.engines.offload import LayersOffload, PartsOffload, tensor_bytes
from diptych.engines.placement import Placement, place
from diptych.engines.weight_precision import LARGEST, QuantisedLayer, quantise, quantise_layer, quantise_networks
from diptych.models.metadata import read_metadata
from diptych.networks.lora import Adapter, LowRank, adapt
from tests.encoders.tiny_encoders import t5_folder
from tests.models import codes, latents, stages

CPU = torch.device("cpu")
KINDS = tuple(LARGEST)
PROMPTS = ["a red picture", "a blue picture"]
SPACING = {"int8": 1 / 127, "float8": 1 / 8}
"""The largest distance between neighbouring numbers: of the channel's largest weight, and of the weight itself."""


def layers() -> list[nn.Linear | nn.Conv2d]:
    torch.manual_seed(0)
    made = [nn.Linear(40, 24), nn.Linear(16, 8, bias=False), nn.Conv2d(6, 10, 3, padding=1), nn.Conv2d(4, 4, 3, 2)]
    with torch.no_grad():
        for layer in made:
            layer.weight *= torch.logspace(-3, 2, len(layer.weight)).view(-1, *[1] * (layer.weight.ndim - 1))
        made[0].weight[5] = 0.0
    return made  # type: ignore[return-value]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_weight_moves_by_more_than_half_a_step(kind: str, dtype: torch.dtype, monkeypatch: Any) -> None:
    monkeypatch.setattr(weight_precision, "AT_ONCE", 100)  # several rows at a time
    for layer in layers():
        before = layer.to(dtype).weight.detach().clone()
        quantise_layer(layer, kind)
        assert isinstance(layer, QuantisedLayer)
        after = layer.weights()
        assert after.dtype == dtype and after.shape == before.shape == layer.weight.shape
        wide = before.float().flatten(1).abs().amax(1).view(-1, *[1] * (before.ndim - 1))
        step = SPACING[kind] * (wide if kind == "int8" else before.float().abs().maximum(wide / 2**9))
        rounding = torch.finfo(dtype).eps * before.float().abs() + 6e-8 * (dtype == torch.float16)
        assert ((after.float() - before.float()).abs() <= step / 2 * 1.001 + rounding).all()
        assert (after != before).any()


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_computes_with_these_weights(kind: str) -> None:
    linear, _, conv, strided = layers()
    for layer, x in (
        (linear, torch.randn(3, 7, 40)),
        (conv, torch.randn(2, 6, 8, 8)),
        (strided, torch.randn(2, 4, 9, 9)),
    ):
        quantise_layer(layer, kind)
        plain: Any = (nn.Linear if isinstance(layer, nn.Linear) else nn.Conv2d)(*shape(layer)).requires_grad_(False)
        ours: Any = layer
        plain.weight.copy_(ours.weights())
        plain.bias.copy_(layer.bias)
        assert torch.equal(layer(x), plain(x))


def shape(layer: Any) -> tuple[Any, ...]:
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_repeated_is_rounded_and_the_rest_stays(kind: str) -> None:
    model = latents.system()
    before = tensor_bytes([model.unet.down, model.unet.middle, model.unet.up])
    whole = {name: p.clone() for name, p in model.autoencoder.named_parameters()}
    quantise_networks(model, kind)
    assert tensor_bytes([model.unet.down, model.unet.middle, model.unet.up]) < 0.5 * before  # biases, norms, scales
    rounded = {name for name, layer in model.unet.named_modules() if isinstance(layer, QuantisedLayer)}
    assert {name.split(".")[0] for name in rounded} == {"down", "middle", "up"}
    assert next(model.unet.parameters()).dtype == torch.float32
    assert all(torch.equal(p, whole[name]) for name, p in model.autoencoder.named_parameters())
    assert any(isinstance(layer, QuantisedLayer) for layer in model.joint_text.modules())


MODELS: dict[str, tuple[Any, str]] = {
    "latent": (latents.system, "unet"),
    "codes": (codes.system, "transformer"),
    "stage": (lambda: stages.stage(stages.base()), "network"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_near_those_of_whole_weights(name: str, kind: str) -> None:
    build, part = MODELS[name]
    model = build()
    network, inputs = getattr(model, part), list[tuple[Any, Any]]()
    network.register_forward_pre_hook(lambda _, *given: inputs.append(given), with_kwargs=True)
    model.generate(PROMPTS)
    quantise_networks(model, kind)
    assert len(model.generate(PROMPTS).images) == 2
    (x, cond), whole = inputs[0], getattr(build(), part)
    cond.pop("cache", None)
    with torch.no_grad():
        expected, ours = whole(*x, **cond), network(*x, **cond)
    assert 0 < float((expected - ours).norm() / expected.norm()) < {"int8": 0.03, "float8": 0.12}[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_it_goes_with_offloading_live_lora_and_copies(kind: str) -> None:
    def opened(offload: Any = None) -> Any:
        model = Placement(CPU, offload, kind).apply(latents.system())
        layer = model.unet.middle[1].blocks[0].self_attention.query
        change = LowRank(torch.full((2, layer.in_features), 0.3), torch.full((layer.out_features, 2), 0.2))
        adapt(layer, "style", Adapter(change, 1.0, live=True))
        with pytest.raises(UserError, match="apply it live"):
            adapt(layer, "other", Adapter(change, 1.0, live=False))
        return model

    images = opened().generate(PROMPTS).images
    assert all(
        stages.equal(images, opened(way(CPU, 0)).generate(PROMPTS).images) for way in (PartsOffload, LayersOffload)
    )
    assert stages.equal(images, copy.deepcopy(opened()).generate(PROMPTS).images)


def test_rounded_weights_are_not_saved(tmp_path: Path) -> None:
    model = place(latents.system(), CPU, weights="int8")
    with pytest.raises(UserError, match="weights were rounded to int8: open the model without"):
        model.save(tmp_path / "model")
    with pytest.raises(UserError, match="unknown weight precision 'int4': choose one of float8, int8, stored"):
        place(latents.system(), CPU, weights="int4")
    with pytest.raises(UserError, match="mps has no float8: take weight_precision=int8"):
        place(latents.system(), torch.device("mps"), weights="float8")


def test_a_type_of_the_whole_model_leaves_the_bytes_alone() -> None:
    for kind in KINDS:
        module = nn.ModuleList(layers())
        quantise(module, kind)
        kept = [(layer.bytes.clone(), layer.scale_bits.clone()) for layer in module]  # type: ignore[union-attr]
        module.to(torch.bfloat16)
        for layer, (numbers, scales) in zip(module, kept, strict=True):
            assert torch.equal(layer.bytes, numbers) and torch.equal(layer.scale_bits, scales)  # type: ignore[arg-type]


def test_encoders_and_stages_that_are_opened_later_are_rounded(tmp_path: Path) -> None:
    text = T5Config(path=str(t5_folder(tmp_path / "t5")), width=stages.WIDTH, dtype="bfloat16")
    stages.stage(stages.base(text=text)).save(tmp_path / "stage")
    plain = diptych.load(tmp_path / "stage", "cpu")
    model: Any = place(diptych.load(tmp_path / "stage", "cpu"), CPU, weights="int8")
    tokens, rounded = plain.text.encode(["a cat"]), model.text.encode(["a cat"])  # type: ignore[union-attr]
    assert any(isinstance(layer, QuantisedLayer) for layer in model.text.model.modules())
    assert model.text.config == text
    assert 0 < float((tokens.sequence - rounded.sequence).norm() / tokens.sequence.norm()) < 0.05


def test_the_option_is_recorded_and_generates_an_image_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--device", "cpu", "--out", str(tmp_path)]
    assert cli.main(["generate", "a red apple", "--steps", "1", "--weight-precision", "int8", *words]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert read_metadata(path)["model"]["weight_precision"] == "int8"
    assert "engine" not in read_metadata(path)["model"]
    assert cli.main(["generate", "--from", str(path), *words]) == 0
    printed = capsys.readouterr()
    assert path.read_bytes() == Path(printed.out.strip()).read_bytes() and "differs" not in printed.err
    assert cli.main(["generate", "a red apple", "--offload", "part", *words]) == 2
    assert "unknown offload 'part'" in capsys.readouterr().err
