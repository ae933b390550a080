"""The judge's perceptual distance: what it measures, and that nothing moves the judge."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diptych.core.errors import UserError
from diptych.models.judge import Judge, JudgeConfig
from diptych.training.tasks.perceptual import JudgeDistance, perceptual_distance
from tests.evaluation import toys
from tests.networks.reference import noise

DEEP = JudgeConfig(size=16, widths=(8, 16, 24), blocks=(1, 2, 1), token_width=32, text_width=32, heads=2, embedding=32)


def deep_judge() -> Judge:
    """A judge of three stages, one of two blocks, whose batch norms do not leave things as they are."""
    torch.manual_seed(0)
    judge = Judge(DEEP, toys.words())
    for seed, layer in enumerate(judge.modules()):
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean, layer.running_var = (
                noise(layer.num_features, seed=seed),
                torch.rand(layer.num_features) + 0.5,
            )
    return judge


def pictures(seed: int, size: int = 16) -> Tensor:
    return noise(3, 3, size, size, seed=seed).tanh()


def test_it_is_the_formula_over_what_hooks_see() -> None:
    judge = deep_judge()
    distance, tower = JudgeDistance(judge), judge.eval().picture_tower
    seen: list[Tensor] = []
    ends = [tower.stem, tower.stages[0], tower.stages[2], tower.stages[3]]  # the last block of each stage
    for layer in ends:
        layer.register_forward_hook(lambda _, __, found: seen.append(found.detach().double()))
    first, second = pictures(1), pictures(2)
    first[0], second[0, :, :8] = 0, 0  # mid-grey, of which the stem sees nothing
    judge.embed_images(first)
    judge.embed_images(second)
    assert [found.shape[1:] for found in seen] == 2 * [(8, 8, 8), (8, 8, 8), (16, 4, 4), (24, 2, 2)]
    expected = torch.zeros(3, dtype=torch.float64)
    for one, other in zip(seen[:4], seen[4:], strict=True):
        for b in range(3):
            for i in range(one.shape[2]):
                for j in range(one.shape[3]):
                    u, v = one[b, :, i, j], other[b, :, i, j]
                    u, v = u / max(float(u.norm()), 0.5), v / max(float(v.norm()), 0.5)
                    expected[b] += ((u - v) ** 2).sum() / one[0, 0].numel()
    assert torch.allclose(distance(first, second).double(), expected, rtol=1e-5)


@torch.no_grad()
def test_an_image_is_no_distance_from_itself_and_as_far_there_as_back() -> None:
    distance = JudgeDistance(deep_judge())
    first, second = pictures(1), pictures(2)
    assert torch.equal(distance(first, first), torch.zeros(3))
    assert torch.equal(distance(first, second), distance(second, first))
    assert distance(first, second).min() > 0.1
    nearer = [distance(first + level * second, first).mean() for level in (0.01, 0.05, 0.2, 1.0)]
    assert nearer == sorted(nearer)


def test_training_what_holds_it_moves_nothing() -> None:
    judge = deep_judge().train()
    before = {name: tensor.clone() for name, tensor in judge.state_dict().items()}
    distance = JudgeDistance(judge)
    holder = nn.ModuleDict({"distance": distance}).train()
    assert holder.training and not any(module.training for module in distance.modules())
    first, second = pictures(1).requires_grad_(), pictures(2)
    values = distance(first, second)
    values.sum().backward()
    assert first.grad is not None and all(picture.abs().sum() > 0 for picture in first.grad)
    assert torch.equal(distance(first, second), values)  # no dropout
    assert not any(parameter.requires_grad for parameter in distance.parameters())
    kept = {name: before[f"picture_tower.{name}"] for name in distance.tower.state_dict()}
    assert all(torch.equal(tensor, kept[name]) for name, tensor in distance.tower.state_dict().items())
    # The judge itself is left as it was, and can go on training.
    assert judge.training and all(parameter.requires_grad for parameter in judge.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in judge.state_dict().items())


def test_mid_grey_has_a_gradient_of_the_usual_size() -> None:
    distance, second = JudgeDistance(deep_judge()), pictures(2)

    def gradient(first: Tensor) -> float:
        return torch.autograd.grad(distance(first.requires_grad_(), second).sum(), first)[0].norm().item()

    assert 0 < gradient(torch.zeros(3, 3, 16, 16)) < 100 * gradient(pictures(1))


@torch.no_grad()
def test_images_of_any_size_are_resized_as_the_judge_does() -> None:
    distance = JudgeDistance(deep_judge())
    resized = [nn.functional.interpolate(pictures(s, 40), (16, 16), mode="bilinear", antialias=True) for s in (1, 2)]
    assert torch.allclose(distance(pictures(1, 40), pictures(2, 40)), distance(*resized), rtol=1e-5)
    with pytest.raises(ValueError, match="of one shape"):
        distance(pictures(1, 40), pictures(2, 16))


def test_by_name_with_the_judge_that_ships_or_that_of_a_run(tmp_path: Path) -> None:
    shipped = perceptual_distance("judge")
    deep_judge().save(tmp_path / "model")
    mine = perceptual_distance("judge", str(tmp_path))
    assert shipped.name.startswith("judge features, ") and mine.name.startswith("judge features, ")
    assert shipped.name != mine.name == perceptual_distance("judge", str(tmp_path / "model")).name
    assert shipped(pictures(1), pictures(2)).shape == (3,)


def test_what_cannot_be_had_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown perceptual distance 'ssim': choose one of judge, lpips"):
        perceptual_distance("ssim")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"needs the weights of VGG16.*timm/vgg16\.tv_in1k"):
        perceptual_distance("lpips")
    with pytest.raises(UserError, match="no VGG16 at"):
        perceptual_distance("lpips", str(tmp_path / "vgg16.pth"))
    with pytest.raises(UserError, match="no judge in"):
        perceptual_distance("judge", str(tmp_path))
