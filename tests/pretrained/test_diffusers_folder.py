"""Stable Diffusion out of folders of diffusers: the same numbers, and what is wrong with a folder named."""

from __future__ import annotations

import json
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch

import diptych
from diptych.core.errors import UserError
from diptych.diffusion.times import TimesConfig
from diptych.encoders.clip import ClipText
from diptych.models.latent_diffusion import LatentDiffusion
from diptych.weights.files import load_safetensors
from diptych.weights.save import save_safetensors
from tests.networks.reference import relative_error
from tests.parity import within
from tests.pretrained import sd_models
from tests.pretrained.sd_models import FAMILY, KINDS, PROMPTS, Kind

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of each kind."""
    root = tmp_path_factory.mktemp("folders")
    for kind in KINDS:
        sd_models.folder(root / kind, kind)
    return root


@pytest.fixture
def sd1(models: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(models / "sd1", tmp_path / "sd1"))


@lru_cache
def made(kind: Kind) -> Any:
    return sd_models.pipeline(kind)


def opened(path: Path, **options: Any) -> LatentDiffusion:
    model = diptych.load(path, "cpu", **options)
    assert isinstance(model, LatentDiffusion)
    return model


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_gives_the_pipelines_numbers(models: Path, kind: Kind) -> None:
    model = opened(models / kind)
    sd_models.compare(model, made(kind), kind, "diffusers folder")
    config = model.config
    assert config.prediction == ("v" if kind == "sd2" else "eps") and config.sampler == "ddim"
    assert config.times == TimesConfig(spacing="leading", offset=1, final="first")
    assert config.size == sd_models.SIZE and config.unet.concat_channels == (5 if kind == "inpainting" else 0)
    assert model.scale == torch.tensor(0.18215)
    assert not model.training and not any(p.requires_grad for p in model.autoencoder.parameters())


def test_half_precision_in_variant_files_is_read_as_it_says(tmp_path: Path) -> None:
    path = sd_models.folder(tmp_path / "half", half=True, variant="fp16")
    assert (path / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    whole = made("sd1")
    model = opened(path)
    state, theirs = model.autoencoder.state_dict(), whole.vae.state_dict()
    assert state["encoder.conv_in.weight"].dtype == torch.float32
    assert torch.equal(state["encoder.conv_in.weight"], theirs["encoder.conv_in.weight"].half().float())
    half = sd_models.pipeline("sd1").to(torch.float16).to(torch.float32)
    sd_models.compare(model, half, "sd1", "diffusers folder, fp16")
    kept = opened(path, dtype="float16")
    networks: tuple[Any, ...] = (kept.unet, kept.autoencoder, kept.text.model)
    assert {p.dtype for network in networks for p in network.parameters()} == {torch.float16}


def test_shards_are_one_model(tmp_path: Path) -> None:
    path = sd_models.folder(tmp_path / "shards", max_shard_size="1MB")
    assert len(list((path / "unet").glob("*-of-*.safetensors"))) > 2
    sd_models.compare(opened(path), made("sd1"), "sd1", "diffusers folder, sharded")


def test_an_older_autoencoder_is_read_and_diffusers_agrees(sd1: Path) -> None:
    """Before diffusers 0.17 its attention had other names."""
    from diffusers import AutoencoderKL  # pyright: ignore[reportPrivateImportUsage]

    file = sd1 / "vae" / "diffusion_pytorch_model.safetensors"
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = load_safetensors(file)
    for new, old in older.items():
        tensors = {key.replace(f"attentions.0.{new}", f"attentions.0.{old}"): value for key, value in tensors.items()}
    assert "encoder.mid_block.attentions.0.query.weight" in tensors
    save_safetensors(tensors, file)
    theirs: Any = AutoencoderKL.from_pretrained(sd1 / "vae")
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        error = relative_error(opened(sd1).autoencoder.decode(latents), theirs.decode(latents).sample)
    within(FAMILY["sd1"], "diffusers folder, older names", "decoder, relative", error, 1e-5)


def test_a_tokenizer_of_vocabulary_and_merges_reads_the_same(models: Path, tmp_path: Path) -> None:
    """As Stable Diffusion was published: without tokenizer.json, with its padding in special_tokens_map.json."""
    for kind, pad in (("sd1", sd_models.END), ("sd2", "!")):
        path = Path(shutil.copytree(models / kind, tmp_path / kind))
        whole = json.loads((path / "tokenizer" / "tokenizer.json").read_text())["model"]
        shutil.rmtree(path / "tokenizer")
        (path / "tokenizer").mkdir()
        (path / "tokenizer" / "vocab.json").write_text(json.dumps(whole["vocab"]))
        merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in whole["merges"]]
        (path / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
        marks = {"bos_token": sd_models.START, "eos_token": sd_models.END, "unk_token": sd_models.END, "pad_token": pad}
        (path / "tokenizer" / "special_tokens_map.json").write_text(json.dumps(marks))
        told = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77}
        (path / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(told))
        ours, theirs = opened(path).text.encode(PROMPTS), opened(models / kind).text.encode(PROMPTS)
        assert torch.equal(ours.sequence, theirs.sequence)


def test_the_padding_is_the_tokenizers(models: Path) -> None:
    """In 2.x it is "!", and is read along: the same weights with the other padding give other numbers."""
    assert made("sd2").tokenizer.pad_token_id == 0
    model = opened(models / "sd2")
    text: Any = model.text
    right = text.encode(PROMPTS).sequence
    text.pad = made("sd1").tokenizer.pad_token_id
    assert relative_error(text.encode(PROMPTS).sequence, right) > 1e-3


def test_a_prompt_that_is_too_long_is_an_error(models: Path) -> None:
    with pytest.raises(UserError, match="the prompt has 102 tokens and this model reads 77: shorten it"):
        opened(models / "sd1").text.encode(["cat " * 100])


def test_what_was_opened_is_saved_as_one_folder_of_ours(models: Path, tmp_path: Path) -> None:
    model = opened(models / "sd2")
    model.save(tmp_path / "model")
    again = opened(tmp_path / "model")
    assert again.config == model.config and again.scale == model.scale
    sd_models.compare(again, made("sd2"), "sd2", "folder of ours")
    assert isinstance(again.text, ClipText) and isinstance(model.text, ClipText)
    assert again.text.folder == tmp_path / "model" / "text" and again.text.pad == 0
    assert len(model.text.fingerprint) > 16 and len(again.text.fingerprint) == 16


def test_the_size_that_the_first_releases_wrote_is_corrected(sd1: Path) -> None:
    """As diffusers' pipelines do: 32 for what is of 64."""
    change(sd1 / "unet" / "config.json", sample_size=32, _diffusers_version="0.2.2")
    assert opened(sd1).config.size == 64 * sd_models.FACTOR
    change(sd1 / "unet" / "config.json", _diffusers_version="0.10.0")
    assert opened(sd1).config.size == 32 * sd_models.FACTOR


