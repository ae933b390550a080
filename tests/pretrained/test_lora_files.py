"""LoRA files in each of their layouts give what the formats define, as diffusers does, and go without a trace."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import diptych
from diptych.cli.main import main
from diptych.core.errors import UserError
from diptych.core.values import ScaledFile
from diptych.networks.lora import Adapter, LowRank, adapt, adapted
from diptych.pretrained.lora_files import LoRA
from diptych.weights.lora_hash import named_lora
from tests.networks.reference import noise, randomised, relative_error
from tests.parity import within
from tests.pretrained import sd_models
from tests.pretrained.lora_files import (
    ATTENTION,
    COMPVIS,
    KINDS_OF_LAYER,
    OLD_TEXT,
    Changes,
    changes,
    compvis,
    kohya,
    linear_layer,
    peft,
    processors,
    their_layers,
    weights,
    without_alphas,
    written,
)

pytest.importorskip("diffusers")
pytest.importorskip("peft")

ALLOWED = 1e-5
SCALE = 0.7


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return sd_models.pipeline(text_encoder=randomised(sd_models.text_encoder(), seed=1))


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sd") / "model"
    pipeline.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def opened(folder: Path) -> Any:
    return diptych.load(folder, "cpu")


@pytest.fixture
def model(opened) -> Any:
    return copy.deepcopy(opened)


# What comes out.


@torch.no_grad()
def ours(model: Any) -> tuple[Tensor, Tensor]:
    """The U-Net's and the text encoder's answer to fixed inputs."""
    unet = model.unet(noise(2, 4, 16, 16), torch.tensor([981.0, 3.0]), context=noise(2, 7, 128, seed=2))
    return unet, model.text.encode(sd_models.PROMPTS).sequence


@torch.no_grad()
def theirs(pipeline: Any) -> tuple[Tensor, Tensor]:
    unet = pipeline.unet(noise(2, 4, 16, 16), torch.tensor([981, 3]), noise(2, 7, 128, seed=2)).sample
    ids = pipeline.tokenizer(sd_models.PROMPTS, padding="max_length", max_length=77, return_tensors="pt").input_ids
    return unet, pipeline.text_encoder(ids).last_hidden_state


@contextlib.contextmanager
def changed(pipeline: Any, *made: tuple[Changes, float]) -> Iterator[Any]:
    """Their modules with W + scale alpha / rank B A, by hand; a kernel's rows are multiplied as a matrix's."""
    before = {name: module.weight.detach().clone() for name, module in their_layers(pipeline)}
    with torch.no_grad():
        for found, scale in made:
            for name, module in their_layers(pipeline):
                if name in found:
                    down, up, alpha = found[name]
                    change = torch.einsum("or,r...->o...", up.flatten(1), down)
                    module.weight.add_(scale * alpha / len(down) * change)
        yield pipeline
        for name, module in their_layers(pipeline):
            module.weight.copy_(before[name])


def loaded(pipeline: Any, path: Path, scale: float) -> Any:
    """A copy of theirs that its own loader has put a file into."""
    parts = {name: copy.deepcopy(getattr(pipeline, name)) for name in ("unet", "text_encoder")}
    other = sd_models.pipeline(**parts, scheduler=sd_models.scheduler(name="DDIMScheduler"))
    other.set_progress_bar_config(disable=True)
    other.load_lora_weights(str(path), adapter_name="one")
    other.set_adapters("one", scale)
    return other


def errors(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> list[float]:
    return [relative_error(one, other) for one, other in zip(found, expected, strict=True)]


def same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


STYLES = {
    "kohya": (kohya, lambda name: True),
    "kohya, CompVis's blocks": (compvis, lambda name: name in KINDS_OF_LAYER),
    "diffusers (PEFT)": (peft, lambda name: True),
    "diffusers, linear layers": (linear_layer, lambda name: True),
    "diffusers, attention processors": (processors, lambda name: name.endswith((*ATTENTION, *OLD_TEXT))),
}


@pytest.mark.every(2)
@pytest.mark.parametrize("style", STYLES)
def test_every_layout_gives_what_it_defines(style: str, pipeline, model, tmp_path: Path) -> None:
    write, chosen = STYLES[style]
    made = changes(pipeline, chosen)
    lora = LoRA.open(written(tmp_path, write(made)))
    assert len(lora.pairs) == len(made) > 10
    with changed(pipeline, (made, SCALE)):
        expected = theirs(pipeline)
    assert min(errors(ours(model), expected)) > 0.01, "the comparison says nothing if it changes next to nothing"
    lora.attach(model, SCALE)
    live = errors(ours(model), expected)
    lora.merge(model, SCALE)
    merged = errors(ours(model), expected)
    for how, (unet, text) in (("live", live), ("merged", merged)):
        within("LoRA for Stable Diffusion 1.x", style, f"U-Net forward, {how}, relative", unet, ALLOWED)
        within("LoRA for Stable Diffusion 1.x", style, f"text encoder, {how}, relative", text, ALLOWED)


def test_every_kind_of_layer_is_there(pipeline) -> None:
    assert set(KINDS_OF_LAYER) <= set(changes(pipeline)) and set(COMPVIS) == set(KINDS_OF_LAYER[:18])


def test_linear_projections_of_2x(tmp_path: Path) -> None:
    pipeline = sd_models.pipeline("sd2")
    pipeline.save_pretrained(tmp_path / "model")
    model = diptych.load(tmp_path / "model", "cpu")
    made = changes(pipeline)
    with changed(pipeline, (made, SCALE)):
        expected = theirs(pipeline)
    LoRA.open(written(tmp_path, kohya(made))).attach(model, SCALE)
    unet, text = errors(ours(model), expected)
    within("LoRA for Stable Diffusion 2.x", "kohya", "U-Net forward, live, relative", unet, ALLOWED)
    within("LoRA for Stable Diffusion 2.x", "kohya", "text encoder, live, relative", text, ALLOWED)


@pytest.mark.parametrize("style", [pytest.param("kohya", marks=pytest.mark.slow), "diffusers (PEFT)"])
@torch.no_grad()
def test_diffusers_loader_gives_the_same_numbers_and_image(style: str, pipeline, model, tmp_path: Path) -> None:
    """Its loader mixes up alphas that differ between layers (with transformers 5), so here they are all alike."""
    write, tensors = STYLES[style][0], {}
    made = changes(pipeline, alpha=lambda number: 3.0)
    tensors = write(made) if style == "kohya" else without_alphas(write(made))
    path = written(tmp_path, tensors)
    family = "LoRA for Stable Diffusion 1.x"
    start = noise(1, 4, 16, 16, seed=9)
    other = loaded(pipeline, path, SCALE)
    expected = theirs(other)
    assert min(errors(ours(model), expected)) > 0.01
    image = other(
        sd_models.PROMPTS[0], num_inference_steps=4, guidance_scale=5.0, latents=start, output_type="np",
        height=sd_models.SIZE, width=sd_models.SIZE,
    ).images[0]  # fmt: skip
    LoRA.open(path).attach(model, SCALE)
    unet, text = errors(ours(model), expected)
    within(family, style, "U-Net forward, with diffusers' loader, relative", unet, ALLOWED)
    within(family, style, "text encoder, with diffusers' loader, relative", text, ALLOWED)
    made_here = model.generate(sd_models.PROMPTS[0], steps=4, guidance=5.0, sampler="ddim", noise=start).images[0]
    difference = np.abs(np.asarray(made_here, dtype=float) - np.round(image * 255)).max()
    within(family, style, "image, with diffusers' loader, of 255", float(difference), 1.0)
    assert np.asarray(made_here).std() > 5, "an image of one colour says nothing"


# One after another, and away again.


def test_several_at_once_with_scales_of_their_own(pipeline, model, tmp_path: Path) -> None:
    first, second = changes(pipeline), changes(pipeline, lambda name: "attn" in name, seed=1)
    one = LoRA.open(written(tmp_path, kohya(first), "one.safetensors"))
    two = LoRA.open(written(tmp_path, peft(second), "two.safetensors"))
    with changed(pipeline, (first, 0.4), (second, -0.8)):
        expected = theirs(pipeline)
    found = []
    for apply_one in (one.attach, one.merge):
        for apply_two in (two.attach, two.merge):
            apply_one(model, 0.4)
            apply_two(model, -0.8)
            found += errors(ours(model), expected)
    what = "two at once, one negative, live and merged: U-Net and text encoder, relative"
    within("LoRA for Stable Diffusion 1.x", "kohya and diffusers", what, max(found), ALLOWED)
    assert adapted(model.unet) == {one.name: 0.4, two.name: -0.8}


@pytest.mark.every(2)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_removal_gives_the_former_weights_to_the_bit(dtype: torch.dtype, pipeline, model, tmp_path: Path) -> None:
    for network in (model.unet, model.text.model):
        network.to(dtype)
    before = weights(model)
    loras = [
        LoRA.open(written(tmp_path, kohya(changes(pipeline, seed=seed)), f"{seed}.safetensors")) for seed in range(3)
    ]
    loras[0].merge(model, 0.5)
    alone = weights(model)
    assert any(not torch.equal(alone[key], before[key]) for key in before)
    assert all(alone[key].dtype == before[key].dtype for key in before)
    loras[1].merge(model, 3.3)
    loras[2].attach(model, 1.0)
    loras[1].merge(model, -1.7)  # at another scale
    loras[1].remove(model)
    assert all(torch.equal(tensor, alone[key]) for key, tensor in weights(model).items())
    loras[0].remove(model)
    assert all(torch.equal(tensor, before[key]) for key, tensor in weights(model).items())
    loras[2].remove(model)
    assert not adapted(model.unet, model.text.model)
    assert all(not vars(part).get("low_rank") and not part._forward_hooks for part in model.unet.modules())


def test_a_live_one_leaves_weights_and_files_alone(pipeline, model, tmp_path: Path) -> None:
    before, plain = weights(model), ours(model)
    lora = LoRA.open(written(tmp_path, kohya(changes(pipeline))))
    lora.attach(model, 0.5)
    half = ours(model)
    now = weights(model)
    assert now.keys() == before.keys() and all(torch.equal(tensor, before[key]) for key, tensor in now.items())
    lora.attach(model, 0.0)
    assert same(ours(model), plain)
    lora.attach(model, 0.5)
    assert same(ours(model), half) and not same(half, plain)
    LoRA.open(tmp_path / "lora.safetensors").remove(model)  # known by its file
    assert same(ours(model), plain)


def test_a_copy_of_a_model_carries_its_own(pipeline, model, tmp_path: Path) -> None:
    plain, lora = ours(model), LoRA.open(written(tmp_path, kohya(changes(pipeline))))
    for apply in (lora.attach, lora.merge):
        apply(model, 0.5)
        strong = ours(model)
        other = copy.deepcopy(model)
        lora.remove(other)
        assert same(ours(other), plain) and same(ours(model), strong)


def test_moved_to_another_type_while_merged(pipeline, model, tmp_path: Path) -> None:
    before = weights(model)
    lora = LoRA.open(written(tmp_path, kohya(changes(pipeline))))
    lora.merge(model)
    model.unet.half()
    lora.remove(model)
    now = {f"unet.{key}": tensor for key, tensor in model.unet.state_dict().items()}
    assert all(torch.equal(tensor, before[key].half()) for key, tensor in now.items())


def test_the_low_rank_layer_can_be_trained() -> None:
    """Live, gradients reach both matrices; merged, the same numbers come out."""
    layer = nn.Conv2d(3, 5, 3, stride=2, padding=1)
    change = LowRank(noise(2, 3, 3, 3), noise(5, 2, 1, 1, seed=2), alpha=1.0).requires_grad_(True)
    x = noise(1, 3, 8, 8, seed=3)
    adapt(layer, "trained", Adapter(change, 0.5, True))
    live = layer(x)
    live.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in change.parameters())
    adapt(layer, "trained", Adapter(change, 0.5, False))
    assert relative_error(layer(x).detach(), live.detach()) <= 1e-6


# How alphas are stated.


@pytest.mark.parametrize("stabilised", [False, True])
def test_alphas_in_the_header(stabilised: bool, pipeline, tmp_path: Path) -> None:
    """As diffusers' training scripts save them; and rank-stabilised, where alpha is divided by the root of the rank."""
    made = changes(pipeline, lambda name: name.endswith(("attn1.to_q", "attn1.to_k", "q_proj")))
    settings: dict[str, Any] = {"unet.lora_alpha": 5, "unet.r": 4, "unet.use_rslora": stabilised}
    settings["unet.alpha_pattern"] = {"mid_block.attentions.0.transformer_blocks.0.attn1.to_q": 7, "attn1.to_k": 2}
    path = written(tmp_path, without_alphas(peft(made)), lora_adapter_metadata=json.dumps(settings))
    for name, pair in LoRA.open(path).pairs.items():
        rank = len(pair.down)
        if name.startswith("text_encoder."):
            assert pair.alpha == rank  # none is stated
            continue
        stated = 2 if name.endswith("to_k") else 7 if "mid_block" in name else 5
        assert pair.alpha == pytest.approx(stated * (rank**0.5 if stabilised else 1))


