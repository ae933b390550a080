"""Models that are told a class or nothing: names come from the data, rows from another model's words."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import diptych
from diptych.core.errors import UserError
from diptych.data import open_dataset
from diptych.data.dataset import DataConfig
from diptych.encoders.class_configs import ClassConfig
from diptych.models.latent_diffusion import LatentDiffusion
from diptych.recipes import get
from diptych.training.experiment import train
from diptych.training.experiment_config import LatentTraining, Recipe
from diptych.training.init_from import init_latent
from diptych.training.training_config import TrainingConfig
from tests.models.latents import config, system, write_images

CLASSES = ClassConfig(classes=2, null=2, names_from_captions=True)


def recipe(text: ClassConfig = CLASSES) -> Recipe:
    given = get("emoji-class")
    assert isinstance(given.system, LatentTraining)
    unet = dataclasses.replace(given.system.model.unet, classes=text.entries)
    model = dataclasses.replace(given.system.model, text=text, unet=unet)
    return dataclasses.replace(given, system=dataclasses.replace(given.system, model=model))


def test_the_captions_of_the_data_name_the_classes() -> None:
    system = recipe().system.with_class_names(lambda: ["dog", "cat", "dog"])
    assert isinstance(system, LatentTraining) and isinstance(system.model.text, ClassConfig)
    assert system.model.text.names == ("cat", "dog")
    again = recipe().system.with_class_names(lambda: ["cat", "dog"]).with_class_names(lambda: ["apple"])
    assert again == system, "those that have names keep them"
    with pytest.raises(UserError, match="the training data name 3 classes and the model has 2"):
        recipe().system.with_class_names(lambda: ["dog", "cat", "apple"])
    plain = get("ldm-cin256")
    assert plain.system.with_class_names(lambda: ["1"]) is plain.system


def test_the_emoji_recipes_fit_their_data() -> None:
    """Both kinds over the same images; only the first is guided."""
    classes, free = get("emoji-class"), get("emoji-free")
    assert classes.data == free.data and classes.data.caption_field == "concept"
    assert isinstance(classes.system, LatentTraining) and isinstance(free.system, LatentTraining)
    assert classes.system.precomputed == free.system.precomputed
    assert classes.system.model.guidable and not free.system.model.guidable


def test_a_class_starts_as_the_other_model_reads_its_name(tmp_path: Path) -> None:
    other = system("minilm")
    other.save(tmp_path / "other")
    text = dataclasses.replace(CLASSES, names=("cat", "red apple"))
    unet = dataclasses.replace(other.config.unet, classes=3, pooled_width=None)
    model = LatentDiffusion(dataclasses.replace(other.config, text=text, unet=unet), other.autoencoder, None)
    init_latent(model, str(tmp_path / "other"))
    read = other.text.encode(["cat", "red apple", ""]).pooled
    torch.testing.assert_close(model.unet.label.weight.data, read, rtol=2e-3, atol=2e-3)  # kept in half precision
    assert torch.equal(model.unet.conv_in.weight, other.unet.conv_in.weight)


def test_training_puts_the_names_into_the_model(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "pictures")
    for i, path in enumerate(sorted(folder.glob("*.json"))):
        path.write_text(json.dumps({**json.loads(path.read_text()), "concept": ("red", "blue")[i % 2]}))
    system("joint").save(tmp_path / "other")
    unet = dataclasses.replace(config().unet, classes=3, pooled_width=None)
    model = dataclasses.replace(config(), unet=unet, text=CLASSES)
    training = TrainingConfig(steps=2, batch_size=4, warmup=1, sample_every=0, validation_images=3, threads=1)
    given = Recipe(
        description="a toy",
        system=LatentTraining(model=model, autoencoder=str(tmp_path / "other")),
        data=DataConfig(path=str(folder), size=16, caption_field="concept"),
        training=dataclasses.replace(training, device="cpu"),
    )
    trained: Any = diptych.load(train(given, tmp_path / "run"), "cpu")
    assert trained.config.text.names == ("blue", "red")
    assert trained.text.encode(["red", "", "blue"]).label.tolist() == [1, 2, 0]
    with pytest.raises(UserError, match="'green' is no class of this model"):
        trained.generate("green")
    assert train(given, tmp_path / "run").is_dir(), "a run that goes on finds the same names"


def test_only_what_enough_examples_are_called_is_kept(tmp_path: Path) -> None:
    """Counted over both splits, so that both have the same classes."""
    folder = write_images(tmp_path / "pictures", count=10, held_out=3)
    for i, name in enumerate(["cat", "dog", "cat", "dog", "ant", "cat", "bee", "ant", "cat", "dog"]):
        path = folder / f"{i:02d}.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "concept": name}))

    def found(least: int) -> list[list[str]]:
        data = DataConfig(path=str(folder), size=16, caption_field="concept", least=least)
        train = open_dataset(data)
        return [sorted(one.meta(i)["captions"][0] for i in range(len(one))) for one in (train, train.split("held-out"))]

    assert found(1) == [["ant", "bee", "cat", "cat", "cat", "dog", "dog"], ["ant", "cat", "dog"]]
    assert found(3) == [["cat", "cat", "cat", "dog", "dog"], ["cat", "dog"]]
    with pytest.raises(UserError, match=r"DataConfig.least must be 1 where there is no caption_field"):
        DataConfig(least=2)
