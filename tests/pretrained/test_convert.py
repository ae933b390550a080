"""Stable Diffusion from layout to layout: the same to the bit there and back, and readable for diffusers."""

from __future__ import annotations

import dataclasses
import json
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import diptych
from diptych.cli.main import main
from diptych.core.errors import UserError
from diptych.encoders.configs import MiniLMConfig
from diptych.models.latent_diffusion import LatentDiffusion
from diptych.pretrained.convert import convert, read_parts
from diptych.pretrained.source import Options
from diptych.weights.files import load_metadata, load_safetensors
from diptych.weights.save import save_safetensors
from tests.models import latents
from tests.pretrained import sd_models
from tests.pretrained.sd_models import KINDS, Kind

pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of diffusers of each kind."""
    root = tmp_path_factory.mktemp("folders")
    for kind in KINDS:
        sd_models.folder(root / kind, kind)
    return root


@lru_cache
def made(kind: Kind) -> Any:
    return sd_models.pipeline(kind)


def state(path: Path, kind: Kind = "sd1", models: Path | None = None) -> dict[str, Tensor]:
    """All tensors of a layout by our names, as stored."""
    parts = read_parts(path, Options(tokenizer=models / kind if models else None), tokenizer=models is not None)
    networks = {"unet": parts.unet, "autoencoder": parts.autoencoder, "text": parts.text}
    return {f"{name}.{key}": part[key] for name, part in networks.items() for key in part}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def same_files(a: Path, b: Path) -> bool:
    """Folders with the same files, tensors and JSON values."""
    names = sorted(path.relative_to(a) for path in a.rglob("*") if path.is_file())
    if names != sorted(path.relative_to(b) for path in b.rglob("*") if path.is_file()):
        return False
    for name in names:
        if name.suffix == ".safetensors":
            if not equal(load_safetensors(a / name), load_safetensors(b / name)):
                return False
        elif name.suffix == ".json":
            if json.loads((a / name).read_text()) != json.loads((b / name).read_text()):
                return False
        elif (a / name).read_bytes() != (b / name).read_bytes():
            return False
    return True


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "sd2" else pytest.mark.slow) for kind in KINDS]
)
def test_every_way_around_ends_where_it_began(models: Path, tmp_path: Path, kind: Kind) -> None:
    """diffusers -> ours -> diffusers -> single file -> ours -> single file -> diffusers."""
    options = Options(tokenizer=models / kind)
    start = models / kind
    assert convert(start, tmp_path / "ours") == []
    assert convert(tmp_path / "ours", tmp_path / "folder") == []
    left = convert(tmp_path / "folder", tmp_path / "one.safetensors")
    assert left == ["the files of its tokenizer, for which a single file has no place"]
    assert convert(tmp_path / "one.safetensors", tmp_path / "again", options=options) == []
    convert(tmp_path / "again", tmp_path / "two.safetensors")
    convert(tmp_path / "two.safetensors", tmp_path / "end", to="diffusers", options=options)

    assert equal(state(tmp_path / "ours"), state(start))
    assert same_files(tmp_path / "ours", tmp_path / "again")
    assert same_files(tmp_path / "folder", tmp_path / "end")
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    assert equal(load_safetensors(one), load_safetensors(two)) and load_metadata(one) == load_metadata(two)
    assert equal(state(tmp_path / "one.safetensors"), state(start))
    first = load_safetensors(start / "unet" / "diffusion_pytorch_model.safetensors")
    assert equal(load_safetensors(tmp_path / "end" / "unet" / "diffusion_pytorch_model.safetensors"), first)
    for file in ("tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"):
        assert (tmp_path / "end" / file).read_bytes() == (start / file).read_bytes()
    scheduler = "scheduler/scheduler_config.json"
    assert json.loads((tmp_path / "end" / scheduler).read_text()) == json.loads((start / scheduler).read_text())
    assert json.loads((tmp_path / "end" / "vae" / "config.json").read_text())["scaling_factor"] == 0.18215


@pytest.mark.every(3, 2)
@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_opens_what_is_written(models: Path, tmp_path: Path, kind: Kind) -> None:
    from diffusers import DiffusionPipeline  # pyright: ignore[reportPrivateImportUsage]

    convert(models / kind, tmp_path / "ours")
    convert(tmp_path / "ours", tmp_path / "folder", to="diffusers")
    theirs: Any = DiffusionPipeline.from_pretrained(tmp_path / "folder", safety_checker=None)
    assert type(theirs) is type(made(kind))
    for name in ("unet", "vae", "text_encoder"):
        assert equal(getattr(theirs, name).state_dict(), getattr(made(kind), name).state_dict())
        ours, given = getattr(theirs, name).config, getattr(made(kind), name).config
        if name != "text_encoder":
            assert settings(ours) == settings(given)
    prompt = ["two cats, and a dog!"]
    padded: dict[str, Any] = {"padding": "max_length", "max_length": 77}
    assert theirs.tokenizer(prompt, **padded).input_ids == made(kind).tokenizer(prompt, **padded).input_ids
    assert type(theirs.scheduler) is type(made(kind).scheduler)
    assert torch.equal(theirs.scheduler.alphas_cumprod, made(kind).scheduler.alphas_cumprod)


def settings(config: Any) -> dict[str, Any]:
    """A network's config as JSON has it, without where it came from."""
    return json.loads(json.dumps({key: value for key, value in config.items() if not key.startswith("_")}))