# What is refused


def test_what_is_not_a_part_of_it_is_refused_by_name(sd1: Path) -> None:
    change(sd1 / "model_index.json", text_encoder_2=["transformers", "CLIPTextModelWithProjection"])
    with pytest.raises(UserError, match=r"model_index\.json: text_encoder_2 is no part of a Stable Diffusion"):
        opened(sd1)


@pytest.mark.parametrize(
    ("part", "found", "says"),
    [
        ("unet", ["diffusers", "UNet3DConditionModel"], r"unet must be a UNet2DConditionModel, not \['diffusers', 'UN"),
        ("vae", ["diffusers", "VQModel"], "vae must be a AutoencoderKL"),
        ("text_encoder", ["transformers", "T5EncoderModel"], "text_encoder must be a CLIPTextModel"),
        ("text_encoder", [None, None], "text_encoder must be a CLIPTextModel"),
    ],
)
def test_a_part_of_another_class_is_refused(sd1: Path, part: str, found: list[Any], says: str) -> None:
    change(sd1 / "model_index.json", **{part: found})
    with pytest.raises(UserError, match=rf"model_index\.json: {says}"):
        opened(sd1)


def test_xl_is_refused_by_the_field_that_makes_it_so(sd1: Path) -> None:
    """Of its index, and where that says nothing, of its U-Net."""
    change(sd1 / "unet" / "config.json", addition_embed_type="text_time")
    with pytest.raises(UserError, match=r"unet/config\.json: addition_embed_type = 'text_time'"):
        opened(sd1)
    change(sd1 / "model_index.json", _class_name="StableDiffusionXLPipeline", text_encoder_2=["transformers", "X"])
    with pytest.raises(UserError, match=r"is a Stable Diffusion XL \(StableDiffusionXLPipeline\)"):
        opened(sd1)


@pytest.mark.parametrize(
    ("file", "values", "says"),
    [
        ("unet/config.json", {"sample_size": "large"}, r"unet/config\.json: sample_size must be a whole number"),
        ("unet/config.json", {"cross_attention_dim": 64}, r"context_width must be 128 to fit its neighbours, not 64"),
        ("unet/config.json", {"layers_per_block": 1}, r"unexpected key 'down_blocks\.0\.attentions\.1"),
        ("unet/config.json", {"layers_per_block": 3}, r"key 'down_blocks\.0\.resnets\.2\.norm1\.weight' is missing"),
        ("vae/config.json", {"scaling_factor": -1}, r"vae/config\.json: scaling_factor"),
        ("scheduler/scheduler_config.json", {"trained_betas": [0.1]}, r"scheduler_config\.json: .*trained_betas"),
        ("text_encoder/config.json", {"model_type": "t5"}, "of another kind|of a model of type 't5'"),
        ("text_encoder/config.json", {"num_hidden_layers": 1}, r"unexpected key .*encoder\.layers\.1"),
        ("text_encoder/config.json", {"vocab_size": 20}, r"knows 105 tokens, and its text model 20"),
    ],
)
def test_a_folder_that_does_not_fit_itself_is_refused(sd1: Path, file: str, values: Any, says: str) -> None:
    change(sd1 / file, **values)
    with pytest.raises(UserError, match=says) as caught:
        opened(sd1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(sd1: Path, name: str) -> None:
    shutil.rmtree(sd1 / name)
    with pytest.raises(UserError, match=rf"sd1/{name}"):
        opened(sd1)


def test_a_key_too_few_or_too_many_is_named(sd1: Path) -> None:
    file = sd1 / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_safetensors(file)
    save_safetensors({**tensors, "add_embedding.linear_1.weight": torch.zeros(2)}, file)
    with pytest.raises(UserError, match=r"unexpected key 'add_embedding\.linear_1\.weight' \(1 in all\)"):
        opened(sd1)
    del tensors["conv_out.bias"]
    save_safetensors(tensors, file)
    with pytest.raises(UserError, match=r"key 'conv_out\.bias' is missing"):
        opened(sd1)
