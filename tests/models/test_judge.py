"""The judge: what it learns, what its loss counts as wrong, and its files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from diptych.core.errors import UserError
from diptych.data import DataConfig, collate, open_dataset
from diptych.models.judge import Judge, JudgeConfig, load_judge
from diptych.models.word_features import WordFeatures
from diptych.training.tasks.contrastive import ContrastConfig, JudgeTrainable, augment, contrast
from tests.evaluation import toys


def batch_of(data: Path, **options) -> dict:
    dataset = open_dataset(DataConfig(path=str(data), size=16, **options))
    return collate([dataset[i] for i in range(len(dataset))], list(range(len(dataset))))


def test_it_learns_drawings_and_scenes_that_it_never_saw(trained: JudgeTrainable, toy_data: Path) -> None:
    found = trained.validation(batch_of(toy_data, split="held-out"))
    assert found["top5"] > 0.9  # chance is 5 in 20
    assert found["scenes"] > 0.8  # chance is 1 in 3, and 1 in 2 for one deaf to word order


def test_an_untrained_judge_knows_nothing(toy_data: Path) -> None:
    torch.manual_seed(0)
    blank = JudgeTrainable(toys.TRAINING, open_dataset(DataConfig(path=str(toy_data), size=16)), words=toys.words())
    assert blank.validation(batch_of(toy_data, split="all", kinds=("single",)))["top1"] < 0.3


def test_word_order_is_heard(judge: Judge) -> None:
    one, other = judge.captions(["a red disc left of a blue box", "a blue box left of a red disc"])
    assert float(one @ other) < 0.99


def test_other_sizes_are_resized(judge: Judge) -> None:
    small = toys.drawing("red disc", "plain")
    large = small.resize((64, 64), Image.Resampling.NEAREST)
    one, other = judge.encode_images([small])[0], judge.encode_images([large])[0]
    assert float(one @ other) > 0.95


def test_an_image_is_judged_the_same_alone_and_in_company(judge: Judge) -> None:
    images = [toys.drawing(c, "plain") for c in toys.CONCEPTS]
    assert torch.allclose(judge.encode_images(images)[3:4], judge.encode_images(images[3:4]), atol=1e-5)
    captions = ["a red disc", "a red disc left of a blue box", "box"]
    assert torch.allclose(judge.captions(captions)[2:], judge.captions(captions[2:]), atol=1e-5)


def test_the_loss_of_a_batch_by_hand() -> None:
    """Two styles of one concept in a batch are no wrong answers for one another; foils are, for their own image."""
    x = F.normalize(torch.randn(3, 8), dim=-1)
    w = F.normalize(torch.randn(3, 8), dim=-1)
    other, foil = F.normalize(torch.randn(1, 8), dim=-1), F.normalize(torch.randn(1, 8), dim=-1)
    same = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)
    foils = torch.zeros(3, 2, 8)
    foils[2, 0] = foil
    got = contrast(x, w, same, torch.tensor(5.0), other, torch.tensor([[True], [True], [False]]), foils)
    s, e = 5 * x @ w.T, 5 * x @ other.T

    def nll(right: torch.Tensor, *wrong: torch.Tensor) -> torch.Tensor:
        return torch.logsumexp(torch.stack([right, *wrong]), 0) - right

    first = (nll(s[0, 0], s[0, 2]) + nll(s[0, 0], s[2, 0])) / 2
    last = (nll(s[2, 2], s[2, 0], s[2, 1], e[2, 0], 5 * x[2] @ foil[0]) + nll(s[2, 2], s[0, 2], s[1, 2])) / 2
    assert torch.allclose(got[[0, 2]], torch.stack([first, last]), atol=1e-5)


def test_augmentation_goes_by_the_seed_and_spares_what_must_stay() -> None:
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    settings = [False] * 3, [True] * 3
    both = augment(images, [1, 2, 3], *settings, ContrastConfig())
    again = augment(images[1:2], [2], [False], [True], ContrastConfig())
    assert torch.equal(both[1:2], again)
    none = ContrastConfig(scale=0.0, shift=0.0, colour=0.0)
    assert torch.allclose(augment(images, [1, 2, 3], [False] * 3, [False] * 3, none), images, atol=1e-5)
    flipped = [augment(images[:1], [s], [False], [True], none) for s in range(20)]
    mirrored = sum(bool(torch.allclose(f, images[:1].flip(-1), atol=1e-5)) for f in flipped)
    assert 0 < mirrored < 20
    # A scene is never cut: a mark in its corner stays in the image.
    corner = -torch.ones(1, 3, 16, 16)
    corner[..., :3, :3] = 1
    plain = ContrastConfig(colour=0.0)
    assert all(augment(corner, [s], [True], [False], plain)[0, 0].max() > 0.5 for s in range(20))


def test_gradients_reach_every_parameter(toy_data: Path) -> None:
    dataset = open_dataset(DataConfig(path=str(toy_data), size=16))
    trainable = JudgeTrainable(toys.TRAINING, dataset, words=toys.words())
    losses, scalars = trainable.loss(collate([dataset[i] for i in range(len(dataset))], list(range(len(dataset)))))
    assert losses.shape == (len(dataset),)
    assert scalars["scale"] > 1
    losses.mean().backward()
    dead = [n for n, p in trainable.module.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert dead == []


def test_every_concept_is_remembered_and_a_checkpoint_holds_it(toy_data: Path) -> None:
    torch.manual_seed(0)
    dataset = open_dataset(DataConfig(path=str(toy_data), size=16))
    trainable = JudgeTrainable(toys.TRAINING, dataset, words=toys.words())
    batch = collate([dataset[0], dataset[3]], [5, 6])  # two concepts
    trainable.start(batch)
    before = trainable.module.state_dict()["bank"].clone()
    assert torch.allclose(before.norm(dim=1), torch.ones(len(toys.CONCEPTS)))
    trainable.module.eval()
    trainable.loss(batch)
    assert torch.equal(trainable.module.bank, before)  # looking on changes nothing
    trainable.module.train()
    trainable.loss(batch)
    changed = (trainable.module.bank != before).any(1)
    assert [c for c, moved in zip(trainable.concepts, changed, strict=True) if moved] == sorted(
        {str(trainable.meta[key]["concept"]) for key in batch["key"]}
    )


def test_a_saved_judge_judges_alike(judge: Judge, tmp_path: Path) -> None:
    judge.save(tmp_path)
    loaded = load_judge(tmp_path, toys.words())
    images = [toys.drawing(c, "framed") for c in toys.CONCEPTS]
    cosine = (judge.encode_images(images) * loaded.encode_images(images)).sum(1)
    assert float(cosine.min()) > 0.999  # bfloat16 weights
    assert loaded.fingerprint() == load_judge(tmp_path, toys.words()).fingerprint() != judge.fingerprint()


def test_a_missing_foreign_or_cut_judge_is_named(judge: Judge, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no judge in"):
        load_judge(tmp_path / "nowhere")
    judge.save(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="safetensors"):
        load_judge(tmp_path)
    (tmp_path / "config.json").write_text('{"kind": "latent"}')
    with pytest.raises(UserError, match="another kind"):
        load_judge(tmp_path)


def test_a_config_that_does_not_fit_is_named() -> None:
    with pytest.raises(UserError, match=r"JudgeConfig\.size"):
        JudgeConfig(size=50)


def test_words_are_read_once_and_memory_has_a_limit() -> None:
    encoder = toys.HashEncoder()
    features = WordFeatures(encoder)
    first, mask = features(["a red disc", "box", "box"])
    assert first.shape == (3, 3, 32)
    assert mask.tolist() == [[True] * 3, [True, False, False], [True, False, False]]
    features(["box", "a red disc"])
    assert encoder.read == 2
    full = WordFeatures(encoder, limit=0)
    assert torch.equal(full(["box"])[0], full(["box"])[0])
    assert encoder.read == 4