@pytest.mark.every(3)
@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_reads_the_single_file_by_its_own_names(models: Path, tmp_path: Path, kind: Kind) -> None:
    from diffusers.loaders import single_file_utils as theirs

    file = tmp_path / "one.safetensors"
    convert(models / kind, file)
    tensors = load_safetensors(file)
    unet = theirs.convert_ldm_unet_checkpoint(dict(tensors), dict(made(kind).unet.config))
    assert equal(unet, made(kind).unet.state_dict())
    vae = theirs.convert_ldm_vae_checkpoint(dict(tensors), dict(made(kind).vae.config))
    assert equal(vae, made(kind).vae.state_dict())
    encoder = made(kind).text_encoder
    assert theirs.is_open_clip_model(tensors) == (kind == "sd2")
    if kind == "sd2":
        text = theirs.convert_open_clip_checkpoint(encoder, tensors)
    else:
        text = theirs.convert_ldm_clip_checkpoint(tensors)
    assert equal({key.removeprefix("text_model."): value for key, value in text.items()}, encoder.state_dict())


@pytest.mark.every(3, 1)
@pytest.mark.parametrize("kind", KINDS)
def test_every_layout_gives_the_pipelines_numbers(models: Path, tmp_path: Path, kind: Kind) -> None:
    convert(models / kind, tmp_path / "ours")
    convert(models / kind, tmp_path / "one.safetensors")
    for path, files in ((tmp_path / "ours", "folder of ours"), (tmp_path / "one.safetensors", "single file of ours")):
        model = diptych.load(path, "cpu", tokenizer=models / kind if path.is_file() else None)
        assert isinstance(model, LatentDiffusion)
        assert model.config.prediction == ("v" if kind == "sd2" else "eps") and model.config.size == sd_models.SIZE
        sd_models.compare(model, made(kind), kind, f"{files}, converted")


def test_converting_a_compvis_file_lists_the_tensors_left_out(tmp_path: Path, models: Path) -> None:
    options = Options(tokenizer=models / "sd2", prediction="v")
    file = sd_models.single(tmp_path / "two.safetensors", "sd2")
    (left,) = convert(file, tmp_path / "ours", options=options)
    assert left.startswith("cond_stage_model.model.transformer.resblocks.2, text_projection and logit_scale")
    assert equal(state(tmp_path / "ours"), state(models / "sd2"))
    both = sd_models.single(tmp_path / "both.safetensors", averages=sd_models.unet(seed=40))
    options = Options(tokenizer=models / "sd1")
    assert "the averages" in convert(both, tmp_path / "first", options=options)[0]
    assert "that were trained" in convert(both, tmp_path / "second", options=dataclasses.replace(options, ema=True))[0]
    first, second = state(tmp_path / "first"), state(tmp_path / "second")
    assert equal(first, state(models / "sd1")) and not torch.equal(
        first["unet.conv_in.bias"], second["unet.conv_in.bias"]
    )


