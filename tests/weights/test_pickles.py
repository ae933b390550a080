"""Pickles: only with leave, and even then tensors alone; nothing of them runs, is imported or is called."""

from __future__ import annotations

import collections
import datetime
import pickle
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from diptych.core.errors import UserError
from diptych.weights import unpickle
from diptych.weights.lazy import LazyCheckpoint


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


def read(path: Path) -> LazyCheckpoint:
    return LazyCheckpoint.open(path, allow_pickle=True)


@pytest.mark.parametrize("ending", [".ckpt", ".pt", ".bin", ".pth"])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_is_read_only_if_allowed(tmp_path: Path, ending: str, zipped: bool) -> None:
    path = tmp_path / f"x{ending}"
    torch.save(tensors(), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"--allow-pickle.*diptych convert"):
        LazyCheckpoint.open(path)
    found = read(path)
    assert found.shapes == {"a.weight": (2, 3), "a.bias": (2,)}
    assert all(
        torch.equal(found[key], tensor) and found[key].dtype == tensor.dtype for key, tensor in tensors().items()
    )


def test_a_nested_state_dict_is_unwrapped_and_the_rest_ignored(tmp_path: Path) -> None:
    values = {"epoch": 3, "callbacks": {"x": [1.0]}, "state_dict": {**tensors(), "step": 7}}
    torch.save(values, tmp_path / "x.ckpt")
    assert set(read(tmp_path / "x.ckpt")) == {"a.weight", "a.bias"}


@pytest.mark.parametrize("zipped", [True, False])
def test_objects_of_classes_are_inert(tmp_path: Path, zipped: bool) -> None:
    """As PyTorch Lightning leaves its callbacks and hyperparameters; neither need be importable."""
    beside = {
        "callbacks": {Callback: {"monitor": "loss", "best": torch.tensor(1.0)}, "x": Callback()},
        "numbers": [np.float64(0.5), np.arange(3), np.datetime64("2020-01-01"), datetime.date(2020, 1, 1)],
        "paths": Path("/somewhere"),
        "sets": ({1, 2}, frozenset("a"), collections.defaultdict(list), collections.OrderedDict(a=1)),
        7: torch.ones(2),
    }
    torch.save({"state_dict": tensors(), **beside}, tmp_path / "x.ckpt", _use_new_zipfile_serialization=zipped)
    (tmp_path / "x.ckpt").write_bytes((tmp_path / "x.ckpt").read_bytes().replace(b"test_pickles", b"nowhere_here"))
    found = read(tmp_path / "x.ckpt")
    assert found.keys() == tensors().keys() and torch.equal(found["a.weight"], tensors()["a.weight"])


def test_every_kind_of_tensor_comes_as_it_was_saved(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(4, 6)
    values = {
        "part": base[1:3, 2:5],
        "turned": base.t(),
        "number": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "expanded": torch.ones(1).expand(5),
        "float8": base.to(torch.float8_e4m3fn),
        "bfloat16": base.bfloat16(),
        "bool": base > 3,
        "parameter": torch.nn.Parameter(base),
        "complex": torch.complex(base, base),
    }
    more = {"numpy": np.arange(6, dtype=np.float32).reshape(2, 3), "columns": np.asfortranarray(np.ones((2, 3)))}
    for protocol in (2, 4, 5):
        torch.save(collections.OrderedDict({**values, **more}), tmp_path / "x.pt", pickle_protocol=protocol)
        found = read(tmp_path / "x.pt")
        assert found.keys() == {*values, *more}
        for key, tensor in {**values, **{key: torch.from_numpy(each) for key, each in more.items()}}.items():
            assert found[key].dtype == tensor.dtype and found.shapes[key] == tuple(tensor.shape)
            same = [each.detach().contiguous().reshape(-1).view(torch.uint8) for each in (found[key], tensor)]
            assert torch.equal(*same), key


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"string_to_param": {"*": torch.ones(2, 3)}}, {"string_to_param.*"}),
        ({"params_ema": {"a": torch.ones(1)}, "params": {"b": torch.ones(1)}}, {"a"}),
        ({"model": {"a": torch.ones(1)}, "iteration": 3}, {"a"}),
        ({"model": torch.ones(1)}, {"model"}),
    ],
)
def test_tensors_are_found_where_programs_nest_them(tmp_path: Path, values: Any, says: set[str]) -> None:
    torch.save(values, tmp_path / "x.pt")
    assert set(read(tmp_path / "x.pt")) == says


def storage_of(name: str, count: int) -> bytes:
    """A tensor of `count` values, as torch.save writes one, in a storage of four bytes."""
    identity = (
        b"(X\x07\0\0\0storagectorch\n"
        + name.encode()
        + b"\nX\x01\0\0\x000X\x03\0\0\0cpuJ"
        + count.to_bytes(4, "little")
    )
    shape = b"(J" + count.to_bytes(4, "little") + b"t(K\x01t"
    return b"\x80\x02}X\x01\0\0\0actorch._utils\n_rebuild_tensor_v2\n(" + identity + b"tQK\0" + shape + b"\x89NtRs."


