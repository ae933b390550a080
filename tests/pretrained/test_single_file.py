"""Stable Diffusion out of single files in CompVis's layout: told from shapes, the same numbers, and what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import diptych
from diptych.core.errors import UserError
from diptych.models.latent_diffusion import LatentDiffusion
from diptych.pretrained.source import Options
from diptych.pretrained.stable_diffusion.text_encoder import tokenizer_of_file
from diptych.weights.files import load_safetensors
from diptych.weights.save import save_safetensors
from tests.networks.reference import relative_error
from tests.pretrained import sd_models
from tests.pretrained.sd_models import KINDS, PROMPTS, Kind

pytest.importorskip("diffusers")

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of each kind, and the tokenizers that they lack."""
    root = tmp_path_factory.mktemp("files")
    for kind in KINDS:
        sd_models.single(root / f"{kind}.safetensors", kind)
        made(kind).tokenizer.save_pretrained(root / f"{kind}-tokenizer")
    return root


@lru_cache
def made(kind: Kind) -> Any:
    return sd_models.pipeline(kind)


def opened(files: Path, kind: Kind, path: Path | None = None, **options: Any) -> LatentDiffusion:
    options = {"tokenizer": files / f"{kind}-tokenizer", **options}
    if kind == "sd2":
        options = {"prediction": "v", **options}
    model = diptych.load(path or files / f"{kind}.safetensors", "cpu", **options)
    assert isinstance(model, LatentDiffusion)
    return model


def changed(file: Path, target: Path, change: Callable[[Tensors], object], **header: str) -> Path:
    tensors = load_safetensors(file)
    change(tensors)
    save_safetensors(tensors, target, header)
    return target


@pytest.mark.every(3)
@pytest.mark.parametrize("kind", KINDS)
def test_a_file_gives_the_pipelines_numbers(files: Path, kind: Kind) -> None:
    model = opened(files, kind)
    sd_models.compare(model, made(kind), kind, "CompVis single file")
    config, size = model.config, 96 if kind == "sd2" else 64
    assert config.prediction == ("v" if kind == "sd2" else "eps")
    assert config.size == size * sd_models.FACTOR and config.unet.concat_channels == (5 if kind == "inpainting" else 0)
    assert config.schedule.beta_end == 0.012 and model.scale == torch.tensor(0.18215)


def test_the_last_layer_of_open_clip_is_not_read(files: Path, tmp_path: Path) -> None:
    """2.x reads the last layer but one. A file made from a folder of diffusers has no last one, and all are read."""
    file = files / "sd2.safetensors"
    assert "cond_stage_model.model.transformer.resblocks.2.ln_1.weight" in load_safetensors(file)
    right = opened(files, "sd2").text.encode(PROMPTS).sequence

    def shorten(tensors: Tensors) -> None:
        last = [key for key in tensors if "resblocks.2." in key or key.endswith(("text_projection", "logit_scale"))]
        for key in last:
            del tensors[key]

    short = changed(file, tmp_path / "short.safetensors", shorten)
    assert torch.equal(opened(files, "sd2", short).text.encode(PROMPTS).sequence, right)


def test_half_precision_is_read_as_it_says(tmp_path: Path, files: Path) -> None:
    path = sd_models.single(tmp_path / "half.safetensors", half=True)
    half = sd_models.pipeline("sd1").to(torch.float16).to(torch.float32)
    sd_models.compare(opened(files, "sd1", path), half, "sd1", "CompVis single file, fp16")


def test_averages_are_read_where_they_are_asked_for(tmp_path: Path, files: Path) -> None:
    average = sd_models.unet("sd1", seed=40)
    path = sd_models.single(tmp_path / "both.safetensors", averages=average)
    sd_models.compare(opened(files, "sd1", path), made("sd1"), "sd1", "CompVis single file, both weights")
    averaged = sd_models.pipeline("sd1", unet=average)
    sd_models.compare(opened(files, "sd1", path, ema=True), averaged, "sd1", "CompVis single file, EMA")
    with pytest.raises(UserError, match="has no EMA weights: none of its keys begins with 'model_ema"):
        opened(files, "sd1", ema=True)
    short = changed(path, tmp_path / "short.safetensors", lambda t: t.pop("model_ema.diffusion_modelout2bias"))
    with pytest.raises(UserError, match=r"key 'model_ema\.diffusion_modelout2bias' is missing"):
        opened(files, "sd1", short, ema=True)


