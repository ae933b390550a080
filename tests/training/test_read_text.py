"""When captions are read: ahead where they are few, in each step where they are many, with the same losses."""

from __future__ import annotations

import dataclasses
import io
import time
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.data.dataset import DataConfig, ImageDataset
from diptych.data.quarantine import BrokenExample, Quarantine
from diptych.data.selection import Selection
from diptych.encoders.cache import CachedTexts
from diptych.encoders.configs import BertTextConfig, T5Config
from diptych.encoders.t5 import T5
from diptych.recipes import get
from diptych.training import read_text as module
from diptych.training.experiment_data import ImageData, all_captions
from diptych.training.prefetch import to_device
from diptych.training.system import TrainingSystem
from tests.encoders.tiny_encoders import PROMPTS, bert_folder, t5_folder

NARROW = ("channels=8", "multipliers=1,2", "blocks=1", "attention_levels=1", "norm_groups=4", "dropout=0")
WORDS = ("red", "blue", "two", "house", "apple", "dog", "cat")


class Chosen(dict[str, np.ndarray]):
    """Which examples are in which split."""

    notes: ClassVar[dict[str, Any]] = {"seen": 0, "broken": []}


class Many:
    """So many captioned images that exist only when they are read."""

    def __init__(self, count: int) -> None:
        self.count, self.skipped = count, dict[str, str]()
        self.selection = Selection(count, Chosen({"train": np.arange(count), "held-out": np.arange(0)}))  # type: ignore
        image = io.BytesIO()
        Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)).save(image, "PNG")
        self.image = image.getvalue()

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> tuple[str, str]:
        return "many", f"{index:08d}"

    def meta(self, index: int) -> dict[str, Any]:
        return {"captions": [f"{WORDS[index % 7]} {WORDS[index // 7 % 7]} {index}"]}

    def image_bytes(self, index: int) -> bytes:
        return self.image

    def missing_caption(self, index: int) -> BrokenExample:
        return BrokenExample("no caption")


def many(count: int) -> ImageData:
    config = DataConfig(path="many", size=16, held_out=0.0)
    return ImageData({"train": ImageDataset(Many(count), config, Quarantine(None, 0.1))})


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> TrainingSystem:
    """Imagen's base in miniature."""
    folder = t5_folder(tmp_path_factory.mktemp("t5"))
    network = [*NARROW, "head_width=4", "context_width=24", "text_pooling_heads=4"]
    changes = [*(f"system.model.network.{change}" for change in network), "system.model.size=16", "data.size=16"]
    return (
        get("imagen-base").override([*changes, f"system.model.text.path={folder}", "system.model.text.width=24"]).system
    )


def first_loss(system: TrainingSystem, data: ImageData, **changes: Any) -> torch.Tensor:
    task = system.build(data, 0)
    batch = to_device(data.batches(0)["train"]([0, 1, 2, 3]), torch.device("cpu")) | changes
    task.start(batch)
    for parameter in task.module.parameters():  # its last layer starts at zero, behind which no text is seen
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(0))
    return task.loss(batch)[0].detach()


def test_few_captions_are_embedded_ahead_and_many_in_the_steps(
    system: TrainingSystem, asked: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path))
    ahead = first_loss(system, many(30))
    assert sorted(asked) == ["", *all_captions(many(30).images)], "each once, and what stands for a dropped one"
    asked.clear()
    online = first_loss(dataclasses.replace(system, embed_text="online"), many(30))  # type: ignore[call-arg]
    assert len(asked) == 4
    other = first_loss(system, many(30), caption=["a dog"] * 4)
    assert (ahead - online).abs().max() < 0.01 * (ahead - other).abs().max()
    monkeypatch.setattr(module, "FEW", 29)
    assert torch.equal(first_loss(system, many(30)), online)


def starts(system: TrainingSystem, asked: list[str], monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """Trains a first step of so many examples, of which only the batch's own captions are read."""

    def never(*arguments: Any) -> Any:
        raise AssertionError("all captions were read")

    monkeypatch.setattr(ImageDataset, "all_captions", never)
    data = many(count)
    first_loss(system, data)
    assert len(asked) == 4 and set(asked) <= {
        caption for i in range(count) for caption in Many.meta(None, i)["captions"]
    }  # type: ignore[arg-type]


def test_nothing_is_embedded_before_the_first_batch(
    system: TrainingSystem, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FEW", 19_999)
    starts(system, asked, monkeypatch, 20_000)


@pytest.mark.slow
def test_a_million_captions_start_within_a_minute(
    system: TrainingSystem, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.process_time()
    starts(system, asked, monkeypatch, 1_000_000)
    assert time.process_time() - began < 60


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_one_padded_pass_gives_what_a_pass_for_each_length_does(kind: str, tmp_path: Path) -> None:
    if kind == "t5":
        encoder: Any = T5Config(path=str(t5_folder(tmp_path)), width=24, max_tokens=40).build()
    else:
        encoder = BertTextConfig(path=str(bert_folder(tmp_path)), width=24, max_tokens=40).build()
    prompts = [prompt for prompt in PROMPTS if kind == "t5" or "größer" not in prompt]
    ours, exact = encoder.encode_at_once(prompts), encoder.encode(prompts)
    longest = exact.mask.shape[1]
    assert ours.mask.shape[1] in (40, -(-longest // 8) * 8)
    assert torch.equal(ours.mask[:, :longest], exact.mask) and not ours.mask[:, longest:].any()
    assert torch.allclose(ours.sequence[:, :longest], exact.sequence, atol=1e-5)
    assert torch.allclose(ours.pooled, exact.pooled, atol=1e-5) and not ours.sequence[:, longest:].any()


def test_captions_of_some_examples_are_evenly_spaced() -> None:
    data = many(100)
    assert data.captions("train", examples=100) == all_captions(data.images)
    assert data.captions(examples=4) == sorted(Many(100).meta(i)["captions"][0] for i in (0, 25, 50, 75))


def test_a_text_embedded_ahead_is_in_memory_and_its_encoder_is_not(system: Any, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path))
    text = many(5).read_text(system.model.text, "ahead", ["a dog"])
    assert isinstance(text, CachedTexts) and not text.loaded and not text.missing(["a dog", "red red 0", ""])
    online = many(5).read_text(system.model.text, "online")
    assert isinstance(online, T5) and online.online
