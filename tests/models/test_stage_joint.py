"""A stage whose text encoder is trained along (GLIDE): what it reads, learns, saves, and does among other stages."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import diptych
from diptych.cli.describe import describe
from diptych.encoders.configs import JointTransformerConfig
from diptych.encoders.joint import JointTransformer, train_tokenizer
from diptych.models.cascade import Cascade, assemble
from diptych.models.pixel_config import PixelDiffusionConfig
from diptych.models.pixel_diffusion import PixelDiffusion
from diptych.networks.adm import AdmUNet, AdmUNetConfig
from diptych.networks.transformer import TextTransformer, TextTransformerConfig
from diptych.training.tasks.diffusion import DiffusionTask, DiffusionTraining
from tests.models.latents import same_image
from tests.models.stages import CAPTIONS, SMALL, base, toy_batch
from tests.networks.reference import noise, randomised

TEXT = JointTransformerConfig(
    network=TextTransformerConfig(
        vocabulary=64, max_tokens=12, width=16, layers=1, heads=2, head_width=8, bias=True, padding=True
    ),
    padded=True,
    pooled="last",
)
NETWORK = AdmUNetConfig(
    channels=8,
    multipliers=(1, 2),
    blocks=1,
    attention_levels=(1,),
    head_width=8,
    norm_groups=4,
    out_channels=3,
    context_width=16,
    pooled_width=16,
    context_norm=False,
)


def config(size: int = SMALL, low_size: int | None = None) -> PixelDiffusionConfig:
    network = NETWORK if low_size is None else dataclasses.replace(NETWORK, concat_channels=3)
    return base(network=network, text=TEXT, null_text="empty", size=size, low_size=low_size)


def reader(seed: int = 3) -> JointTransformer:
    return randomised(JointTransformer(TEXT, train_tokenizer(CAPTIONS, TEXT.network.vocabulary)), seed)


def glide(it: PixelDiffusionConfig | None = None, seed: int = 2) -> PixelDiffusion:
    made = PixelDiffusion(it or config(), reader(seed))
    randomised(made.network, seed)
    return made.eval()


# What it reads


def test_padding_is_an_embedding_of_its_place() -> None:
    """Whatever the padded ids are; with nothing padded, it is the transformer without."""
    network = randomised(TextTransformer(TEXT.network), 1)
    ids, real = torch.randint(64, (2, 12)), torch.arange(12) < torch.tensor([[5], [12]])
    found = network(ids, real)
    other = torch.where(real, ids, (ids + 7) % 64)
    assert torch.equal(network(other, real), found)
    assert not torch.allclose(network(other), found)
    plain = TextTransformer(dataclasses.replace(TEXT.network, padding=False))
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if k != "padding"})
    torch.testing.assert_close(plain(ids[1:]), found[1:])
    assert network.padding is not None
    network.padding.data += 1
    assert not torch.allclose(network(ids, real)[0], found[0]), "real tokens read what is padded"


@pytest.mark.parametrize("padded", [True, False])
def test_the_last_token_stands_for_the_prompt(padded: bool) -> None:
    text = reader()
    text.config = dataclasses.replace(TEXT, padded=padded)
    embedding = text.encode(["red left", "a blue image, all blue"])
    last = [12, 12] if padded else embedding.mask.sum(1).tolist()
    for i in range(2):
        assert torch.equal(embedding.pooled[i], embedding.sequence[i, last[i] - 1])
    assert padded or last[0] < last[1]


def test_what_is_pooled_is_added_to_the_time() -> None:
    """As a bias of its second layer would be."""
    network, x, time, pooled = randomised(AdmUNet(NETWORK), 1), noise(1, 3, 8, 8), torch.tensor([300.0]), noise(1, 16)
    context = noise(1, 4, 16)
    found = network(x, time, context=context, pooled=pooled)
    network.time[2].bias.data += network.pooled(pooled)[0]
    torch.testing.assert_close(network(x, time, context=context), found)
    with pytest.raises(ValueError, match="pooled was given to a network that was built without"):
        AdmUNet(dataclasses.replace(NETWORK, pooled_width=None))(x, time, context=context, pooled=pooled)


# What it learns, saves, and does among others


def test_the_loss_of_the_stage_trains_its_reader() -> None:
    it = glide()
    task = DiffusionTask(it, DiffusionTraining(caption_dropout=0.0))
    loss, _ = task.loss(toy_batch([0, 1, 2, 3], SMALL))
    loss.mean().backward()
    assert it.joint_text is not None and set(it.joint_text.parameters()) < set(it.parameters())
    for name, parameter in it.joint_text.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_it_is_saved_with_its_reader_and_paints_the_same(tmp_path: Path) -> None:
    it = glide()
    it.save(tmp_path / "model")
    opened: Any = diptych.load(tmp_path / "model", "cpu")
    for prompt in CAPTIONS:
        assert same_image(opened.generate(prompt).images[0], it.generate(prompt).images[0])
    assert not same_image(*(it.generate(prompt).images[0] for prompt in CAPTIONS))
    counted = describe(tmp_path / "model")["networks"]
    assert counted == {
        "network": sum(p.numel() for p in it.network.parameters()),
        "text": sum(p.numel() for p in reader().parameters()),
    }


def test_each_stage_of_a_cascade_has_a_reader_of_its_own(tmp_path: Path) -> None:
    """Though their configs say the same."""
    stages = [glide(), glide(config(16, SMALL), seed=5)]
    expected = Cascade.of(stages).generate("red left", keep=True)
    small = stages[0].generate("red left")
    assert same_image(expected.stages[0][0], small.images[0])
    assert same_image(expected.images[0], stages[1].generate("red left", low=small.images[0]).images[0])
    for number, one in enumerate(stages):
        one.save(tmp_path / str(number))
    assemble([tmp_path / "0", tmp_path / "1"], tmp_path / "both")
    opened: Any = diptych.load(tmp_path / "both", "cpu")
    for options in ({}, {"one_at_a_time": True}):
        assert same_image(opened.generate("red left", **options).images[0], expected.images[0])
    assert len(describe(tmp_path / "both")["networks"]) == 4