def test_converting_warns_of_settings_that_only_our_header_holds(tmp_path: Path) -> None:
    """Four heads are not what other programs take a U-Net of 1.x for; ours reads them from the header."""
    network = sd_models.unet("sd1", attention_head_dim=4)
    sd_models.pipeline("sd1", unet=network).save_pretrained(tmp_path / "folder")
    left = convert(tmp_path / "folder", tmp_path / "one.safetensors")
    assert left[1] == "for other programs, what shapes do not show of its U-Net: heads"
    parts = read_parts(tmp_path / "one.safetensors", Options(), tokenizer=False)
    assert parts.config.unet == read_parts(tmp_path / "folder", Options()).config.unet


@pytest.mark.parametrize("dtype", ["float16", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_a_type_is_changed_where_it_is_asked_for(models: Path, tmp_path: Path, dtype: str) -> None:
    whole = state(models / "sd1")
    convert(models / "sd1", tmp_path / "half.safetensors", dtype=dtype)
    convert(models / "sd1", tmp_path / "half", dtype=dtype)
    expected = {key: tensor.to(getattr(torch, dtype)) for key, tensor in whole.items()}
    assert equal(state(tmp_path / "half.safetensors"), expected) and equal(state(tmp_path / "half"), expected)
    convert(tmp_path / "half.safetensors", tmp_path / "stored.safetensors")
    assert equal(state(tmp_path / "stored.safetensors"), expected), "what is stored is kept"
    convert(tmp_path / "half", tmp_path / "wide.safetensors", dtype="float32")
    assert state(tmp_path / "wide.safetensors")["unet.conv_in.bias"].dtype == torch.float32


def test_a_scheduler_that_our_config_has_left_is_not_brought_back(models: Path, tmp_path: Path) -> None:
    convert(models / "sd1", tmp_path / "ours")
    config = tmp_path / "ours" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction": "v", "sampler": "euler"}))
    convert(tmp_path / "ours", tmp_path / "folder")
    values = json.loads((tmp_path / "folder" / "scheduler" / "scheduler_config.json").read_text())
    assert values["_class_name"] == "EulerDiscreteScheduler" and values["prediction_type"] == "v_prediction"


# What is refused


def refused(source: Path, target: Path, **options: Any) -> str:
    before = sorted(target.parent.rglob("*"))
    with pytest.raises(UserError) as caught:
        convert(source, target, **options)
    assert sorted(target.parent.rglob("*")) == before, "nothing is left behind"
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"autoencoder": {"patch": 2}}, "no place for AutoencoderConfig.patch = 2"),
        ({"unet": {"pooled_width": 128}}, "no place for UNetConfig.pooled_width = 128"),
        ({"prediction": "flow"}, "no place for LatentConfig.prediction = 'flow'"),
        ({"schedule": {"kind": "cosine"}}, "no place for LatentConfig.schedule.kind = 'cosine'"),
        (
            {"text": MiniLMConfig().to_dict(), "unet": {"context_width": MiniLMConfig().width}},
            "no place for a text encoder of kind 'minilm'",
        ),
    ],
)
def test_what_has_no_place_there_is_named(models: Path, tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    convert(models / "sd1", tmp_path / "ours")
    config = tmp_path / "ours" / "config.json"
    values = json.loads(config.read_text())
    for field, value in changes.items():
        values[field] = {**values[field], **value} if isinstance(value, dict) and field != "text" else value
    config.write_text(json.dumps(values))
    for target in ("folder", "one.safetensors"):
        assert says in refused(tmp_path / "ours", tmp_path / target)


def test_a_model_of_ours_in_patches_and_with_minilm_is_refused(tmp_path: Path) -> None:
    latents.system(text="joint").save(tmp_path / "ours")
    assert "no place for a text encoder of kind 'transformer'" in refused(tmp_path / "ours", tmp_path / "folder")


def test_a_place_that_is_taken_is_left_alone_unless_it_is_said(models: Path, tmp_path: Path) -> None:
    target = tmp_path / "one.safetensors"
    target.write_text("precious")
    assert "exists: write to another place, or replace it with --overwrite" in refused(models / "sd1", target)
    assert target.read_text() == "precious"
    assert "was not written by diptych" in refused(models / "sd1", target, overwrite=True)
    assert target.read_text() == "precious"
    target.unlink()
    for _ in range(2):
        convert(models / "sd1", target, overwrite=True)
        assert len(load_safetensors(target)) > 100
    save_safetensors(load_safetensors(target), target)  # as another program would write it
    assert "was not written by diptych" in refused(models / "sd1", target, overwrite=True)
    for to in ("diffusers", "diptych", "diffusers"):
        convert(models / "sd1", tmp_path / "folder", to=to, overwrite=True)
    (tmp_path / "folder" / "unet" / "notes.txt").write_text("precious")
    assert "folder holds unet/notes.txt" in refused(models / "sd1", tmp_path / "folder", overwrite=True)
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "cat.png").write_text("precious")
    shutil.copytree(models / "sd1", tmp_path / "theirs")  # as diffusers writes it
    for name, holds in (("pictures", "cat.png"), ("theirs", "model_index.json")):
        assert "is there already and is not" in refused(models / "sd1", tmp_path / name, overwrite=True)
        assert (tmp_path / name / holds).is_file()
    copy = Path(shutil.copytree(models / "sd1", tmp_path / "copy"))
    assert "holds what is to be converted" in refused(copy, copy, overwrite=True)
    assert "holds what is to be converted" in refused(copy / "unet", tmp_path, overwrite=True)