def test_diffusers_reads_what_it_saved_itself_as_we_do(pipeline, model, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model_state_dict

    unet = copy.deepcopy(pipeline.unet)
    unet.add_adapter(LoraConfig(r=3, lora_alpha=5, target_modules=["to_q", "to_v", "proj_in", "conv1"]))
    for number, (name, parameter) in enumerate(unet.named_parameters()):
        if "lora_" in name:
            parameter.data.copy_(0.2 * noise(*parameter.shape, seed=number))
    settings = unet.peft_config["default"].to_dict()
    type(pipeline).save_lora_weights(
        tmp_path,
        get_peft_model_state_dict(unet),
        unet_lora_adapter_metadata={k: settings[k] for k in ("r", "lora_alpha")},
    )
    LoRA.open(tmp_path).attach(model)  # the folder: its pytorch_lora_weights.safetensors
    with torch.no_grad():
        expected = unet(noise(2, 4, 16, 16), torch.tensor([981, 3]), noise(2, 7, 128, seed=2)).sample
    error = relative_error(ours(model)[0], expected)
    within("LoRA for Stable Diffusion 1.x", "saved by diffusers", "U-Net forward, relative", error, ALLOWED)


@pytest.mark.every(2, 1)
@pytest.mark.parametrize("style", ["kohya", "diffusers"])
def test_saving_and_opening_again(style: str, pipeline, model, tmp_path: Path) -> None:
    """From each style into the other, bits and alphas kept; diffusers opens what we write."""
    made = changes(pipeline, alpha=lambda number: 3.0)
    lora = LoRA.open(written(tmp_path, peft(made)))
    lora.save(tmp_path / "again.safetensors", model, style)
    if style == "kohya":
        expected = kohya(made)
        again = load_file(tmp_path / "again.safetensors")
        assert again.keys() == expected.keys() and all(torch.equal(again[key], expected[key]) for key in again)
    expected = theirs(loaded(pipeline, tmp_path / "again.safetensors", 1.0))
    LoRA.open(tmp_path / "again.safetensors").attach(model)
    assert max(errors(ours(model), expected)) <= ALLOWED
    with pytest.raises(UserError, match="unknown style 'civitai': choose one of diffusers, kohya"):
        lora.save(tmp_path / "again.safetensors", model, "civitai")


def test_linear_layers_and_1x1_convolutions_take_each_other(pipeline, model, tmp_path: Path) -> None:
    names = ("down_blocks.1.attentions.0.proj_in", "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q")
    made = changes(pipeline, lambda name: name in names)
    assert sorted(change[0].ndim for change in made.values()) == [2, 4]
    LoRA.open(written(tmp_path, kohya(made), "usual.safetensors")).attach(model)
    usual = ours(model)
    LoRA.open(tmp_path / "usual.safetensors").remove(model)
    turned = {
        name: (down.flatten(1), up.flatten(1), alpha)
        if down.ndim == 4
        else (down[..., None, None], up[..., None, None], alpha)
        for name, (down, up, alpha) in made.items()
    }
    LoRA.open(written(tmp_path, kohya(turned))).attach(model)
    assert same(ours(model), usual)


# From the command line.


def test_load_and_generate_take_files(pipeline, folder: Path, tmp_path: Path, capsys) -> None:
    one = written(tmp_path, kohya(changes(pipeline, lambda name: "attn" in name)), "one.safetensors")
    two = written(tmp_path, peft(changes(pipeline, lambda name: "mlp" in name, seed=1)), "two.safetensors")
    model = diptych.load(folder, "cpu", lora=[one, (str(two), -0.5)])
    result = model.generate("a red apple", steps=2)
    told = [{**named_lora(one), "scale": 1.0}, {**named_lora(two), "scale": -0.5}]
    assert [row["file"] for row in told] == ["one.safetensors", "two.safetensors"]
    assert result.metadata[0]["lora"] == told
    LoRA.open(one).remove(model)
    LoRA.open(two).remove(model)
    plain = model.generate("a red apple", steps=2)
    assert "lora" not in plain.metadata[0]
    assert np.asarray(plain.images[0]).tolist() != np.asarray(result.images[0]).tolist()
    words = f"generate apple --steps 2 --device cpu --model {folder} --out {tmp_path} --lora {one} --lora {two}:-0.5"
    assert main(words.split()) == 0
    with Image.open(tmp_path / "apple-s0.png") as image:
        assert json.loads(image.text["diptych"])["lora"] == told  # pyright: ignore[reportAttributeAccessIssue]
    assert main(["generate", "apple", "--model", str(folder), "--out", str(tmp_path), "--lora", f"{one}:inf"]) == 2
    assert "--lora: must be a finite number, not inf" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "file", "scale"),
    [
        ("a.safetensors", "a.safetensors", 1.0),
        ("a.safetensors:0.8", "a.safetensors", 0.8),
        ("a:-1", "a", -1.0),
        ("C:/a.safetensors", "C:/a.safetensors", 1.0),
        ("C:/a.safetensors:2", "C:/a.safetensors", 2.0),
        ("0.8", "0.8", 1.0),
    ],
)
def test_a_scale_stands_behind_a_colon(text: str, file: str, scale: float) -> None:
    assert ScaledFile().parse(text) == (Path(file), scale)
