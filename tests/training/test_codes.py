"""Training a transformer over codes: the stated loss, learning by heart, resuming, and codes computed once."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import diptych
from diptych.core.errors import UserError
from diptych.core.random import DROP, GeneratorDraws
from diptych.data.dataset import DataConfig, ImageDataset, open_dataset
from diptych.data.stream import SampleStream, make_batch
from diptych.encoders.configs import build_encoder
from diptych.models.autoregressive import Autoregressive
from diptych.training.precompute import EmbeddedTexts, PrecomputedLatents, precompute
from diptych.training.tasks.codes import CodesTask, CodesTraining
from diptych.training.trainer import train
from diptych.training.training_config import TrainingConfig
from diptych.weights.files import load_safetensors
from tests.models.codes import CLASSES, SIDE, VOCABULARY, config, first_stage, system, written
from tests.models.latents import CAPTIONS, SIZE, minilm, toy_batch, write_images

CPU = torch.device("cpu")


def batch(condition: str, seeds: list[int]) -> dict[str, Any]:
    """Random codes, the same for the same seed, with one of two captions or three classes."""
    codes = [torch.randint(0, VOCABULARY, (SIDE, SIDE), generator=torch.Generator().manual_seed(s)) for s in seeds]
    names = CLASSES.names if condition == "class" else CAPTIONS
    captions = [names[seed % len(names)] for seed in seeds]
    keys = [str(seed) for seed in seeds]
    return {"codes": torch.stack(codes).short(), "caption": captions, "seed": torch.tensor(seeds), "key": keys}


@torch.no_grad()
@pytest.mark.parametrize("condition", ["words", "class", "free"])
def test_the_loss_is_the_stated_one_for_each_image_by_itself(condition: str) -> None:
    model = system(condition)
    task, given = CodesTask(model, CodesTraining(caption_dropout=0.5)), batch(condition, list(range(8)))
    losses, scalars = task.loss(given)
    dropped = GeneratorDraws(given["seed"]).uniform(DROP) < 0.5
    assert 0 < dropped.sum() < 8
    right = []
    for i in range(8):
        cond = model.embed(["" if dropped[i] else given["caption"][i]])
        codes, nats = given["codes"][i].flatten().long(), []
        for place in range(SIDE**2):
            chances = model.transformer(codes[None, :place], **cond)[0, -1].double().softmax(0)
            nats.append(-math.log(chances[codes[place]]))
            right.append(float(chances.argmax() == codes[place]))
        assert losses[i].item() == pytest.approx(sum(nats) / SIDE**2, rel=1e-4)
        alone = {key: value[i : i + 1] for key, value in given.items()}
        assert task.loss(alone)[0].item() == pytest.approx(losses[i].item(), rel=1e-4)
    assert scalars["accuracy"].item() == pytest.approx(sum(right) / len(right))


@torch.no_grad()
def test_validation_leaves_no_caption_out() -> None:
    task, given = CodesTask(system(), CodesTraining(caption_dropout=0.9)), batch("words", [1, 2, 3])
    found = task.validation(given)
    whole = CodesTask(system(), CodesTraining(caption_dropout=0.0))
    losses, scalars = whole.loss(given)
    assert found["nats_per_code"] == pytest.approx(losses.mean().item(), rel=1e-5)
    assert found["accuracy"] == pytest.approx(scalars["accuracy"].item())


@torch.no_grad()
def test_images_become_the_codes_of_the_first_stage() -> None:
    model, given = system(), toy_batch([3, 1])
    codes, cond = model.prepare(given, torch.tensor([False, True]))
    latents = model.autoencoder.moments(given["picture"]).movedim(1, -1)  # (B, h, w, C)
    entries = model.autoencoder.quantise.embedding.weight  # type: ignore[union-attr]
    distances = (latents[..., None, :] - entries).square().sum(-1)
    assert torch.equal(codes, distances.argmin(-1).flatten(1)) and len(codes.unique()) > 3
    wanted = model.embed([given["caption"][0], ""])
    assert all(torch.equal(cond[key], wanted[key]) for key in wanted) and set(cond) == {"context", "context_mask"}


@pytest.mark.parametrize(("condition", "floor"), [("free", math.log(4)), ("class", math.log(2))])
def test_it_learns_four_images_by_heart(condition: str, floor: float) -> None:
    """What is left to say is which of the images it is: of four, or with three classes of at most two."""
    torch.manual_seed(0)
    settings, given = config(condition), batch(condition, [0, 1, 2, 3])
    model = Autoregressive(settings, first_stage(), build_encoder(settings.text))
    task = CodesTask(model, CodesTraining(caption_dropout=0.0))
    optimizer, losses = torch.optim.Adam(model.parameters(), lr=1e-2), []
    for _ in range(100):
        loss = task.loss(given)[0].mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(math.log(VOCABULARY), abs=0.05), "at first every code is as likely"
    assert task.validation(given)["nats_per_code"] < floor / SIDE**2 + 0.05
    model.eval()
    prompts = given["caption"] if condition == "class" else list("abcd")
    painted = written(model, prompts, guidance=1.0, temperature=0.3).tolist()
    for codes, prompt in zip(painted, prompts, strict=True):
        learned = zip(given["codes"].tolist(), given["caption"], strict=True)
        assert codes in [one for one, caption in learned if condition == "free" or caption == prompt]


SETTINGS = TrainingConfig(
    steps=6, batch_size=4, learning_rate=1e-3, warmup=1, device="cpu", threads=1, workers=0, validate_every=3,
    sample_every=3, checkpoint_every=3, validation_images=4, log_every=1,
)  # fmt: skip


@pytest.mark.parametrize("condition", ["words", "class"])
def test_an_interrupted_run_ends_with_the_same_bits(condition: str, tmp_path: Path) -> None:
    def fresh() -> CodesTask:
        changes = {"transformer": dataclasses.replace(config(condition).transformer, dropout=0.1)}
        model = system(condition, **changes).train()
        return CodesTask(model, CodesTraining(prompts=("red",), caption_dropout=0.3))

    def at(positions: list[int]) -> dict[str, Any]:
        return batch(condition, positions)

    straight = train(fresh(), at, SETTINGS, tmp_path / "straight", at)
    train(fresh(), at, dataclasses.replace(SETTINGS, steps=3), tmp_path / "halted", at)
    resumed = train(fresh(), at, SETTINGS, tmp_path / "halted", at)
    names = [path.relative_to(straight) for path in sorted(straight.rglob("*.safetensors"))]
    assert len(names) == (3 if condition == "words" else 2)
    assert all((straight / name).read_bytes() == (resumed / name).read_bytes() for name in names)
    lines = [json.loads(line) for line in (tmp_path / "straight" / "metrics.jsonl").read_text().splitlines()]
    assert {"nats_per_code", "accuracy"} <= set(next(line for line in lines if line["kind"] == "validation"))
    assert list((tmp_path / "straight" / "samples").glob("*.png"))
    assert isinstance(diptych.load(tmp_path / "straight", "cpu"), Autoregressive)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ImageDataset]:
    path = str(write_images(tmp_path_factory.mktemp("data") / "pictures"))
    return {split: open_dataset(DataConfig(path=path, size=SIZE, split=split)) for split in ("train", "held-out")}


def test_codes_computed_once_are_those_computed_at_every_step(
    datasets: dict[str, ImageDataset], tmp_path: Path
) -> None:
    store = precompute(datasets, first_stage(), minilm(), tmp_path / "store", CPU, "codes")
    assert load_safetensors(store / "codes-train-000000.safetensors")["codes"].dtype == torch.int16
    model = system("minilm")
    kept_model = Autoregressive(model.config, first_stage(), EmbeddedTexts.load(minilm(), store), model.transformer)
    for split, dataset in datasets.items():
        positions = [0, 5, 1, 100]
        fly = make_batch(dataset, SampleStream(len(dataset), 7), positions)
        kept = PrecomputedLatents(store, split, 7, first_stage(), "codes")(positions)
        assert (kept["key"], kept["caption"]) == (fly["key"], fly["caption"]) and "latent" not in kept
        none = torch.zeros(4, dtype=torch.bool)
        (mine, words), (wanted, exact) = kept_model.prepare(kept, none), model.prepare(fly, none)
        assert torch.equal(mine, wanted)
        assert (words["context"] - exact["context"]).abs().max() < 2e-3, "half precision"
    with pytest.raises(UserError, match="made with another autoencoder"):
        PrecomputedLatents(store, "train", 0, first_stage(seed=4), "codes")
    with pytest.raises(UserError, match=r"latents-train-000000\.safetensors is missing"):
        PrecomputedLatents(store, "train", 0, first_stage())


def test_a_field_of_the_data_may_be_the_class(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "pictures")
    for i, path in enumerate(sorted(folder.glob("*.json"))):
        meta = json.loads(path.read_text())
        path.write_text(json.dumps({**meta, "style": CLASSES.names[i % 3], "number": i}))
    dataset = open_dataset(DataConfig(path=str(folder), size=SIZE, split="all", caption_field="style"))
    found = {dataset[i].key: dataset[i].captions for i in range(len(dataset))}
    assert all(captions == (CLASSES.names[int(Path(key).stem) % 3],) for key, captions in found.items())
    assert all(tuple(dataset.meta(i)["captions"]) == dataset[i].captions for i in range(len(dataset)))
    numbers = open_dataset(DataConfig(path=str(folder), size=SIZE, split="all", caption_field="number"))
    assert numbers[3].captions == (str(numbers[3].meta["number"]),)


@torch.no_grad()
def test_half_precision_does_not_change_the_codes() -> None:
    model, given = system(), toy_batch(list(range(16)))
    exact = model.encode(given["picture"])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model.encode(given["picture"]), exact)
        rounded = model.autoencoder.codes(given["picture"])
    assert not torch.equal(rounded, exact), "it would"