RAW = {
    "a call": b"cos\nsystem\n(X\x04\0\0\0truetR.",
    "a call by its own name": b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
    "an attribute": b"cbuiltins\ngetattr\n(cos\npath\nX\x05\0\0\0splittR.",
    "Python 2's": b"c__builtin__\neval\n(X\x01\0\0\x001tR.",
    "a function of anyone's": b"cthis\nrun\n(tR.",
    "a method": b"\x80\x04\x8c\x07pathlib\x8c\x0aPath.touch\x93)R.",
    "a class that starts programs": b"csubprocess\nPopen\n(X\x04\0\0\0truetR.",
    "code": b"ctypes\nCodeType\n(tR.",
    "a library": b"cctypes\nCDLL\n(X\x01\0\0\0xtR.",
    "a pickle in a pickle": b"cpickle\nloads\n(C\x01.tR.",
    "an instance, by an old opcode": b"(ios\nsystem\n.",
    "an object, by an old opcode": b"(cos\nsystem\nX\x04\0\0\0trueo.",
    "the extension registry": b"\x82\x01.",
    "an id as text": b"Pwhatever\n.",
    "an id that is no storage": b"\x80\x02X\x01\0\0\0aQ.",
    "a storage of no tensor": storage_of("EvilStorage", 1),
    "a tensor beyond its storage": storage_of("FloatStorage", 2**30),
    "state for what has none": b"}}b)}b.",
    "no end": b"]" * 99,
    "an empty stack": b"R.",
    "no mark": b"]e.",
    "a value that is not there": b"h\x05.",
    "a place far away": b"]r\xff\xff\xff\xff.",
    "a text larger than the file": b"\x8d" + (2**62).to_bytes(8, "little") + b"a.",
    "a number larger than the file": b"\x8b\xff\xff\xff\x7f\x01.",
    "a frame larger than the file": b"\x95" + (2**62).to_bytes(8, "little") + b"}.",
    "calls within calls": b"ctorch._tensor\n_rebuild_from_type_v2\nq\0(h\0N(h\0N)ttR.",
    "doubling": b"]q\0" + b"(h\0h\0lq\0" * 5000 + b".",
    "the same list again and again": b"("
    + b"N" * 40000
    + b"lq\0\x85q\x010ccollections\nOrderedDict\nq\x020"
    + b"h\x02h\x01R0" * 3000
    + b"N.",
    "a storm": b"}" + b"N0" * 50_000 + b".",
}
"""Pickles that were made to run code, to take all memory or to take for ever; none is of named tensors."""


@pytest.mark.parametrize("way", ["zip", "older"])
@pytest.mark.parametrize("name", RAW)
def test_a_pickle_made_to_do_harm_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, way: str
) -> None:
    path = tmp_path / "x.ckpt"
    monkeypatch.setattr(unpickle, "MAX_OPCODES", 2**16)
    if way == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data.pkl", RAW[name])
            archive.writestr("x/data/0", bytes(4))
    else:
        head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
        path.write_bytes(b"".join(head) + RAW[name] + pickle.dumps(["0"], 2) + (1).to_bytes(8, "little") + bytes(4))
    started = time.perf_counter()
    with pytest.raises(UserError, match=r"x\.ckpt") as caught:
        read(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    assert time.perf_counter() - started < 10
    assert "this" not in sys.modules


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({"x/data.pkl": b"}.", "x/constants.pkl": b"}."}, "TorchScript"),
        ({"x/data.pkl": b"}.", "y/data.pkl": b"}."}, "none of PyTorch's"),
        ({"x/data.pkl": b"}.", "x/byteorder": b"big"}, "the other way round"),
        ({"a.npy": b""}, "none of PyTorch's"),
        ({"x/data.pkl": storage_of("FloatStorage", 1)}, "lacks"),
        ({"x/data.pkl": storage_of("FloatStorage", 1), "x/data/0": b"12"}, "2 of 4 bytes"),
    ],
)
def test_an_archive_that_is_no_state_dict_is_named(tmp_path: Path, files: dict[str, bytes], says: str) -> None:
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        with zipfile.ZipFile(tmp_path / "x.pt", "w", compression) as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        with pytest.raises(UserError, match=says if compression == zipfile.ZIP_STORED else "compressed|" + says):
            read(tmp_path / "x.pt")


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
        LazyCheckpoint.open(path, allow_pickle=allowed)
    assert not trace.exists()
    with path.open("rb") as file:
        pickle.load(file) if way == "pickle" else torch.load(file, weights_only=False)
    assert trace.exists(), "the trap is none"


def test_safetensors_under_another_name_is_read_and_a_pickle_under_its_name_refused(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "x.ckpt")
    assert set(LazyCheckpoint.open(tmp_path / "x.ckpt")) == set(tensors())
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
        LazyCheckpoint.open(tmp_path)
    assert read(tmp_path)["a"] == 0
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    assert read(tmp_path)["a"] == 1