def test_a_checkpoint_of_training_is_read_with_leave(tmp_path: Path, files: Path) -> None:
    path = tmp_path / "model.ckpt"
    torch.save({"state_dict": load_safetensors(files / "sd1.safetensors"), "global_step": 470000}, path)
    with pytest.raises(UserError, match="--allow-pickle"):
        opened(files, "sd1", path)
    sd_models.compare(opened(files, "sd1", path, allow_pickle=True), made("sd1"), "sd1", "CompVis .ckpt")


def test_the_newest_names_of_the_text_encoder_are_known(tmp_path: Path, files: Path) -> None:
    def flatten(tensors: Tensors) -> None:
        for key in [key for key in tensors if ".text_model." in key]:
            tensors[key.replace(".text_model.", ".")] = tensors.pop(key)

    path = changed(files / "sd1.safetensors", tmp_path / "flat.safetensors", flatten)
    sd_models.compare(opened(files, "sd1", path), made("sd1"), "sd1", "CompVis single file, newest names")


def test_a_scale_that_the_file_measured_is_taken(tmp_path: Path, files: Path) -> None:
    path = tmp_path / "scaled.safetensors"
    changed(files / "sd1.safetensors", path, lambda t: t.update(scale_factor=torch.tensor(0.25)))
    assert opened(files, "sd1", path).scale == 0.25
    changed(files / "sd1.safetensors", path, lambda t: t.update(scale_factor=torch.tensor(-1.0)))
    with pytest.raises(UserError, match="scale_factor must be one positive number"):
        opened(files, "sd1", path)


# What the U-Net predicts, which shapes do not tell


BIAS = "model.diffusion_model.output_blocks.3.1.transformer_blocks.0.norm1.bias"


def spread(value: float) -> Callable[[Tensors], object]:
    return lambda tensors: tensors.update({BIAS: torch.tensor([value, -value] * 32)})


@pytest.mark.parametrize(
    ("change", "header", "option", "expected"),
    [
        (spread(0.05), {}, None, "eps"),
        (spread(0.15), {}, None, "v"),
        (spread(0.15), {"modelspec.prediction_type": "epsilon"}, None, "eps"),
        (spread(0.05), {"modelspec.prediction_type": "v"}, None, "v"),
        (lambda tensors: tensors.update({**tensors, "v_pred": torch.zeros(1)}), {}, None, "v"),
        (spread(0.15), {"modelspec.prediction_type": "v"}, "eps", "eps"),
        (spread(0.05), {}, "v", "v"),
    ],
)
def test_what_2_x_predicts_is_found_or_said(
    files: Path, tmp_path: Path, change: Any, header: dict[str, str], option: Any, expected: str
) -> None:
    path = changed(files / "sd2.safetensors", tmp_path / "two.safetensors", change, **header)
    model = opened(files, "sd2", path, prediction=option)
    assert model.config.prediction == expected and model.denoiser.prediction == expected
    assert model.config.size == (96 if expected == "v" else 64) * sd_models.FACTOR


def test_1_x_predicts_the_noise_unless_it_is_said(files: Path) -> None:
    assert opened(files, "sd1").config.prediction == "eps"
    assert opened(files, "sd1", prediction="v").config.prediction == "v"
    with pytest.raises(UserError, match="unknown prediction 'flow': choose one of eps, v"):
        opened(files, "sd1", prediction="flow")


# The tokenizer


def test_without_a_tokenizer_it_says_what_to_give(files: Path) -> None:
    with pytest.raises(UserError, match=r"--tokenizer FOLDER .*openai/clip-vit-large-patch14"):
        opened(files, "sd1", tokenizer=None)
    with pytest.raises(UserError, match="there is no folder"):
        opened(files, "sd1", tokenizer=files / "nothing")


