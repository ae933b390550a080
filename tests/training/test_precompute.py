"""Latents and texts computed once: what training reads is what it would have computed, and stale files are refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.core.errors import UserError
from diptych.data.dataset import DataConfig, ImageDataset, open_dataset
from diptych.data.stream import SampleStream, make_batch
from diptych.encoders.base import TextEmbedding
from diptych.models.latent_diffusion import LatentDiffusion
from diptych.training import precompute as module
from diptych.training import precompute_folder as folders
from diptych.training.precompute import EmbeddedTexts, PrecomputedLatents, precompute
from diptych.training.tasks.diffusion import DiffusionTask, DiffusionTraining
from diptych.training.trainer import train
from diptych.training.training_config import TrainingConfig
from diptych.weights.files import load_safetensors
from tests.models.latents import CAPTIONS, SIZE, autoencoder, config, joint, minilm, write_images

CPU = torch.device("cpu")


class Words:
    """A frozen encoder of its own kind: a token a letter, and a pooled vector that is not their mean."""

    width, max_tokens = 16, 40

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.model = torch.nn.Embedding.from_pretrained(torch.randn(128, 16, generator=generator))
        self.read: list[str] = []

    def encode(self, prompts: list[str]) -> TextEmbedding:
        self.read += prompts
        rows = [self.model(torch.tensor([1, *(ord(letter) % 128 for letter in prompt)])) for prompt in prompts]
        sequence = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = torch.arange(sequence.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
        return TextEmbedding(sequence, mask, torch.stack([row[-1] for row in rows]))


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ImageDataset]:
    path = str(write_images(tmp_path_factory.mktemp("data") / "pictures"))
    return {
        "train": open_dataset(DataConfig(path=path, size=SIZE)),
        "held-out": open_dataset(DataConfig(path=path, size=SIZE, split="held-out")),
    }


@pytest.fixture(scope="module")
def store(datasets: dict[str, ImageDataset], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return precompute(datasets, autoencoder(), Words(), tmp_path_factory.mktemp("cache") / "store", CPU)


@pytest.mark.parametrize("split", ["train", "held-out"])
def test_batches_are_those_encoded_on_the_fly(store: Path, datasets: dict[str, ImageDataset], split: str) -> None:
    stream, positions = SampleStream(len(datasets[split]), 7), [0, 5, 1, 100, 12_345]
    fly = make_batch(datasets[split], stream, positions)
    kept = PrecomputedLatents(store, split, 7, autoencoder())(positions)
    assert (kept["key"], kept["caption"]) == (fly["key"], fly["caption"])
    assert torch.equal(kept["seed"], fly["seed"])
    system = LatentDiffusion(config(), autoencoder(), joint())
    ours, exact = system.posterior(kept), system.posterior(fly)
    for mine, wanted in zip(ours, exact, strict=True):
        assert (mine - wanted).abs().max() <= 2**-10 * wanted.abs().max(), "half precision has 11 bits"
    task = DiffusionTask(system, DiffusionTraining())
    assert torch.allclose(task.loss(kept)[0], task.loss(fly)[0], rtol=0.01)


def test_mirror_images_are_kept_and_drawn_as_on_the_fly(
    store: Path, datasets: dict[str, ImageDataset], tmp_path: Path
) -> None:
    flipping = open_dataset(dataclasses.replace(datasets["train"].config, flip=0.5))
    folder = precompute({"train": flipping}, autoencoder(), None, tmp_path / "store", CPU)
    stream, positions = SampleStream(len(flipping), 7), list(range(12))
    kept = PrecomputedLatents(folder, "train", 7, autoencoder(), flip=0.5)(positions)
    fly = autoencoder().moments(make_batch(flipping, stream, positions)["picture"])
    plain = PrecomputedLatents(folder, "train", 7, autoencoder())(positions)
    assert (kept["latent"] - fly).abs().max() <= 2**-10 * fly.abs().max()
    mirrored = (kept["latent"] != plain["latent"]).flatten(1).any(1)
    assert 0 < mirrored.sum() < 12
    with pytest.raises(UserError, match=r"made without data\.flip"):
        PrecomputedLatents(store, "train", 7, autoencoder(), flip=0.5)


def test_an_autoencoder_that_has_changed_is_refused(store: Path) -> None:
    other = autoencoder()
    with torch.no_grad():
        other.quant_conv.bias[0] += 1e-6
    with pytest.raises(UserError, match="made with another autoencoder: make it again with `diptych precompute`"):
        PrecomputedLatents(store, "train", 0, other)


def test_texts_come_from_memory_to_half_precision(store: Path) -> None:
    words = Words()
    kept = EmbeddedTexts.load(words, store)
    prompts = [CAPTIONS[0], "", CAPTIONS[1]]
    ours, exact = kept.encode(prompts), Words().encode(prompts)
    assert not words.read, "the real one was not asked"
    assert torch.equal(ours.mask, exact.mask)
    for mine, wanted in zip(ours, exact, strict=True):
        assert mine.dtype == wanted.dtype and mine.shape == wanted.shape
        assert (mine.float() - wanted.float()).abs().max() <= 2**-11 * 4
    other = kept.encode([CAPTIONS[0], "something else"])
    assert words.read == ["something else"]
    exact = Words().encode([CAPTIONS[0], "something else"])
    assert torch.equal(other.mask, exact.mask) and (other.sequence - exact.sequence).abs().max() <= 2**-11 * 4


def test_a_pooled_vector_that_is_the_mean_is_not_stored(tmp_path: Path) -> None:
    kept = EmbeddedTexts.compute(minilm(), list(CAPTIONS))
    tmp_path.mkdir(exist_ok=True)
    kept.save(tmp_path)
    assert set(load_safetensors(tmp_path / "text.safetensors")) == {"tokens", "lengths"}
    ours, exact = EmbeddedTexts.load(minilm(), tmp_path).encode([*CAPTIONS, ""]), minilm().encode([*CAPTIONS, ""])
    assert torch.equal(ours.mask, exact.mask)
    assert (ours.pooled - exact.pooled).abs().max() < 2e-3


def test_texts_of_another_encoder_are_refused_and_made_again(
    store: Path, datasets: dict[str, ImageDataset], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="made with another text encoder"):
        EmbeddedTexts.load(Words(seed=1), store)
    shutil.copytree(store, tmp_path / "store")
    same, other = Words(), Words(seed=1)
    precompute(datasets, autoencoder(2), same, tmp_path / "store", CPU)
    assert not same.read, "the captions are the same: nothing to embed"
    assert all(
        torch.equal(then, now)
        for then, now in zip(
            EmbeddedTexts.load(same, store).encode(list(CAPTIONS)),
            EmbeddedTexts.load(same, tmp_path / "store").encode(list(CAPTIONS)),
            strict=True,
        )
    )
    PrecomputedLatents(tmp_path / "store", "train", 0, autoencoder(2))
    precompute(datasets, autoencoder(2), other, tmp_path / "store", CPU)
    assert sorted(other.read) == sorted({"", *CAPTIONS, *(caption.removeprefix("a ") for caption in CAPTIONS)})
    EmbeddedTexts.load(other, tmp_path / "store")


def spoil(folder: Path, name: str, content: bytes | None) -> None:
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", None),
        ("config.json", b"{"),
        ("latents-train-000000.safetensors", None),
        ("latents-train-000000.safetensors", b"\x80\x04" + bytes(50)),
        ("text-000000.safetensors", None),
        ("text-000000.safetensors", b"PK\x03\x04" + bytes(50)),
    ],
)
def test_a_damaged_folder_is_refused_by_name(store: Path, tmp_path: Path, name: str, content: bytes | None) -> None:
    shutil.copytree(store, tmp_path / "store")
    spoil(tmp_path / "store", name, content)
    with pytest.raises(UserError) as caught:
        PrecomputedLatents(tmp_path / "store", "train", 0, autoencoder())
        EmbeddedTexts.load(Words(), tmp_path / "store")
    assert str(tmp_path / "store") in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_without_latents_or_the_split_says_so(store: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="make them with `diptych precompute`"):
        PrecomputedLatents(tmp_path, "train", 0, autoencoder())
    with pytest.raises(UserError, match="no split 'test': choose one of train, held-out"):
        PrecomputedLatents(store, "test", 0, autoencoder())


def test_a_precompute_that_is_cut_short_leaves_the_old_folder(
    store: Path, datasets: dict[str, ImageDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(store, tmp_path / "store")

    def broken(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "embed_captions", broken)
        for out in ("store", "new"):
            with pytest.raises(KeyboardInterrupt):
                precompute(datasets, autoencoder(2), Words(), tmp_path / out, CPU)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".new.unfinished", ".store.unfinished", "store"]
    PrecomputedLatents(tmp_path / "store", "train", 0, autoencoder())
    assert json.loads((tmp_path / "store" / "config.json").read_text())["examples"] == {"train": 9, "held-out": 3}
    with monkeypatch.context() as patch:  # the images are not encoded again
        patch.setattr(module, "encode", broken)
        precompute(datasets, autoencoder(2), Words(), tmp_path / "new", CPU)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".store.unfinished", "new", "store"]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_interrupted_anywhere_the_work_goes_on_and_ends_with_the_same_bytes(
    datasets: dict[str, ImageDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 2)
    monkeypatch.setattr(module, "PART", 4)
    flipping = {split: open_dataset(dataclasses.replace(data.config, flip=0.5)) for split, data in datasets.items()}
    precompute(flipping, autoencoder(), Words(), tmp_path / "whole", CPU)
    encode, encoded, killed = module.encode, 0, 0

    class Dying(Words):
        def encode(self, prompts: list[str]) -> TextEmbedding:
            die()
            return super().encode(prompts)

    def die() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt

    def dying(*arguments: Any) -> Any:
        nonlocal encoded
        die()
        encoded += 1
        return encode(*arguments)

    monkeypatch.setattr(module, "encode", dying)
    for left in [3, 5, 4, 6, 100, 100]:  # noqa: B007 (counted down by what dies)
        try:
            precompute(flipping, autoencoder(), Dying(), tmp_path / "parts", CPU)
        except KeyboardInterrupt:
            killed += 1
            assert not (tmp_path / "parts").exists() and (tmp_path / ".parts.unfinished").is_dir()
    assert killed >= 3
    assert files(tmp_path / "whole") == files(tmp_path / "parts")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts", "whole"]


def test_only_precomputed_data_is_replaced(
    store: Path, datasets: dict[str, ImageDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*arguments: Any) -> Any:
        raise AssertionError("refused before any work")

    images = write_images(tmp_path / "pictures")
    mixed, work = Path(shutil.copytree(store, tmp_path / "mixed")), tmp_path / ".new.unfinished"
    (mixed / "notes.txt").write_text("mine")
    work.mkdir()
    (work / "cat.png").write_text("mine")
    monkeypatch.setattr(module, "encode", never)
    before = sorted(tmp_path.rglob("*"))
    for out in (images, mixed, tmp_path, tmp_path / "new", mixed / "notes.txt"):
        with pytest.raises(UserError, match=r"not precomputed data|notes.txt, which|not unfinished work"):
            precompute(datasets, autoencoder(), None, out, CPU)
    assert sorted(tmp_path.rglob("*")) == before


def test_other_data_or_models_do_not_go_on_with_what_is_left(datasets: dict[str, ImageDataset], tmp_path: Path) -> None:
    asked = {"precompute": "latents"}
    with pytest.raises(KeyboardInterrupt), folders.unfinished(tmp_path / "store", asked) as work:
        (work / "train-000000.safetensors").write_text("of something else")
        (work / "train-000000.json").write_text("{}")
        with pytest.raises(UserError, match="another process is precomputing"):
            precompute(datasets, autoencoder(), None, tmp_path / "store", CPU)
        raise KeyboardInterrupt
    assert (work / "train-000000.json").is_file()
    precompute(datasets, autoencoder(), None, tmp_path / "store", CPU)
    PrecomputedLatents(tmp_path / "store", "train", 0, autoencoder())


def test_a_run_on_precomputed_data_goes_on_with_the_same_bits(store: Path, tmp_path: Path) -> None:
    def run(folder: Path, steps: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        system = LatentDiffusion(config(), autoencoder(), joint())
        quiet = {"log_every": 4, "validate_every": 0, "sample_every": 0, "checkpoint_every": 4}
        settings = TrainingConfig(steps=steps, batch_size=4, warmup=2, threads=1, device="cpu", **quiet)  # type: ignore[arg-type]
        task = DiffusionTask(system, DiffusionTraining())
        train(task, PrecomputedLatents(store, "train", 0, autoencoder()), settings, folder)
        return system.state_dict()

    whole = run(tmp_path / "whole", 8)
    run(tmp_path / "parts", 4)
    parts = run(tmp_path / "parts", 8)
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert any(key.startswith("joint_text") for key in whole) and whole["scale"] != 1.0


def test_texts_from_memory_follow_the_model_to_its_device(store: Path) -> None:
    """The stored tokens and the real encoder stay on the CPU; what the U-Net reads is where the U-Net is."""
    words = EmbeddedTexts.load(Words(), store)
    system = LatentDiffusion(config(joint().config), autoencoder(), words).to("meta")
    for prompts in (list(CAPTIONS), ["something else"]):
        assert {value.device.type for value in system.embed(prompts).values()} == {"meta"}
    assert words.parts[0].tokens.device == words.encoder.model.weight.device == CPU  # type: ignore[attr-defined]
