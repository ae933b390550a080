"""The autoencoder in whatever holds one, and nothing else of it; `evaluate reconstruction` takes all of them."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.cli import main as cli
from diptych.core.errors import UserError
from diptych.models.first_stage import save_autoencoder
from diptych.networks.autoencoder import Autoencoder
from diptych.pretrained.load import ASSETS, open_autoencoder
from diptych.training.tasks.autoencoding import FirstStageConfig
from tests.models.latents import AUTOENCODER, autoencoder, system, write_images
from tests.networks.reference import noise, relative_error


def same(opened: Autoencoder, expected: Autoencoder) -> None:
    assert not opened.training and opened.config == expected.config
    assert all(torch.equal(a, b) for a, b in zip(opened.parameters(), expected.parameters(), strict=True))


@pytest.fixture
def first_stage(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "model"
    save_autoencoder(autoencoder(), folder)
    (folder / "config.json").write_text(FirstStageConfig(network=AUTOENCODER).to_json())
    return folder.parent


def test_of_a_run_and_of_a_latent_model(first_stage: Path, tmp_path: Path) -> None:
    same(open_autoencoder(first_stage), autoencoder())
    same(open_autoencoder(str(first_stage / "model")), autoencoder())
    system().save(tmp_path / "latent")
    same(open_autoencoder(tmp_path / "latent"), autoencoder())


def test_of_a_published_model_the_rest_is_left_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder, its `vae` alone, and a single file, which needs no tokenizer for it."""
    pytest.importorskip("diffusers")
    from diptych.pretrained.stable_diffusion import components as sd_parts
    from tests.pretrained import sd_models

    folder, file = sd_models.folder(tmp_path / "sd"), sd_models.single(tmp_path / "sd.safetensors")

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the U-Net and the text encoder are read")

    monkeypatch.setattr(sd_parts, "UNet", refuse)
    monkeypatch.setattr(sd_parts.ClipText, "of", refuse)
    expected = sd_models.vae()
    images = noise(1, 3, 32, 32).clamp(-1, 1)
    for source in (folder, folder / "vae", file):
        opened = open_autoencoder(source)
        with torch.no_grad():
            moments, theirs = opened.moments(images), expected.encode(images).latent_dist
            assert relative_error(moments, theirs.parameters) <= 1e-5, source
            assert relative_error(opened.decode(theirs.mean), expected.decode(theirs.mean).sample) <= 1e-5, source
    assert next(open_autoencoder(file, dtype="bfloat16").parameters()).dtype == torch.bfloat16


def test_what_holds_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"kind": "judge"}')
    with pytest.raises(UserError, match="holds no autoencoder"):
        open_autoencoder(tmp_path)
    with pytest.raises(UserError, match="no model at nowhere"):
        open_autoencoder("nowhere")


def test_the_command_measures_several_first_stages(first_stage: Path, tmp_path: Path, capsys) -> None:
    system().save(tmp_path / "latent")
    data = write_images(tmp_path / "pictures")
    models = ["--model", str(first_stage), "--model", str(tmp_path / "latent")]
    places = ["--data", str(data), "--out", str(tmp_path / "out"), "--device", "cpu"]
    assert cli.main(["evaluate", "reconstruction", *models, *places, "--pictures", "2"]) == 0
    assert "PSNR" in capsys.readouterr().out
    assert (tmp_path / "out" / "reconstructions.png").is_file()


def test_the_command_hands_on_what_was_said(monkeypatch: pytest.MonkeyPatch, first_stage: Path, capsys) -> None:
    from diptych.evaluation.benchmarks import reconstruction

    calls: list[tuple[tuple, dict[str, Any]]] = []
    names = inspect.signature(reconstruction.evaluate_reconstruction).parameters
    monkeypatch.setattr(reconstruction, "evaluate_reconstruction", lambda *a, **k: calls.append((a, k)))
    judge = str(ASSETS / "judge")
    options = ["--split", "all", "--pictures", "9", "--size", "32", "--judge", judge, "--seed", "4", "--batch", "2"]
    command = ["evaluate", "reconstruction", "--data", str(first_stage), "--out", "o", "--model", str(first_stage)]
    assert cli.main([*command, "--perceptual", "none", *options]) == 0
    ((models, data, out), given) = calls[0]
    assert [name for name, _ in models] == [str(first_stage)] and (data, out) == (first_stage, Path("o"))
    assert given == {
        "split": "all",
        "images": 9,
        "size": 32,
        "judge": judge,
        "seed": 4,
        "batch": 2,
        "perceptual": None,
        "decoder": None,
    }
    assert given.keys() <= names.keys()
    assert cli.main(command) == 0
    assert calls[1][1]["perceptual"].name.startswith("judge") and calls[1][1].keys() == {"perceptual", "decoder"}
    assert cli.main([*command, "--perceptual", "eyes"]) == 2
    assert "choose one of judge, lpips" in capsys.readouterr().err
    assert cli.main([*command, "--decoder", str(first_stage)]) == 2
    assert "not a tiny decoder" in capsys.readouterr().err