def test_padding_of_1_x_is_refused_for_2_x(files: Path) -> None:
    with pytest.raises(UserError, match=r'is not of Stable Diffusion 2\.x, which pads with "!", number 0'):
        opened(files, "sd2", tokenizer=files / "sd1-tokenizer")


def test_a_tokenizer_in_the_hubs_cache_is_found(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for name, inner, kind in (
        ("models--openai--clip-vit-large-patch14", ".", "sd1"),
        ("models--stabilityai--stable-diffusion-2-1", "tokenizer", "sd2"),
    ):
        shutil.copytree(files / f"{kind}-tokenizer", tmp_path / name / "snapshots" / "abc" / inner, dirs_exist_ok=True)
        (tmp_path / name / "refs").mkdir()
        (tmp_path / name / "refs" / "main").write_text("abc")
    for kind in ("sd1", "sd2"):
        with_it = opened(files, kind, tokenizer=None).text.encode(PROMPTS).sequence
        assert relative_error(with_it, opened(files, kind).text.encode(PROMPTS).sequence) == 0
    place = tokenizer_of_file(Options(), 2)
    assert place == tmp_path / "models--stabilityai--stable-diffusion-2-1" / "snapshots" / "abc" / "tokenizer"


def test_a_whole_folder_of_diffusers_will_do_for_its_tokenizer(files: Path, tmp_path: Path) -> None:
    shutil.copytree(files / "sd1-tokenizer", tmp_path / "model" / "tokenizer")
    sd_models.compare(opened(files, "sd1", tokenizer=tmp_path / "model"), made("sd1"), "sd1", "CompVis single file")


# What is refused


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.update({"lora_te.weight": torch.zeros(1)}), r"unexpected key 'lora_te\.weight' \(1 in all\)"),
        (lambda t: t.update(strange=torch.zeros(1)), "unexpected key 'strange'"),
        (lambda t: t.pop("model.diffusion_model.out.2.bias"), r"key 'model\.diffusion_model\.out\.2\.bias' is missing"),
        (lambda t: t.pop("first_stage_model.quant_conv.bias"), r"key 'first_stage_model\.quant_conv\.bias' is missing"),
        (
            lambda t: t.update({"first_stage_model.encoder.more": torch.zeros(1)}),
            r"unexpected key 'first_stage_model\.encoder\.more'",
        ),
        (
            lambda t: t.update({"cond_stage_model.transformer.text_model.more": torch.zeros(1)}),
            r"unexpected key 'cond_stage_model\.transformer\.text_model\.more'",
        ),
        (
            lambda t: t.update({"model.diffusion_model.out.2.weight": torch.zeros(4, 30, 3, 3)}),
            r"has shape \(4, 30, 3, 3\), but UNet needs \(4, 32, 3, 3\)",
        ),
        (
            lambda t: t.update({"model.diffusion_model.label_emb.0.0.weight": torch.zeros(4, 4)}),
            "label_emb adds classes or sizes",
        ),
        (
            lambda t: t.update({"conditioner.embedders.0.transformer.text_model.x": torch.zeros(1)}),
            "Stable Diffusion XL",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_key(files: Path, tmp_path: Path, change: Any, says: str) -> None:
    path = changed(files / "sd1.safetensors", tmp_path / "bad.safetensors", change)
    with pytest.raises(UserError, match=says) as caught:
        opened(files, "sd1", path)
    assert "bad.safetensors" in str(caught.value) and "\n" not in str(caught.value)


def test_nan_is_refused_by_key(files: Path, tmp_path: Path) -> None:
    key = "first_stage_model.decoder.conv_out.bias"
    path = changed(
        files / "sd1.safetensors", tmp_path / "bad.safetensors", lambda t: t.update({key: torch.full((3,), torch.nan)})
    )
    with pytest.raises(UserError, match=rf"tensor '{key}' holds NaN or Inf"):
        opened(files, "sd1", path)


def test_a_damaged_header_of_ours_is_refused(files: Path, tmp_path: Path) -> None:
    path = changed(files / "sd1.safetensors", tmp_path / "bad.safetensors", lambda t: None, diptych='{"config": {}}')
    with pytest.raises(UserError, match="the entry 'diptych' of its header is damaged"):
        opened(files, "sd1", path)