@pytest.mark.parametrize(
    ("target", "options", "says"),
    [
        ("folder", {"to": "single-file"}, "a single file's name ends in .safetensors"),
        ("one.safetensors", {"to": "diffusers"}, "a single file's name ends in .safetensors"),
        ("folder", {"to": "onnx"}, "unknown layout 'onnx': choose one of diffusers, diptych, single-file"),
        ("folder", {"dtype": "int8"}, "unknown dtype 'int8'"),
    ],
)
def test_what_makes_no_sense_is_refused(
    models: Path, tmp_path: Path, target: str, options: dict[str, Any], says: str
) -> None:
    assert says in refused(models / "sd1", tmp_path / target, **options)


def test_damage_is_found_before_or_leaves_nothing(models: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(models / "sd1", tmp_path / "copy"))
    file = copy / "text_encoder" / "model.safetensors"
    tensors = load_safetensors(file)
    name = next(key for key in tensors if key.endswith("final_layer_norm.bias"))
    save_safetensors({**tensors, name: torch.full_like(tensors[name], torch.inf)}, file)
    assert f"tensor {name!r} holds NaN or Inf" in refused(copy, tmp_path / "ours")
    save_safetensors({**tensors, name: tensors[name][:3].clone()}, file)
    assert "final_layer_norm.bias' has shape (3,)" in refused(copy, tmp_path / "one.safetensors")
    shutil.rmtree(copy / "tokenizer")
    save_safetensors(tensors, file)
    assert "no tokenizer in" in refused(copy, tmp_path / "ours")
    convert(copy, tmp_path / "one.safetensors")  # which needs none


def test_other_models_are_refused(models: Path, tmp_path: Path) -> None:
    (tmp_path / "stage").mkdir()
    (tmp_path / "stage" / "config.json").write_text('{"kind": "stage"}')
    assert "kind 'stage'; only latent models are converted" in refused(tmp_path / "stage", tmp_path / "folder")
    vae = models / "sd1" / "vae" / "diffusion_pytorch_model.safetensors"
    assert "is no Stable Diffusion 1.x or 2.x" in refused(vae, tmp_path / "folder")


def test_the_command_says_what_it_did(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = tmp_path / "one.safetensors"
    assert main(["convert", str(models / "sd1"), str(one), "--dtype", "float16"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == ["left out: the files of its tokenizer, for which a single file has no place", str(one)]
    assert main(["convert", str(one), str(tmp_path / "ours")]) == 2
    assert "--tokenizer FOLDER" in capsys.readouterr().err
    assert main(["convert", str(one), str(tmp_path / "ours"), "--tokenizer", str(models / "sd1")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'ours'}\n"
    assert main(["convert", str(one), str(tmp_path / "ours"), "--tokenizer", str(models / "sd1")]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["info", str(tmp_path / "ours"), "--json"]) == 0
    counted = json.loads(capsys.readouterr().out)["networks"]
    assert counted["text"] == sum(p.numel() for p in made("sd1").text_encoder.parameters())
