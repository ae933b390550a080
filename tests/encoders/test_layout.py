"""Layouts as prompts: what they mean, what is refused, and a model that reads them, trained, kept and gone on with."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import diptych
from diptych.cli.describe import describe
from diptych.core.errors import UserError
from diptych.encoders.class_configs import LayoutConfig
from diptych.encoders.layout import Box, LayoutTransformer, class_names, corner_features, parse_layout
from diptych.models.latent_diffusion import LatentDiffusion
from diptych.networks.transformer import TextTransformerConfig
from diptych.recipes import get
from diptych.training import experiment as run
from diptych.training.experiment_config import Recipe
from tests.models.latents import SIZE, arrays, autoencoder, config, same_image
from tests.networks.reference import randomised

NINE = TextTransformerConfig(vocabulary=32, max_tokens=9)
CLASSES = ("dog", "red house", "tree")
LAYOUT = "dog 0 0 0.5 0.5; red house 0.2 0.1 1 1"


def reading(joined: bool = False, boxes: int = 3, **changes: Any) -> LayoutConfig:
    length = boxes if joined else 3 * boxes
    network = TextTransformerConfig(vocabulary=32, max_tokens=max(3, length), width=16, layers=1, heads=2, head_width=8)
    values = {"network": network, "classes": CLASSES, "boxes": boxes, "grid": 5, "shared": False, "padded": False}
    return LayoutConfig(**{**values, "joined": joined, **changes})


def reader(**changes: Any) -> LayoutTransformer:
    return randomised(LayoutTransformer(reading(**changes)), seed=3).eval()


def test_a_layout_is_read_as_it_is_written() -> None:
    boxes = parse_layout(" dog 0 0.25 .5 1;\n red   house 0.1 0.2 0.3 4e-1 \n")
    assert boxes == [Box("dog", 0, 0.25, 0.5, 1), Box("red house", 0.1, 0.2, 0.3, 0.4)]
    assert parse_layout("; ".join(map(str, boxes))) == boxes
    assert parse_layout(" \n ;") == []
    assert parse_layout("keycap 8 0 0 1 1")[0].name == "keycap 8"
    assert class_names([LAYOUT, "", "ant 0 0 1 1; dog 0 0 1 1"]) == ("ant", "dog", "red house")


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("dog", "cannot read the box 'dog': write it as"),
        ("dog 0 0 1", "cannot read the box 'dog 0 0 1'"),
        ("dog 0 0 1 nan", "cannot read"),
        ("0 0 1 1", "cannot read"),
        ("dog 10 20 64 64", "fractions of its width and height from 0 to 1, not pixels"),
        ("dog -0.1 0 1 1", "leaves the image"),
        ("dog 0.5 0 0.2 1", "is empty: its order is left, top, right, bottom"),
        ("dog 0.5 0 0.5 1", "is empty"),
        ("red hose 0 0 1 1", "no box of this model can hold 'red hose': choose such as red house"),
        ("zzz 0 0 1 1", "choose such as dog, red house, tree"),
        ("; ".join(["dog 0 0 1 1"] * 4), "a layout of 4 boxes is too long: this model reads 3 at most"),
    ],
)
def test_a_layout_that_cannot_be_meant_is_refused(layout: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        reader().encode([layout])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"boxes": 0, "network": NINE}, "boxes must be at least 1"),
        ({"boxes": 4, "network": NINE}, "must be 12 or 14 for 4 boxes, not 9"),
        ({"grid": 6}, r"vocabulary \(32\) is too small for 36 corners"),
        ({"classes": ("dog", "Dog")}, "classes must name each class once"),
    ],
)
def test_a_config_that_cannot_be_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        reading(**changes)


def test_classes_without_room_and_a_model_without_classes_are_refused() -> None:
    with pytest.raises(UserError, match=r"name 7 classes, and .* has room for 6"):
        LayoutTransformer(reading(classes=()), [f"thing {n}" for n in range(7)])
    with pytest.raises(UserError, match="learned no classes yet"):
        LayoutTransformer(reading(classes=())).encode(["dog 0 0 1 1"])


def test_a_box_is_its_class_and_its_corners_on_the_grid_the_largest_first() -> None:
    # On a grid of 5, 0.5 is place 2, 0.2 is 1 (0.8 rounded), 0.1 is 0 (0.4 rounded); classes come behind 25 corners.
    assert reader().tokens(LAYOUT) == [(25 + 1, 0 * 5 + 1, 4 * 5 + 4), (25 + 0, 0, 2 * 5 + 2)]


def test_the_published_tokens() -> None:
    published = LayoutConfig(classes=CLASSES)
    small = dataclasses.replace(published.network, width=8, layers=1, heads=1, head_width=8)
    model = LayoutTransformer(dataclasses.replace(published, network=small))
    seen = []
    model.network.register_forward_pre_hook(lambda module, given: seen.append(given))
    embedding = model.encode(["tree 0 0.5 1 1", ""])
    ids, mask = seen[0]
    # 90 x 90 places; a box that is not there is the last token; the whole image's corners stand at the end.
    assert ids.shape == (2, 92) and mask.all() and embedding.mask.all()
    assert ids[0, :3].tolist() == [2, 45 * 90, 90 * 90 - 1]
    assert set(ids[0, 3:90].tolist()) == set(ids[1, :90].tolist()) == {8191}
    assert ids[:, 90:].tolist() == [[0, 8099]] * 2


@pytest.mark.parametrize("joined", [False, True])
def test_neither_the_order_of_boxes_nor_the_neighbours_change_a_reading(joined: bool) -> None:
    model = reader(joined=joined)
    there = model.encode([LAYOUT, "; ".join(reversed(LAYOUT.split("; "))), "dog 0 0 1 1", ""])
    alone = model.encode(["dog 0 0 1 1"])
    assert torch.equal(there.sequence[0], there.sequence[1])
    assert there.mask.sum(1).tolist() == [2 * (1 if joined else 3)] * 2 + [1 if joined else 3] * 2
    length = alone.sequence.shape[1]
    torch.testing.assert_close(there.sequence[2, :length], alone.sequence[0])
    torch.testing.assert_close(there.pooled[2], alone.pooled[0])
    held = there.sequence[0, : 2 if joined else 6 : 1 if joined else 3]  # what stands for the classes of two boxes
    torch.testing.assert_close(there.pooled[0], held.mean(0))


def test_a_joined_box_is_the_sum_of_its_tokens() -> None:
    model = reader(joined=True)
    x = model.network.token(torch.tensor(model.tokens(LAYOUT))).sum(1) + model.network.position[:2]
    for block in model.network.blocks:
        x = block(x[None], None)[0]
    torch.testing.assert_close(model.encode([LAYOUT]).sequence[0], model.network.norm(x))


def test_classes_begin_as_what_their_names_meant() -> None:
    model = LayoutTransformer(reading())
    z = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    z = (z - z.mean(1, keepdim=True)) / z.std(1, keepdim=True, correction=0)
    features = 0.4 * torch.cat([z, -z]) + torch.arange(16.0)
    model.init_classes(features)
    torch.nn.init.zeros_(model.network.position)
    boxes = model.encode(["dog 0 0 1 1; red house 0 0 .5 1; tree 0 0 .5 .5", ""])
    torch.testing.assert_close(boxes.sequence[0, ::3], features[:3], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(boxes.pooled[1], features[3], atol=1e-4, rtol=1e-4)


def test_near_corners_are_more_alike_than_far_ones() -> None:
    waves = corner_features(8, 64)
    assert waves.shape == (64, 64) and corner_features(3, 10).shape == (9, 10)
    alike = torch.nn.functional.cosine_similarity(waves[:1], waves)
    assert alike[0] > alike[1] > alike[2] > alike[63]
    torch.testing.assert_close(alike[1], alike[8])  # as far to the right as down


def painting() -> LatentDiffusion:
    model = LatentDiffusion(config(reading()), autoencoder(), reader())
    randomised(model.unet, seed=2)
    model.scale.fill_(0.5)
    return model.eval()


def test_a_model_of_layouts_paints_is_guided_and_comes_back_from_its_folder(tmp_path: Path) -> None:
    model = painting()
    painted = model.generate([LAYOUT, "dog 0 0 0.5 0.5"], seeds=[1, 1])
    again = model.generate("; ".join(reversed(LAYOUT.split("; "))), seeds=[1])
    assert same_image(painted.images[0], again.images[0])
    assert not same_image(*painted.images)  # the boxes matter
    unguided = model.generate(LAYOUT, seeds=[1], guidance=1.0)
    assert np.abs(arrays(unguided) - arrays(again)).max() > 1
    model.save(tmp_path / "model")
    opened: Any = diptych.load(tmp_path / "model")
    assert same_image(opened.generate(LAYOUT, seeds=[1]).images[0], again.images[0])
    (tmp_path / "model" / "config.json").write_text(
        json.dumps({**json.loads((tmp_path / "model" / "config.json").read_text()), "text": reading().to_dict()})
    )
    assert json.loads((tmp_path / "model" / "text" / "classes.json").read_text()) == list(CLASSES)


def write_scenes(folder: Path, count: int = 8) -> Path:
    """Grey images with a box each; the last is held out and holds what no other does."""
    folder.mkdir()
    for i in range(count):
        Image.new("RGB", (SIZE, SIZE), (20 * i, 90, 90)).save(folder / f"{i}.png")
        last = i == count - 1
        objects = [{"concept": "tree" if last else CLASSES[i % 2], "box": [0.0, 0.0, 0.5 + 0.05 * i, 1.0]}]
        meta = {"kind": "scene", "caption": "a thing", "split": "held-out" if last else "train", "objects": objects}
        (folder / f"{i}.json").write_text(json.dumps(meta))
    return folder


def recipe(tmp_path: Path, *changes: str) -> Recipe:
    first = tmp_path / "first"
    if not first.exists():
        from diptych.training.tasks.autoencoding import FirstStage, FirstStageConfig
        from tests.models.latents import AUTOENCODER

        FirstStage(FirstStageConfig(network=AUTOENCODER), autoencoder()).save(first)
    tiny = get("emoji-layout").override(
        [
            f"system.model={json.dumps(config(reading(classes=())).to_dict())}",
            f"system.autoencoder={first}",
            "system.init_from=none",
            "system.precomputed=none",
            "system.diffusion.prompts=dog 0 0 1 1",
            f"data.path={tmp_path / 'scenes'}",
            f"data.size={SIZE}",
            "training.batch_size=4",
            "training.validation_images=4",
            "training.validate_every=2",
            "training.sample_every=4",
            "training.checkpoint_every=1",
            "training.device=cpu",
            "training.steps=4",
            "training.cooldown=0",
            *changes,
        ]
    )
    return tiny


@pytest.mark.parametrize("precomputed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_training_learns_the_classes_from_the_data_and_goes_on_where_it_stopped(
    tmp_path: Path, precomputed: bool
) -> None:
    write_scenes(tmp_path / "scenes")
    changes = []
    if precomputed:
        run.precompute(recipe(tmp_path), tmp_path / "store")
        changes = [f"system.precomputed={tmp_path / 'store'}"]
    run.train(recipe(tmp_path, *changes, "training.steps=2"), tmp_path / "parts")
    parts: Any = diptych.load(run.train(recipe(tmp_path, *changes), tmp_path / "parts"))
    whole: Any = diptych.load(run.train(recipe(tmp_path, *changes), tmp_path / "whole"))
    assert parts.text.classes == CLASSES  # also what the held-out image alone holds
    trained = whole.state_dict()
    assert any(key.startswith("joint_text.") for key in trained)
    for key, tensor in parts.state_dict().items():
        assert torch.equal(tensor, trained[key]), key
    begun = LayoutTransformer(reading())
    torch.manual_seed(0)
    assert not torch.equal(begun.network.token.weight, whole.text.network.token.weight)


def test_a_box_moves_what_is_learned_and_an_unseen_class_gets_no_gradient() -> None:
    model = painting().train()
    embedding = model.text.encode(["dog 0 0 1 1"])
    embedding.sequence.square().mean().backward()
    gradient = model.text.network.token.weight.grad.abs().sum(1)
    touched = gradient.nonzero().flatten().tolist()
    assert touched == [0, 24, 25]  # both corners of the whole, and the class


def test_counts_of_the_published_models() -> None:
    found = describe("ldm-layout-openimages")["networks"]
    width, layers, vocabulary, length = 512, 16, 8192, 92
    attention, mlp, norms = 4 * width**2 + width, 8 * width**2 + 5 * width, 4 * width
    assert found["text"] == (vocabulary + length) * width + layers * (attention + mlp + norms) + 2 * width
    logits = vocabulary * width + vocabulary  # of the published transformer, which has them and does not use them
    assert 305e6 < found["unet"] + found["text"] + logits < 306.5e6  # the paper's table 15: 306 M


def test_the_small_recipe_begins_from_the_default() -> None:
    small, default = get("emoji-layout").system, get("emoji-latent").system
    assert small.model.unet == default.model.unet and small.model.autoencoder == default.model.autoencoder
    assert small.init_from == small.autoencoder == "latent"
    for prompt in small.diffusion.prompts:
        assert 1 <= len(parse_layout(prompt)) <= small.model.text.boxes
