"""Published weights, tensor by tensor: what is stored is read, once and exactly, and what is broken is named."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from diptych.core.errors import UserError
from diptych.weights.lazy import LazyCheckpoint, fill, shapes_only
from diptych.weights.tensors import DTYPES, FINITE_CHUNK, is_finite


def raw(path: Path, header: dict[str, Any] | str, content: bytes = b"") -> Path:
    """A file with this header, true or not."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content)
    return path


def sharded(folder: Path, name: str = "model", variant: str = "") -> dict[str, torch.Tensor]:
    """Two shards with their index, named as diffusers and transformers name them."""
    tensors = {"a": torch.randn(3), "b": torch.randn(4, 2)}
    between = f".{variant}" if variant else ""
    files = {key: f"{name}{between}-{n:05d}-of-00002.safetensors" for n, key in enumerate(tensors, 1)}
    for key, file in files.items():
        save_file({key: tensors[key]}, folder / file)
    index = folder / f"{name}.safetensors.index{between}.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    return tensors


def test_every_dtype_is_read_as_stored(tmp_path: Path) -> None:
    torch.manual_seed(0)
    stored = {name: (4 * torch.randn(5, 3)).to(dtype) for name, dtype in DTYPES.items()}
    stored |= {"scalar": torch.tensor(3.0), "empty": torch.zeros(0, 4)}
    save_file(stored, tmp_path / "x.safetensors")
    read = LazyCheckpoint.open(tmp_path / "x.safetensors")
    assert set(read) == set(stored)
    for key, tensor in stored.items():
        assert read.shapes[key] == tuple(tensor.shape)
        assert read[key].dtype == tensor.dtype
        assert torch.equal(read[key].float(), tensor.float())


def test_a_tensor_is_independent_of_its_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(1000)}, path)
    tensor = LazyCheckpoint.open(path)["a"]
    with path.open("r+b") as file:
        file.truncate(0)
    assert bool((tensor == 1).all())


@pytest.mark.parametrize("name", ["model", "diffusion_pytorch_model"])
@pytest.mark.parametrize("variant", ["", "fp16"])
def test_shards_and_their_variants(tmp_path: Path, name: str, variant: str) -> None:
    tensors = sharded(tmp_path, name, variant)
    read = LazyCheckpoint.open(tmp_path, name)
    assert set(read) == {"a", "b"}
    assert all(torch.equal(read[key], tensors[key]) for key in tensors)


def test_the_plain_file_is_preferred_to_its_variants(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1)}, tmp_path / "model.fp16.safetensors")
    assert LazyCheckpoint.open(tmp_path)["a"] == 0
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    assert LazyCheckpoint.open(tmp_path)["a"] == 1


def test_a_missing_shard_and_a_missing_key_are_named(tmp_path: Path) -> None:
    sharded(tmp_path)
    first = tmp_path / "model-00001-of-00002.safetensors"
    save_file({"c": torch.ones(1)}, first)
    with pytest.raises(UserError, match=r"00001-of-00002\.safetensors lacks tensor 'a'"):
        LazyCheckpoint.open(tmp_path)
    first.unlink()
    with pytest.raises(UserError, match=r"no file .*model-00001-of-00002"):
        LazyCheckpoint.open(tmp_path)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 400]}}, "damaged"),
        ({"a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 16]}}, "damaged"),
        ({"a": {"dtype": "F32", "shape": [-4], "data_offsets": [0, 16]}}, "damaged"),
        ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [16, 0]}}, "damaged"),
        ({"a": {"dtype": "F99", "shape": [4], "data_offsets": [0, 16]}}, "damaged"),
        ({"a": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 16]}}, "damaged"),
        ({"a": 3}, "damaged"),
        ("{", "damaged"),
        (
            '{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, '
            '"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}',
            "'a' twice|damaged",
        ),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: dict[str, Any] | str, says: str) -> None:
    path = raw(tmp_path / "x.safetensors", header, bytes(16))
    with pytest.raises(UserError, match=says) as caught:
        LazyCheckpoint.open(path)
    assert str(path) in str(caught.value)


