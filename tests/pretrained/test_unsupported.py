"""What people bring that is not read is named, with what to do, in one line; what can be read is, whatever its name."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import diptych
from diptych.cli.describe import describe
from diptych.cli.main import main
from diptych.core.errors import UserError
from diptych.pretrained.families import open_published
from diptych.pretrained.load import open_autoencoder, read_options
from diptych.pretrained.stable_diffusion.state_dict_keys import FIRST_STAGE, UNET, averaged_key, trained_key
from diptych.pretrained.unsupported import foreign_file
from tests.pretrained import every_family, sd_models

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd")
    sd_models.single(folder / "sd1.safetensors")
    sd_models.single(folder / "sd2.safetensors", "sd2")
    sd_models.tokenizer().save_pretrained(folder / "tokenizer")
    return folder


@pytest.fixture(scope="module")
def base(saved: Path) -> Tensors:
    return load_file(saved / "sd1.safetensors")


def write(path: Path, tensors: Tensors, **metadata: str) -> Path:
    save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, path, metadata or None)
    return path


def keys(*names: str, shape: tuple[int, ...] = (4, 4)) -> Tensors:
    return {name: torch.ones(shape) for name in names}


FLUX = ("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight")
FOREIGN: dict[str, tuple[Tensors, str]] = {
    "Flux": (keys(*FLUX), "a Flux"),
    "Flux, prefix": (keys(*(UNET + name for name in FLUX)), "a Flux"),
    "Flux, diffusers": (keys("transformer.single_transformer_blocks.0.attn.to_q.weight"), "a Flux"),
    "Chroma": (keys(*FLUX, "distilled_guidance_layer.in_proj.weight"), "a Chroma"),
    "HunyuanVideo": (keys(*FLUX, "txt_in.individual_token_refiner.blocks.0.norm1.weight"), "a HunyuanVideo"),
    "SD 3": (keys("model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight"), "Stable Diffusion 3"),
    "SDXL": (
        keys(UNET + "label_emb.0.0.weight", "conditioner.embedders.1.model.ln_final.weight"),
        "Stable Diffusion XL",
    ),
    "PixArt": (keys("adaln_single.linear.weight", "blocks.0.attn.qkv.weight"), "a PixArt"),
    "Wan": (keys("head.modulation", "blocks.0.cross_attn.norm_k.weight"), "a Wan"),
    "Cascade": (keys("clip_txt_mapper.weight", "down_blocks.0.0.channelwise.0.weight"), "Würstchen"),
    "Kandinsky": (keys("add_embedding.image_norm.weight", "down_blocks.0.resnets.0.conv1.weight"), "a Kandinsky"),
    "ControlNet": (keys("control_model.input_hint_block.0.weight"), "a ControlNet"),
    "T2I-Adapter": (keys("body.0.block1.weight", "conv_in.weight"), "a T2I-Adapter"),
    "IP-Adapter": (keys("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"), "an IP-Adapter"),
    "AnimateDiff": (keys("down_blocks.0.motion_modules.0.temporal_transformer.norm.weight"), "AnimateDiff"),
    "ESRGAN": (keys("RRDB_trunk.0.RDB1.conv1.weight"), "an upscaler"),
    "Real-ESRGAN": (keys("body.0.rdb1.conv1.weight", "conv_first.weight"), "an upscaler"),
    "TAESD": (keys("1.weight", "3.conv.0.weight"), "TAESD"),
    "CLIP": (keys("text_model.embeddings.token_embedding.weight"), "a text encoder alone"),
    "T5": (keys("encoder.block.0.layer.0.SelfAttention.q.weight", "shared.weight"), "a text encoder alone"),
    "U-Net of diffusers": (keys("down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"), "a U-Net alone"),
    "VAE of diffusers": (keys("encoder.down_blocks.0.resnets.0.conv1.weight"), "an autoencoder alone"),
    "scaled fp8": (keys("scaled_fp8", UNET + "input_blocks.0.0.weight"), "quantised"),
    "bitsandbytes": (keys("x.weight", "x.weight.absmax"), "quantised"),
    "embedding": (keys("emb_params", shape=(2, 768)), "textual inversion"),
    "embedding of diffusers": (keys("<cat>", shape=(768,)), "textual inversion"),
    "LoRA": (keys("lora_unet_x.lora_down.weight", "lora_unet_x.lora_up.weight"), "a LoRA: give it by --lora"),
    "LoHa": (keys("lora_unet_x.hada_w1_a"), "a LoRA: give it by --lora"),
    "LoRA, PEFT": (keys("base_model.model.x.lora_A.weight"), "a LoRA: give it by --lora"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_another_kind_of_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    tensors, says = FOREIGN[name]
    path = write(tmp_path / "x.safetensors", tensors)
    assert main(["info", str(path)]) == 2
    error = capsys.readouterr().err
    assert says in error and str(path) in error and error.count("\n") == 1


def unet(tensors: Tensors) -> Tensors:
    return {key: value for key, value in tensors.items() if key.startswith(UNET)}


def first_stage(tensors: Tensors) -> Tensors:
    return {key: value for key, value in tensors.items() if key.startswith(FIRST_STAGE)}


def wider(tensors: Tensors, more: int) -> Tensors:
    key = UNET + "input_blocks.0.0.weight"
    return {**tensors, key: torch.cat([tensors[key], tensors[key][:, :1].repeat(1, more, 1, 1)], 1)}


def averages(tensors: Tensors) -> Tensors:
    rest = {key: value for key, value in tensors.items() if not key.startswith(UNET)}
    return {**rest, **{averaged_key(key): value for key, value in unet(tensors).items()}}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda b: wider(b, 1), "depth model"),
        (lambda b: wider(b, 3), "x4 upscaler"),
        (lambda b: wider(b, 4), "InstructPix2Pix"),
        (lambda b: {k: v for k, v in b.items() if not k.startswith(FIRST_STAGE)}, "without its autoencoder"),
        (unet, "a U-Net alone"),
        (lambda b: {key.removeprefix(UNET): value for key, value in unet(b).items()}, "a U-Net alone"),
        (averages, "averaged .EMA. weights .* open it with --ema"),
        (lambda b: {averaged_key(key): value for key, value in unet(b).items()}, "averaged .EMA. .* give the whole"),
        (first_stage, "an autoencoder or first stage alone, which generates no images"),
        (lambda b: {**b, UNET + "time_embed.cond_proj.weight": torch.ones(2, 2)}, "latent consistency"),
    ],
)
def test_a_relative_of_stable_diffusion_is_named(
    saved: Path, tmp_path: Path, base: Tensors, change: Any, says: str
) -> None:
    path = write(tmp_path / "x.safetensors", change(base))
    with pytest.raises(UserError, match=says) as caught:
        diptych.load(path, tokenizer=saved / "tokenizer" if FIRST_STAGE not in says and "alone" not in says else None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", every_family.KINDS)
def test_what_is_read_is_not_taken_for_anything_else(tmp_path: Path, name: str) -> None:
    kind = every_family.KINDS[name]
    if kind.opened:
        return
    kind.write(tmp_path)
    from diptych.weights.lazy import LazyCheckpoint

    assert foreign_file(LazyCheckpoint.open(tmp_path / kind.file).shapes) is None


@pytest.mark.parametrize("kind", ["sd1", "sd2"])
def test_averages_alone_are_read_where_they_are_asked_for(saved: Path, tmp_path: Path, kind: str) -> None:
    tensors = load_file(saved / f"{kind}.safetensors")
    assert all(trained_key(averaged_key(key)) == key for key in unet(tensors))
    path = write(tmp_path / "x.safetensors", averages(tensors))
    found = describe(path, ema=True)["config"]
    assert found == describe(saved / f"{kind}.safetensors")["config"]


def test_an_autoencoder_alone_is_one_where_one_is_wanted(saved: Path, tmp_path: Path, base: Tensors) -> None:
    path = write(tmp_path / "x.safetensors", first_stage(base))
    ours, whole = open_autoencoder(path), open_autoencoder(saved / "sd1.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), whole.parameters(), strict=True))
    assert describe(path)["networks"].keys() == {"autoencoder"}


@pytest.mark.parametrize("name", ["m.sft", "m.gguf", "m.ckpt", "0c7e0b4f" * 8, "m"])
def test_a_file_is_known_by_its_content(saved: Path, tmp_path: Path, name: str) -> None:
    shutil.copy(saved / "sd1.safetensors", tmp_path / name)
    assert describe(tmp_path / name)["networks"] == describe(saved / "sd1.safetensors")["networks"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"GGUF" + bytes(40), "a GGUF file, whose weights are quantised"),
        (b"\x89HDF\r\n" + bytes(40), "an HDF5 file"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b'{"a": {"b": 1}, "c": 2}', "is a file: give the run folder"),
    ],
)
def test_a_file_of_another_format_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(UserError, match=says):
        diptych.load(tmp_path / "x")


PIPELINES = {
    "StableDiffusionXLPipeline": "Stable Diffusion XL",
    "StableDiffusion3Pipeline": "Stable Diffusion 3",
    "StableDiffusionUpscalePipeline": "an upscaler",
    "StableDiffusionDepth2ImgPipeline": "a depth model",
    "StableDiffusionInstructPix2PixPipeline": "InstructPix2Pix",
    "StableDiffusionControlNetPipeline": "ControlNet",
    "StableUnCLIPPipeline": "a relative",
    "FluxPipeline": "a Flux",
    "ChromaPipeline": "a Chroma",
    "PixArtAlphaPipeline": "a PixArt",
    "KandinskyV22Pipeline": "a Kandinsky",
    "StableCascadePriorPipeline": "Würstchen",
    "WanPipeline": "a Wan",
    "HunyuanVideoPipeline": "a Hunyuan",
}
NETWORKS = {
    "UNet2DConditionModel": "a U-Net alone",
    "ControlNetModel": "a ControlNet",
    "FluxTransformer2DModel": "a Flux",
    "AutoencoderTiny": "TAESD",
    "AutoencoderKLWan": "a Wan",
    "AsymmetricAutoencoderKL": "of another kind",
    "DDIMScheduler": "a scheduler alone",
}


@pytest.mark.parametrize("name", [*PIPELINES, *NETWORKS])
def test_a_folder_of_another_kind_is_named(tmp_path: Path, name: str) -> None:
    file, says = ("model_index.json", PIPELINES[name]) if name in PIPELINES else ("config.json", NETWORKS[name])
    (tmp_path / file).write_text(json.dumps({"_class_name": name}))
    with pytest.raises(UserError, match=re.escape(says)) as caught:
        diptych.load(tmp_path)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (
            {"v1-5.safetensors": b"x", "README.md": b""},
            "holds the file of weights v1-5.safetensors: give the file itself",
        ),
        ({"a.ckpt": b"x", "b.safetensors": b"x"}, "holds 2 files of weights: a.ckpt, b.safetensors"),
        ({"adapter_config.json": b"{}", "adapter_model.safetensors": b""}, "an adapter of PEFT: give it by --lora"),
        ({"config.json": b'{"model_type": "clip_text_model"}'}, "of a model of transformers .'clip_text_model'"),
        ({"notes.txt": b""}, "is no model: it has no config.json"),
    ],
)
def test_a_folder_that_is_no_model_says_what_it_holds(tmp_path: Path, files: dict[str, bytes], says: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=says):
        diptych.load(tmp_path)


EFFECTS: dict[str, tuple[str, ...]] = {
    "sd1-file": ("tokenizer", "ema", "prediction"),
    "sd1-folder-unet": ("tokenizer",),
    "if-base": ("tokenizer",),
    "ldm-text-kl": ("tokenizer", "ema", "prediction"),
    "ldm-class-vq4": ("ema", "prediction"),
    "first-stage-vq": (),
    "adm-classes": (),
    "adm-classifier": (),
}


@pytest.mark.parametrize("name", EFFECTS)
@pytest.mark.parametrize("option", ["tokenizer", "ema", "prediction"])
def test_an_option_without_effect_is_refused_by_name(tmp_path: Path, name: str, option: str) -> None:
    if option in EFFECTS[name]:
        return
    kind = every_family.KINDS[name]
    kind.write(tmp_path)
    given: dict[str, Any] = {"tokenizer": tmp_path, "ema": True, "prediction": "v"}
    with pytest.raises(UserError, match=f"{option} has no effect on"):
        open_published(every_family.place(kind, tmp_path), read_options(**{option: given[option]}))


@pytest.mark.parametrize("source", ["latent", "emoji-latent"])
@pytest.mark.parametrize("option", [["--prediction", "v"], ["--ema"], ["--tokenizer", "."], ["--dtype", "float16"]])
def test_info_of_what_is_ours_refuses_them_too(
    capsys: pytest.CaptureFixture[str], source: str, option: list[str]
) -> None:
    assert main(["info", source, *option]) == 2
    assert option[0].removeprefix("--") in capsys.readouterr().err
