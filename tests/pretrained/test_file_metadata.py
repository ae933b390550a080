"""What is stated of a single file, in it and beside it, is followed; two statements that differ are told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from diptych.cli.describe import describe
from diptych.core.errors import UserError
from tests.pretrained import sd_models

YAML = """
model:
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    linear_start: 0.00085
    linear_end: 0.0120
    timesteps: 1000
    use_ema: false
    {}
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sd")
    sd_models.single(folder / "sd1.safetensors")
    sd_models.single(folder / "sd2.safetensors", "sd2")
    tensors = load_file(folder / "sd1.safetensors")
    save_file({**tensors, "v_pred": torch.tensor(1.0)}, folder / "key.safetensors")
    for name, metadata in {
        "spec-v": {"modelspec.prediction_type": "v"},
        "spec-eps": {"modelspec.prediction_type": "epsilon"},
        "spec-768": {"modelspec.architecture": "stable-diffusion-v2-768-v"},
        "spec-edm": {"modelspec.prediction_type": "edm"},
    }.items():
        save_file(tensors, folder / f"{name}.safetensors", metadata)
    return folder


def config(files: Path, folder: Path, name: str, beside: str | None = None, ending: str = ".yaml", **given: Any) -> Any:
    shutil.copy(files / f"{name}.safetensors", folder / "x.safetensors")
    if beside is not None:
        (folder / f"x{ending}").write_text(beside)
    return describe(folder / "x.safetensors", **given)["config"]


@pytest.mark.every(2)
@pytest.mark.parametrize(
    ("name", "beside", "ending", "expected"),
    [
        ("sd1", None, "", "eps"),
        ("key", None, "", "v"),
        ("spec-v", None, "", "v"),
        ("spec-768", None, "", "v"),
        ("sd1", YAML.format('parameterization: "v"'), ".yaml", "v"),
        ("sd1", YAML.format('parameterization: "v"'), ".yml", "v"),
        ("sd2", YAML.format("parameterization: eps"), ".yaml", "eps"),
        ("spec-v", YAML.format("parameterization: v"), ".yaml", "v"),
        ("sd1", json.dumps({"prediction_type": "v_prediction"}), ".json", "v"),
        ("sd1", json.dumps({"model": {"params": {"parameterization": "v"}}}), ".json", "v"),
        ("sd1", json.dumps({"description": "mine", "sd version": "SD1"}), ".json", "eps"),
        ("sd1", "just: notes", ".yaml", "eps"),
    ],
)
def test_what_is_predicted(
    files: Path, tmp_path: Path, name: str, beside: str | None, ending: str, expected: str
) -> None:
    assert config(files, tmp_path, name, beside, ending)["prediction"] == expected


@pytest.mark.parametrize(
    ("name", "beside", "says"),
    [
        ("spec-eps", YAML.format("parameterization: v"), "states that eps .* that v is: say which by --prediction"),
        ("key", YAML.format("parameterization: eps"), "the key v_pred .* states that v .* parameterization"),
        ("spec-edm", None, "modelspec.prediction_type .* is 'edm'"),
    ],
)
def test_conflicting_file_metadata_is_refused_unless_overridden(
    files: Path, tmp_path: Path, name: str, beside: str | None, says: str
) -> None:
    with pytest.raises(UserError, match=says):
        config(files, tmp_path, name, beside)
    if beside is not None:
        assert config(files, tmp_path, name, beside, prediction="v")["prediction"] == "v"


def test_the_schedule_and_the_heads_are_followed(files: Path, tmp_path: Path) -> None:
    beside = YAML.replace("0.0120", "0.02").replace("0.00085", "1e-4").replace("timesteps: 1000", "timesteps: 500")
    found = config(files, tmp_path, "sd1", beside.format("unet_config: {params: {num_heads: 4, context_dim: 128}}"))
    schedule = found["schedule"]
    assert (schedule["beta_start"], schedule["beta_end"], schedule["steps"]) == (1e-4, 0.02, 500)
    assert (found["unet"]["heads"], found["unet"]["head_width"]) == (4, None)


@pytest.mark.parametrize("line", ["zero_terminal_snr: true", "rescale_betas_zero_snr: true", "ztsnr: 1"])
def test_zero_terminal_snr_is_followed(files: Path, tmp_path: Path, line: str) -> None:
    beside = YAML.replace("{}", 'parameterization: "v"\n    ' + line)
    plain = config(files, tmp_path, "sd1", YAML.replace("{}", ""))["schedule"]
    found = config(files, tmp_path, "sd1", beside)
    assert found["schedule"] == {**plain, "zero_snr": True} != plain
    assert found["times"]["spacing"] == "trailing"


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("beta_schedule: cosine", "beta_schedule = 'cosine'"),
        ("mystery: 3", "'mystery' = 3"),
        ("linear_start: -1", "linear_start in .* must be a positive number"),
        ("linear_start: [1]", "must be a positive number"),
        ("parameterization: x0", "parameterization in .* is 'x0'"),
        ("parameterization: [v]", "parameterization"),
        ("cond_stage_config: {target: FrozenCLIPEmbedder, params: {layer: hidden, layer_idx: 11}}", "at layer 11"),
        ("unet_config: {params: {context_dim: 1024}}", "states context_dim 1024, and .* has 128"),
        ("unet_config: {params: {num_heads: many}}", "num_heads must be a whole number"),
        ("a: !!python/object/apply:os.system [true]", "not readable YAML"),
        ("a: &a {b: 1}\n    c: {<<: *a}", "not readable YAML"),
        ("a: [", "not readable YAML"),
        ("a: " + "[" * 5000, "not readable YAML"),
        ("a: " + "x" * 2**18, "more than 262,144 bytes"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(files: Path, tmp_path: Path, line: str, says: str) -> None:
    text = YAML.replace("    linear_start: 0.00085\n", "") if "linear_start" in line else YAML
    with pytest.raises(UserError, match=says) as caught:
        config(files, tmp_path, "sd1", text.replace("{}", line))
    assert "\n" not in str(caught.value) and "x." in str(caught.value)