def test_a_type_that_is_not_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(2, dtype=torch.complex64)}, path)
    with pytest.raises(UserError, match="'a' is of type C64"):
        LazyCheckpoint.open(path)


@pytest.mark.parametrize("left", [0, 5, 20, -1])
def test_a_file_cut_short_is_refused(tmp_path: Path, left: int) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(UserError, match=r"cut short|damaged"):
        LazyCheckpoint.open(path)


def test_a_file_that_shrinks_after_it_was_opened_names_the_tensor(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.ones(100)}, path)
    opened = LazyCheckpoint.open(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="cut short within tensor 'a'"):
        opened["a"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn])
@pytest.mark.parametrize("at", [0, FINITE_CHUNK + 1])
def test_nan_is_found_at_any_position(dtype: torch.dtype, at: int) -> None:
    tensor = torch.zeros(FINITE_CHUNK + 2, dtype=dtype)
    assert is_finite(tensor)
    tensor[at] = torch.nan
    assert not is_finite(tensor)


def test_nan_and_inf_name_their_key(tmp_path: Path) -> None:
    save_file({"good": torch.ones(2), "bad": torch.tensor([1.0, torch.inf])}, tmp_path / "x.safetensors")
    read = LazyCheckpoint.open(tmp_path / "x.safetensors")
    assert read["good"].sum() == 2
    with pytest.raises(UserError, match="'bad' holds NaN or Inf"):
        read["bad"]


def test_fill_takes_a_part_without_the_whole_that_it_came_from() -> None:
    whole = torch.randn(9, 3)
    with torch.device("meta"):
        linear = nn.Linear(3, 3, bias=False)
    fill(linear, {"weight": whole[3:6]}, "here")
    assert torch.equal(linear.weight, whole[3:6])
    assert linear.weight.untyped_storage().nbytes() == 36


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"weight": torch.ones(3, 3)}, "'bias' of Linear is missing"),
        (
            {"weight": torch.ones(3, 2), "bias": torch.ones(3)},
            r"'weight' has shape \(3, 2\), but Linear needs \(3, 3\)",
        ),
        ({"weight": torch.ones(3, 3), "bias": torch.ones(3), "x": torch.ones(1)}, "unexpected key 'x'"),
    ],
)
def test_fill_names_the_key_that_does_not_fit(tensors: dict[str, torch.Tensor], says: str) -> None:
    with torch.device("meta"):
        linear = nn.Linear(3, 3)
    with pytest.raises(UserError, match=says):
        fill(linear, tensors, "here")


def test_shapes_without_reading_tensors(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.full((3,), torch.nan)}, path)
    with shapes_only():
        tensor = LazyCheckpoint.open(path)["a"]
    assert tensor.is_meta and tensor.shape == (3,)
    with pytest.raises(UserError, match="NaN"):
        LazyCheckpoint.open(path)["a"]


@pytest.mark.slow
def test_loading_takes_hardly_more_memory_than_the_file(tmp_path: Path) -> None:
    """120 MB in a process of its own; the benchmark load_full_size.py has the 4 GB."""
    save_file({f"{n}.weight": torch.randn(1024, 1024) for n in range(30)}, tmp_path / "x.safetensors")
    program = """
import sys
from pathlib import Path
import torch
from torch import nn
from diptych.weights.lazy import LazyCheckpoint, fill

def resident(line):
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) * 1024 for row in rows if row.startswith(line))

torch.isfinite(torch.ones(2**20)).all()  # what torch sets up at the first use
with torch.device("meta"):
    module = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(30)))
before = resident("VmRSS")
fill(module, LazyCheckpoint.open(Path(sys.argv[1])), "file")
print((resident("VmHWM") - before) / Path(sys.argv[1]).stat().st_size)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is read from /proc")
    command = [sys.executable, "-c", program, str(tmp_path / "x.safetensors")]
    ratio = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert 0.9 < ratio < 1.2
