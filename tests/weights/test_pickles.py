"""Pickles: only with leave, and even then tensors and plain values alone."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from diptych.errors import UserError
from diptych.weights.checkpoint import Checkpoint


class Malicious:
    """Would create a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


class Callback:
    """As training programs leave in their files."""


def tensors() -> dict[str, torch.Tensor]:
    return {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2, dtype=torch.float16)}


def read(path: Path) -> Checkpoint:
    return Checkpoint.open(path, allow_pickle=True)


@pytest.mark.parametrize("ending", [".ckpt", ".pt", ".bin", ".pth"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_read_with_leave_and_refused_without(tmp_path: Path, ending: str, zipped: bool) -> None:
    path = tmp_path / f"x{ending}"
    torch.save(tensors(), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"--allow-pickle.*diptych convert"):
        Checkpoint.open(path)
    found = read(path)
    assert found.shapes == {"a.weight": (2, 3), "a.bias": (2,)}
    assert all(
        torch.equal(found[key], tensor) and found[key].dtype == tensor.dtype for key, tensor in tensors().items()
    )


def test_a_nested_state_dict_is_unwrapped_and_the_rest_ignored(tmp_path: Path) -> None:
    values = {"epoch": 3, "callbacks": {"x": [1.0]}, "state_dict": {**tensors(), "step": 7}}
    torch.save(values, tmp_path / "x.ckpt")
    assert set(read(tmp_path / "x.ckpt")) == {"a.weight", "a.bias"}


def test_a_class_that_is_no_tensor_is_named(tmp_path: Path) -> None:
    torch.save({"state_dict": tensors(), "callbacks": Callback()}, tmp_path / "x.ckpt")
    with pytest.raises(UserError, match=r"Callback.*refused") as caught:
        read(tmp_path / "x.ckpt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("allowed", [True, False])
@pytest.mark.parametrize("way", ["torch", "old torch", "pickle"])
@pytest.mark.parametrize("name", ["x.ckpt", "x.safetensors", "model.bin"])
def test_code_in_a_pickle_never_runs(tmp_path: Path, allowed: bool, way: str, name: str) -> None:
    path, trace = tmp_path / name, tmp_path / "ran"
    values = {"state_dict": tensors(), "x": Malicious(trace)}
    if way == "pickle":
        path.write_bytes(pickle.dumps(values))
    else:
        torch.save(values, path, _use_new_zipfile_serialization=way == "torch")
    with pytest.raises(UserError):
        Checkpoint.open(path, allow_pickle=allowed)
    assert not trace.exists()
    with path.open("rb") as file:
        pickle.load(file) if way == "pickle" else torch.load(file, weights_only=False)
    assert trace.exists(), "the trap is none"


def test_safetensors_under_another_name_is_read_and_a_pickle_under_its_name_refused(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "x.ckpt")
    assert set(Checkpoint.open(tmp_path / "x.ckpt")) == set(tensors())
    torch.save(tensors(), tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="not a safetensors file but a zip or PyTorch pickle"):
        read(tmp_path / "x.safetensors")


@pytest.mark.parametrize(("keep", "zipped"), [(0.5, True), (0.9, True), (0.5, False), (0.95, False)])
def test_a_truncated_pickle_is_refused(tmp_path: Path, keep: float, zipped: bool) -> None:
    path = tmp_path / "x.ckpt"
    torch.save({"a": torch.randn(1000)}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(UserError, match="damaged") as caught:
        read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("values", [[torch.ones(1)], {"a": 1}, torch.ones(2), {}])
def test_a_pickle_without_named_tensors_is_refused(tmp_path: Path, values: Any) -> None:
    torch.save(values, tmp_path / "x.pt")
    with pytest.raises(UserError, match="no named tensors"):
        read(tmp_path / "x.pt")


def test_nan_in_a_pickle_names_its_key(tmp_path: Path) -> None:
    torch.save({"a": torch.tensor([torch.nan])}, tmp_path / "x.pt")
    with pytest.raises(UserError, match="'a' holds NaN"):
        read(tmp_path / "x.pt")["a"]


def test_a_folder_reads_bin_files_only_where_there_is_no_safetensors(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin is a pickle"):
        Checkpoint.open(tmp_path)
    assert read(tmp_path)["a"] == 0
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    assert read(tmp_path)["a"] == 1
