"""Published files that are broken are refused at the door, in one line; what lies in a pickle never runs."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import diptych
from diptych.cli.main import main
from diptych.core.errors import UserError

TENSORS = {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(4, 4, 3, 3)}


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def truncated(path: Path) -> None:
    save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:-10])


def pickled(path: Path) -> None:
    torch.save(TENSORS, path)


def bare(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": 1}))


def page(path: Path) -> None:
    path.write_bytes(b"<!DOCTYPE html><html>not found</html>")


def pointer(path: Path) -> None:
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 4\n")


def unknown(path: Path) -> None:
    save_file({"nobody.knows": torch.ones(1)}, path)


BROKEN: list[tuple[Callable[[Path], None], str, str]] = [
    (truncated, "x.safetensors", "damaged"),
    (pickled, "x.safetensors", "not a safetensors file but a zip or PyTorch pickle"),
    (bare, "x.safetensors", "not a safetensors file but a Python pickle"),
    (page, "x.safetensors", "an HTML or XML page"),
    (pointer, "x.ckpt", "a Git LFS pointer"),
    (pickled, "x.ckpt", "--allow-pickle"),
    (bare, "x.pt", "--allow-pickle"),
    (unknown, "x.safetensors", "of no kind that diptych knows: it holds 1 tensor"),
]


@pytest.mark.parametrize("command", ["info", "generate"])
@pytest.mark.parametrize(("spoil", "name", "says"), BROKEN, ids=[f"{case[0].__name__}-{case[1]}" for case in BROKEN])
def test_a_broken_file_is_refused_in_one_line(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    spoil: Callable[[Path], None],
    name: str,
    says: str,
) -> None:
    path = tmp_path / name
    spoil(path)
    words = ["generate", "a cat", "--out", str(tmp_path), "--model"] if command == "generate" else ["info"]
    assert main([*words, str(path)]) == 2
    error = capsys.readouterr().err
    assert says in error and str(path) in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("name", ["x.ckpt", "x.pt", "x.safetensors", "folder"])
def test_code_in_a_pickle_never_runs(tmp_path: Path, name: str, allowed: bool) -> None:
    trace, path = tmp_path / "ran", tmp_path / name
    values = {"state_dict": TENSORS, "callbacks": Malicious(trace)}
    if name == "folder":
        (path / "unet").mkdir(parents=True)
        (path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "X"]}')
        (path / "unet" / "config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
        torch.save(values, path / "unet" / "diffusion_pytorch_model.bin")
    else:
        torch.save(values, path)
    with pytest.raises(UserError):
        diptych.load(path, "cpu", allow_pickle=allowed)
    assert not trace.exists()


def test_the_flag_reads_the_tensors_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the command line: the class that is refused is named."""
    trace, path = tmp_path / "ran", tmp_path / "x.ckpt"
    torch.save({"state_dict": TENSORS, "callbacks": Malicious(trace)}, path)
    assert main(["info", str(path), "--allow-pickle"]) == 2
    error = capsys.readouterr().err
    assert "mkdir" in error and error.count("\n") == 1
    assert not trace.exists()
