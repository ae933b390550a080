"""Models of the hub, from folders in the hub's own cache layout and without a network."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save

from diptych.core.errors import UserError
from diptych.weights import hub
from diptych.weights.hub import fetch_model, hub_id, select_files

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = save({"a": torch.ones(1000)})
PIPELINE = {
    "model_index.json": b'{"_class_name": "StableDiffusionPipeline"}',
    "unet/config.json": b'{"_class_name": "UNet2DConditionModel"}',
    "unet/diffusion_pytorch_model.safetensors": WEIGHTS,
    "tokenizer/vocab.json": b"{}",
    "tokenizer/merges.txt": b"#version",
}


def cache(home: Path, files: dict[str, bytes], repository: str = "some/model", revision: str = "main") -> Path:
    """A repository as huggingface_hub keeps it: blobs by their hashes, and links to them; the snapshot."""
    place = home / f"models--{repository.replace('/', '--')}"
    snapshot = place / "snapshots" / COMMIT
    for folder in (place / "blobs", place / "refs", snapshot):
        folder.mkdir(parents=True)
    (place / "refs" / revision).write_text(COMMIT)
    for name, content in files.items():
        large = name.endswith(".safetensors")  # kept in LFS
        digest = hashlib.sha256(content) if large else hashlib.sha1(f"blob {len(content)}\0".encode() + content)
        blob = place / "blobs" / digest.hexdigest()
        blob.write_bytes(content)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "diptych"))
    return tmp_path / "hub"


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("owner/name", ("owner/name", None)),
        ("owner/name/file.safetensors", ("owner/name", "file.safetensors")),
        ("owner/name/sub/file.ckpt", ("owner/name", "sub/file.ckpt")),
        ("owner/name.v1-4", ("owner/name.v1-4", None)),
        *((text, None) for text in ("name", "/owner/name", "./owner/name", "../name", "owner/name/", "a/b/c", "")),
        *((text, None) for text in ("owner/na me", "owner/..", "https://hub/owner/name", "~/name")),
    ],
)
def test_hub_ids_and_paths(text: str, means: tuple[str, str | None] | None) -> None:
    assert hub_id(text) == means


def test_a_path_below_a_folder_that_is_here_is_no_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert hub_id("models/mine") is None
    assert not any(hub_id(f"{ours}/mine") for ours in ("runs", "cache", "data", "out"))
    assert hub_id("walks/mine") == ("walks/mine", None)


def test_offline_by_branch_and_commit(home: Path) -> None:
    snapshot = cache(home, PIPELINE)
    assert fetch_model("some/model", offline=True) == snapshot
    assert fetch_model("some/model", revision=COMMIT, offline=True) == snapshot
    with pytest.raises(UserError, match=r"some/model at revision 'v2' is not in the cache .* offline"):
        fetch_model("some/model", revision="v2", offline=True)
    with pytest.raises(UserError, match=r"other/model is not in the cache .* offline"):
        fetch_model("other/model", offline=True)


def test_the_environment_can_say_offline_too(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    snapshot = cache(home, PIPELINE, revision="v2")
    assert fetch_model("some/model", revision="v2") == snapshot


def test_of_several_files_one_must_be_named(home: Path) -> None:
    snapshot = cache(home, {"a.safetensors": WEIGHTS, "b.safetensors": save({"b": torch.ones(1)})})
    with pytest.raises(
        UserError, match=r"2 files of weights \(a\.safetensors, b\.safetensors\): name one, as in some/"
    ):
        fetch_model("some/model", offline=True)
    assert fetch_model("some/model", "b.safetensors", offline=True) == snapshot / "b.safetensors"
    with pytest.raises(UserError, match=r"no file 'c\.safetensors'; its weights: a\.safetensors, b\.safetensors"):
        fetch_model("some/model", "c.safetensors", offline=True)


def test_the_only_file_of_weights_needs_no_name(home: Path) -> None:
    snapshot = cache(home, {"only.safetensors": WEIGHTS, "README.md": b"words"})
    assert fetch_model("some/model", offline=True) == snapshot / "only.safetensors"


def cut(snapshot: Path, name: str) -> None:
    blob = (snapshot / name).resolve()
    blob.write_bytes(blob.read_bytes()[:-8])


def flip(snapshot: Path, name: str) -> None:
    blob = (snapshot / name).resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)


def incomplete(snapshot: Path, name: str) -> None:
    blob = (snapshot / name).resolve()
    blob.rename(blob.with_name(f"{blob.name}.incomplete"))


SPOILS: list[tuple[Callable[[Path, str], object], str]] = [
    (cut, "is damaged"),
    (flip, "is damaged"),
    (incomplete, "was not fetched to its end"),
    (lambda snapshot, name: (snapshot / name).resolve().unlink(), "is a link to nothing"),
]


@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "unet/config.json"])
@pytest.mark.parametrize(("spoil", "says"), SPOILS, ids=["cut", "flip", "incomplete", "gone"])
def test_a_cache_that_is_not_whole_is_refused_by_name(
    home: Path, name: str, spoil: Callable[[Path, str], object], says: str
) -> None:
    snapshot = cache(home, PIPELINE)
    fetch_model("some/model", offline=True)  # whole, and remembered to be
    spoil(snapshot, name)
    with pytest.raises(UserError, match=f"{name} in the hub's cache {says}"):
        fetch_model("some/model", offline=True)


def test_an_index_without_its_shard_is_refused(home: Path) -> None:
    index = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}).encode()
    cache(home, {"config.json": b"{}", "model.safetensors.index.json": index})
    with pytest.raises(UserError, match=r"model-00001-of-00002\.safetensors in the hub's cache is not there"):
        fetch_model("some/model", offline=True)


def test_a_large_file_is_hashed_once(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache(home, PIPELINE)
    fetch_model("some/model", offline=True)
    monkeypatch.setattr(hub.hashlib, "sha1", None)  # would fail
    marks = list((home.parent / "diptych" / "hub").iterdir())
    assert len(marks) == len(PIPELINE)
    fetch_model("some/model", offline=True)
    for mark in marks:
        mark.unlink()
    with pytest.raises(TypeError):
        fetch_model("some/model", offline=True)


def test_select_files() -> None:
    wanted = {
        *("model_index.json", "scheduler/scheduler_config.json", "tokenizer/merges.txt", "tokenizer/vocab.json"),
        *("text_encoder/config.json", "text_encoder/model.safetensors", "unet/config.json", "vae/config.json"),
        *("tokenizer/spiece.model", "unet/diffusion_pytorch_model.safetensors"),
        "vae/diffusion_pytorch_model.fp16.safetensors",
    }
    others = {
        *(
            "README.md",
            "v1-5-pruned.ckpt",
            "v1-5-pruned.safetensors",
            "images/x.png",
            "unet/diffusion_flax_model.msgpack",
        ),
        *(
            "safety_checker/config.json",
            "safety_checker/model.safetensors",
            "feature_extractor/preprocessor_config.json",
        ),
        *("unet/diffusion_pytorch_model.bin", "unet/diffusion_pytorch_model.fp16.safetensors", "unet/model.onnx"),
        *("unet/diffusion_pytorch_model.non_ema.safetensors", "text_encoder/pytorch_model.bin"),
    }
    assert set(select_files(wanted | others, "a/b")) == wanted


def test_shards_are_chosen_with_their_index_and_pickles_only_with_leave() -> None:
    shards = {f"unet/diffusion_pytorch_model.fp16-0000{n}-of-00002.safetensors" for n in (1, 2)}
    small = {"model_index.json", "unet/diffusion_pytorch_model.safetensors.index.fp16.json", "vae/config.json"}
    pickled = {"vae/diffusion_pytorch_model.bin"}
    assert set(select_files(shards | small | pickled, "a/b")) == shards | small
    assert set(select_files(shards | small | pickled, "a/b", pickles=True)) == shards | small | pickled
    with pytest.raises(UserError, match=r"0 files of weights \(x\.ckpt\)|has 0 files"):
        select_files({"x.ckpt"}, "a/b")
    assert select_files({"x.ckpt"}, "a/b", pickles=True) == ["x.ckpt"]


WITHOUT_NETWORK = """
import pathlib, sys
from diptych.cli.main import main
from tests.weights.test_hub import PIPELINE, cache, cut

