"""Stores in parts: made by several processes, resumed after a death, opened without being read."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import signal
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diptych.core.errors import UserError
from diptych.data.dataset import DataConfig, ImageDataset, open_dataset
from diptych.encoders import cache
from diptych.encoders.cache import CachePart, EmbeddedTexts, StoredTexts
from diptych.encoders.text_store import TextStore, save_part
from diptych.training import precompute as module
from diptych.training.distributed import team
from diptych.training.precompute import precompute
from diptych.training.precomputed import PrecomputedLatents, part_tensors
from diptych.training.training_config import TrainingConfig
from diptych.weights import save as weights_save
from diptych.weights.fingerprint import fingerprint
from diptych.weights.packed_texts import PackedTexts, buckets_of, text_hashes
from diptych.weights.part_files import part_name
from diptych.weights.save import save_safetensors
from tests.models.latents import CAPTIONS, SIZE, autoencoder, write_images
from tests.training.processes import two_processes
from tests.training.test_precompute import CPU, Words, files


def small(patch: Any = None) -> None:
    """Parts of four images, in two batches."""
    for name, value in {"BATCH": 2, "PART": 4}.items():
        setattr(module, name, value) if patch is None else patch.setattr(module, name, value)


def open_splits(path: str) -> dict[str, ImageDataset]:
    return {split: open_dataset(DataConfig(path=path, size=SIZE, split=split)) for split in ("train", "held-out")}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_images(tmp_path_factory.mktemp("data") / "pictures"))


@pytest.fixture(scope="module")
def alone(pictures: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        return precompute(open_splits(pictures), autoencoder(), Words(), tmp_path_factory.mktemp("one") / "store", CPU)


def share_work(pictures: str, folder: str, environment: dict[str, str]) -> None:
    """A store by two processes; then another, of which the second dies with its first part of texts unfinished."""
    os.environ |= environment
    torch.set_num_threads(1)
    small()
    two = TrainingConfig(workers=1)
    with team("cpu") as here:
        if here.rank:  # it looks at the parts when the first has long been ready to move them
            sizes_of = module.sizes_of
            module.sizes_of = lambda *arguments: (time.sleep(0.2), sizes_of(*arguments))[1]
        precompute(open_splits(pictures), autoencoder(), Words(), Path(folder) / "two", CPU, team=here, settings=two)
        encoded: list[Any] = []
        encode = module.encode

        def counted(*arguments: Any) -> Any:
            encoded.append(arguments)
            return encode(*arguments)

        def die(*arguments: Any) -> Any:
            os.kill(os.getpid(), signal.SIGKILL)

        module.encode = counted
        if here.rank:
            module.save_part = die
        try:
            precompute(open_splits(pictures), autoencoder(), Words(), Path(folder) / "dying", CPU, team=here)
        except UserError as error:
            assert "another process of this run has ended" in str(error) and len(encoded) == 2  # of 7 batches
            os._exit(3)


def test_two_processes_share_the_work_and_what_one_leaves_is_done_alone(
    pictures: str, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert two_processes(share_work, pictures, str(tmp_path)) == [3, -signal.SIGKILL]
    assert files(tmp_path / "two") == files(alone)
    left = sorted(path.name for path in (tmp_path / ".dying.unfinished").glob("*.safetensors"))
    assert "latents-held-out-000000.safetensors" in left and "text-000000.safetensors" in left
    small(monkeypatch)
    monkeypatch.setattr(module, "encode", None)  # all images are encoded
    precompute(open_splits(pictures), autoencoder(), Words(), tmp_path / "dying", CPU)
    assert files(tmp_path / "dying") == files(alone)


def test_a_second_call_does_nothing_and_a_change_is_noticed(
    pictures: str, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Path(shutil.copytree(alone, tmp_path / "store"))
    small(monkeypatch)
    splits, words = open_splits(pictures), Words()
    with monkeypatch.context() as patch:
        patch.setattr(module, "encode", None)
        precompute(splits, autoencoder(), words, store, CPU)
    assert "nothing to do" in capsys.readouterr().err and not words.read
    (store / part_name("latents-train", 1)).unlink()
    precompute(splits, autoencoder(), words, store, CPU)
    assert "latents-train-000001.safetensors is missing" in capsys.readouterr().err and not words.read
    assert files(store) == files(alone)
    changed = {split: open_dataset(dataclasses.replace(data.config, flip=0.5)) for split, data in splits.items()}
    precompute(changed, autoencoder(), words, store, CPU)
    assert "was made before the data changed: it is made again" in capsys.readouterr().err and not words.read


def test_a_full_disk_leaves_the_parts_that_are_whole(
    pictures: str, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(monkeypatch)
    written, save = [], weights_save.save_file

    def full(tensors: Any, path: Any, *more: Any) -> None:
        if len(written) == 3:
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        written.append(path)
        save(tensors, path, *more)

    with monkeypatch.context() as patch:
        patch.setattr(weights_save, "save_file", full)
        with pytest.raises(UserError, match="the disk is full"):
            precompute(open_splits(pictures), autoencoder(), Words(), tmp_path / "store", CPU)
    assert len(list((tmp_path / ".store.unfinished").glob("*.safetensors"))) == 3
    precompute(open_splits(pictures), autoencoder(), Words(), tmp_path / "store", CPU)
    assert files(tmp_path / "store") == files(alone)


def test_texts_that_stay_on_disk_are_those_in_memory(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = EmbeddedTexts.load(Words(), alone)
    monkeypatch.setattr(cache, "IN_MEMORY", 0)
    words = Words()
    stored = EmbeddedTexts.load(words, alone)
    assert isinstance(stored, StoredTexts) and not isinstance(held, StoredTexts)
    prompts = [*CAPTIONS, "", CAPTIONS[0]]
    assert not stored.missing(prompts)
    for ours, wanted in zip(stored.encode(prompts), held.encode(prompts), strict=True):
        assert torch.equal(ours, wanted)
    assert not words.read
    mixed = [CAPTIONS[1], "something else", "something else"]
    for ours, wanted in zip(stored.encode(mixed), held.encode(mixed), strict=True):
        assert torch.equal(ours, wanted)
    assert words.read == ["something else"] and stored.missing(mixed) == []


def test_a_store_of_many_examples_is_opened_without_being_read(tmp_path: Path) -> None:
    """Eight bytes an example in memory: the order of the epoch."""
    count, size = 300_000, 2**15
    first, sizes = autoencoder(), []
    for number, start in enumerate(range(0, count, size)):
        rows = range(start, min(start + size, count))
        tensors = part_tensors([[f"caption {row}"] for row in rows], [str(row) for row in rows], np.empty(0, np.uint64))
        moments = torch.arange(rows.start, rows.stop).remainder(1000).half().view(-1, 1, 1, 1)
        path = tmp_path / part_name("latents-train", number)
        save_safetensors(tensors | {"moments": moments}, path)
        sizes.append(path.stat().st_size)
    stated: dict[str, Any] = {"autoencoder": fingerprint(first), "examples": {"train": count}}
    stated |= {"parts": {"size": size, "bytes": {"train": sizes}}}
    (tmp_path / "config.json").write_text(json.dumps(stated))
    np.unique(np.zeros(1))  # imports what it needs
    tracemalloc.start()
    try:
        latents = PrecomputedLatents(tmp_path, "train", 0, first)
        batch = latents([0, 5, 299_999])
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 8.5 * count + 200_000
    assert batch["caption"] == [f"caption {key}" for key in batch["key"]]
    assert batch["latent"].flatten().tolist() == [float(int(key) % 1000) for key in batch["key"]]


def test_prompts_are_found_among_many_without_a_table(tmp_path: Path) -> None:
    count, parts = 100_000, 4
    prompts = np.array([f"prompt {number}" for number in range(count)])
    buckets = buckets_of(text_hashes(prompts.tolist()), parts)
    assert np.bincount(buckets).min() > count / parts * 0.95
    for part in range(parts):
        mine = prompts[buckets == part].tolist()
        tokens = torch.tensor([float(prompt.rpartition(" ")[2]) for prompt in mine]).view(-1, 1).expand(-1, 2)
        save_part(tmp_path / part_name("text", part), mine, tokens, list(range(1, len(mine) + 1)), None)
    words = Words()
    words.width = 2
    tracemalloc.start()
    try:
        store = TextStore(tmp_path, [path.stat().st_size for path in sorted(tmp_path.iterdir())], 2, "again")
        embedding = StoredTexts(words, store).encode(["prompt 7", "prompt 99999", "prompt 7"])
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert held < 100_000
    assert embedding.sequence[:, 0, 0].tolist() == [7, 99999, 7]
    assert store.find(["prompt 100000"]) == [None]


def test_texts_are_packed_whatever_they_hold() -> None:
    texts = ["", "a", "größer\0 — 🦀", "", "\ud800", "z" * 1000]
    packed = PackedTexts.read(PackedTexts.of(texts).tensors("texts"), "texts")
    assert list(packed) == texts and packed[-3:] == texts[-3:] and len(set(text_hashes(texts))) == 5
    assert list(PackedTexts.of([])) == []


def test_another_text_of_the_same_hash_is_not_mistaken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diptych.encoders import text_store

    def all_alike(texts: Any) -> np.ndarray:
        return np.array([5 for _ in texts], dtype=np.uint64)

    monkeypatch.setattr(text_store, "text_hashes", all_alike)
    part = CachePart(["one", "two"], torch.tensor([[1.0, 1.0], [2.0, 2.0]]), [1, 2], None)
    save_part(tmp_path / part_name("text", 0), *part)
    store = TextStore(tmp_path, [(tmp_path / part_name("text", 0)).stat().st_size], 2, "again")
    found = [None if place is None else place[1] for place in store.find(["two", "three", "one"])]
    assert found == [1, None, 0]
