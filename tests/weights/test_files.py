"""Weights on disk: what is written comes back, and what is broken is refused with the reason."""

from __future__ import annotations

import errno
import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from diptych.core.errors import UserError
from diptych.weights import save
from diptych.weights.files import load_metadata, load_safetensors
from diptych.weights.lazy import load_into, load_weights
from diptych.weights.save import save_safetensors, save_weights


def some_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "a.weight": torch.randn(40, 30),
        "a.bias": torch.randn(40),
        "b.weight": torch.randn(30, 40).T,  # not contiguous
        "count": torch.tensor(3),
        "mask": torch.tensor([True, False]),
    }


def test_round_trip_is_exact_and_keeps_metadata(tmp_path: Path) -> None:
    tensors = some_tensors()
    save_safetensors(tensors, tmp_path / "x.safetensors", {"kind": "test"})
    loaded = load_safetensors(tmp_path / "x.safetensors")
    assert loaded.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert loaded[key].dtype == tensor.dtype
        assert torch.equal(loaded[key], tensor)
    assert load_metadata(tmp_path / "x.safetensors")["kind"] == "test"
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_tensors_that_share_memory_are_each_written(tmp_path: Path) -> None:
    base = torch.arange(6.0)
    save_safetensors({"all": base, "tied": base, "part": base[2:4]}, tmp_path / "x.safetensors")
    loaded = load_safetensors(tmp_path / "x.safetensors")
    assert loaded["part"].tolist() == [2.0, 3.0]
    assert torch.equal(loaded["all"], loaded["tied"])


def broken(tmp_path: Path, what: str) -> Path:
    path = tmp_path / f"{what}.safetensors"
    save_safetensors(some_tensors(), path)
    whole = path.read_bytes()
    contents = {
        "truncated": whole[:-100],
        "header": whole[:60],
        "tiny": whole[:5],
        "empty": b"",
        "pickle": pickle.dumps({"a": list(range(100))}),
        "zip": b"PK\x03\x04" + bytes(100),
        "html": b"<!DOCTYPE html><html><body>Not found</body></html>",
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
        "noise": bytes(range(256)),
        "longer": whole + bytes(50),
    }
    path.write_bytes(contents[what])
    return path


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("truncated", "damaged"),
        ("header", "cut short"),
        ("tiny", "cut short"),
        ("empty", "cut short"),
        ("pickle", "pickle"),
        ("zip", "zip or PyTorch"),
        ("html", "HTML"),
        ("lfs", "LFS"),
        ("noise", "not a safetensors file"),
        ("longer", "damaged"),
    ],
)
def test_a_file_that_is_not_whole_safetensors_is_refused_by_name_and_reason(
    tmp_path: Path, what: str, said: str
) -> None:
    path = broken(tmp_path, what)
    with pytest.raises(UserError, match=said) as caught:
        load_safetensors(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no file"):
        load_safetensors(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="is a folder"):
        load_safetensors(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused_by_key(tmp_path: Path, value: float) -> None:
    tensors = some_tensors()
    tensors["a.weight"][3, 4] = value
    save_safetensors(tensors, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match=r"a\.weight.*NaN or Inf"):
        load_safetensors(tmp_path / "x.safetensors")
    assert load_safetensors(tmp_path / "x.safetensors", check_finite=False).keys() == tensors.keys()


def test_load_into_names_the_key_and_both_shapes() -> None:
    module = nn.Linear(3, 2)
    state = {key: value + 1 for key, value in module.state_dict().items()}
    load_into(module, state)
    assert torch.equal(module.weight, state["weight"])
    with pytest.raises(UserError, match=r"file\.x.*'weight' has shape \(2, 4\).*needs \(2, 3\)"):
        load_into(module, {**state, "weight": torch.zeros(2, 4)}, "file.x")
    with pytest.raises(UserError, match="'bias' of Linear is missing"):
        load_into(module, {"weight": state["weight"]})
    with pytest.raises(UserError, match="unexpected key 'more'"):
        load_into(module, {**state, "more": torch.zeros(1)})


def test_weights_are_sharded_in_the_layout_of_the_hub(tmp_path: Path) -> None:
    state = {f"layer.{i}": torch.randn(100) for i in range(10)} | {"large": torch.randn(1000)}
    save_weights(state, tmp_path, shard_bytes=1000)  # two of 400 bytes each, the large one alone
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * 2000
    assert sorted(index["weight_map"]) == sorted(state)
    names = [f"model-{i:05d}-of-00006.safetensors" for i in range(1, 7)]
    assert sorted(p.name for p in tmp_path.iterdir()) == [*names, "model.safetensors.index.json"]
    loaded = load_weights(tmp_path)
    assert all(torch.equal(loaded[key], state[key]) for key in state)

    save_weights(state, tmp_path)  # fits one file: the shards are gone
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    loaded = load_weights(tmp_path)
    assert all(torch.equal(loaded[key], state[key]) for key in state)


def test_a_missing_shard_and_an_index_that_leads_elsewhere_are_refused(tmp_path: Path) -> None:
    save_weights({"a": torch.zeros(100), "b": torch.zeros(100)}, tmp_path / "w", shard_bytes=400)
    second = tmp_path / "w" / "model-00002-of-00002.safetensors"
    second.rename(tmp_path / "outside.safetensors")
    with pytest.raises(UserError, match=r"there is no file .*00002-of-00002"):
        load_weights(tmp_path / "w")
    index = tmp_path / "w" / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(second.name, "../outside.safetensors"))
    with pytest.raises(UserError, match=r"\.\./outside"):
        load_weights(tmp_path / "w")
    index.write_text("{")
    with pytest.raises(UserError, match="not an index"):
        load_weights(tmp_path / "w")


def test_bfloat16_is_for_matrices_and_loading_gives_float32(tmp_path: Path) -> None:
    state = some_tensors()
    save_weights(state, tmp_path, dtype=torch.bfloat16)
    stored, loaded = load_weights(tmp_path, dtype=None), load_weights(tmp_path)
    assert stored["a.weight"].dtype == torch.bfloat16
    assert loaded["a.weight"].dtype == torch.float32
    assert torch.equal(loaded["a.weight"], state["a.weight"].bfloat16().float())
    assert torch.equal(loaded["a.bias"], state["a.bias"])  # exact
    assert loaded["count"].dtype == torch.int64


@pytest.mark.parametrize(("number", "said"), [(errno.ENOSPC, "disk is full"), (errno.EACCES, "no permission")])
def test_a_full_disk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, said: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, "simulated")

    monkeypatch.setattr(save, "save_file", fail)
    with pytest.raises(UserError, match=said):
        save_safetensors(some_tensors(), tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_equal_weights_are_equal_files_in_any_order_of_metadata(tmp_path: Path) -> None:
    metadata = {f"key {i} ä": str(i) for i in range(8)}
    for name in ("one", "two"):
        save_safetensors(some_tensors(), tmp_path / name, metadata)
    written = (tmp_path / "one").read_bytes()
    assert written == (tmp_path / "two").read_bytes()
    assert load_metadata(tmp_path / "one").items() >= metadata.items()
    length = int.from_bytes(written[:8], "little")
    named = list(json.loads(written[8 : 8 + length])["__metadata__"])
    assert named == sorted(named)  # 9 entries of a hash table are not in order by chance


def test_weights_that_a_smaller_type_cannot_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.weight .* float16"):
        save_weights({"a.weight": torch.full((2, 2), 1e30)}, tmp_path, torch.float16)
    assert list(tmp_path.iterdir()) == []