home = pathlib.Path(sys.argv[1])
for step in range(3):
    if step == 1:
        snapshot = cache(home, PIPELINE)
        print(snapshot)
    elif step == 2:
        cut(snapshot, "unet/config.json")
    assert main(["info", "some/model", *["--offline"] * (step == 2)]) == 2
"""


@pytest.mark.slow
def test_no_network_is_one_clear_line(home: Path) -> None:
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HUB_CACHE": str(home)}  # read on import
    command = [sys.executable, "-c", WITHOUT_NETWORK, str(home)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    alone, beside, damaged = done.stderr.splitlines()
    assert "cannot reach the hub for some/model at http://127.0.0.1:9" in alone and "no copy in the cache" in alone
    assert f"it is in the cache {done.stdout.strip()}: --offline" in beside
    assert "unet/config.json in the hub's cache is damaged" in damaged


def test_a_hub_out_of_reach_is_told_with_what_is_in_the_cache(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def refuse(*arguments: object, **options: object) -> None:
        raise ConnectionError("connection refused\nand more")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(UserError, match=r"cannot reach the hub for some/model at .*\(connection refused\).* no copy"):
        fetch_model("some/model")
    snapshot = cache(home, PIPELINE)
    with pytest.raises(UserError, match=rf"cannot reach the hub .*it is in the cache {snapshot}: --offline"):
        fetch_model("some/model")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("GatedRepoError", "gated: agree to its terms at .*/some/model, then `hf auth login`"),
        ("RevisionNotFoundError", "no revision 'v2'"),
        ("RepositoryNotFoundError", "no model at some/model, neither here nor on the hub"),
    ],
)
def test_errors_of_the_hub(home: Path, monkeypatch: pytest.MonkeyPatch, error: str, says: str) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    kind = getattr(errors, error)

    def refuse(*arguments: object, **options: object) -> None:
        raise kind.__new__(kind)  # as from the hub, but for the response that comes with it

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", refuse)
    with pytest.raises(UserError, match=says):
        fetch_model("some/model", revision="v2")
