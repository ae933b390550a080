"""LPIPS by its formula, on a VGG16 whose maps can be written down. The original package is met in tests/published."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from diptych.networks.lpips import Lpips, feature_distance
from tests.networks.reference import noise

STAGES = (2, 2, 3, 3, 3)
"""Convolutions of each."""


def passing(bias: np.ndarray) -> Lpips:
    """Each convolution hands red, green and blue on and adds its row of `bias` (13, 3); other channels are silent."""
    module = Lpips().double()
    convolutions = [layer for layer in module.vgg16.modules() if isinstance(layer, nn.Conv2d)]
    for layer, row in zip(convolutions, bias, strict=True):
        layer.weight.zero_()
        layer.bias.zero_()
        layer.weight[range(3), range(3), 1, 1] = 1.0
        layer.bias[:3] = torch.from_numpy(row)
    for seed, weight in enumerate(module.heads.parameters()):
        weight.copy_(noise(*weight.shape, seed=seed).abs())
    return module


def maps_by_hand(image: np.ndarray, bias: np.ndarray) -> list[np.ndarray]:
    """The three channels (3, h, w) at the end of each stage."""
    x = (image - np.array([-0.030, -0.088, -0.188])[:, None, None]) / np.array([0.458, 0.448, 0.450])[:, None, None]
    rows, maps = iter(bias), []
    for stage, convolutions in enumerate(STAGES):
        if stage > 0:
            height, width = x.shape[1] // 2, x.shape[2] // 2
            cells = [
                [x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max((1, 2)) for j in range(width)] for i in range(height)
            ]
            x = np.array(cells).transpose(2, 0, 1)
        for _ in range(convolutions):
            x = np.maximum(x + next(rows)[:, None, None], 0)
        maps.append(x)
    return maps


def distance_by_hand(first: np.ndarray, second: np.ndarray, bias: np.ndarray, heads: list[np.ndarray]) -> float:
    total = 0.0
    for one, other, head in zip(maps_by_hand(first, bias), maps_by_hand(second, bias), heads, strict=True):
        cells = []
        for i, j in np.ndindex(*one.shape[1:]):
            u, v = one[:, i, j], other[:, i, j]
            u, v = u / (np.sqrt(u @ u) + 1e-10), v / (np.sqrt(v @ v) + 1e-10)
            cells.append(float(head @ (u - v) ** 2))
        total += sum(cells) / len(cells)
    return total


@torch.no_grad()
def test_lpips_is_equation_1_written_out() -> None:
    """Biases differ from convolution to convolution, so that a map taken one layer off would show."""
    bias = np.random.default_rng(0).uniform(-0.3, 0.2, (sum(STAGES), 3))
    bias[:2] = -0.1
    module = passing(bias)
    first, second = (noise(3, 3, 20, 36, seed=seed).tanh().double() for seed in (1, 2))
    second[2] = -1  # dark: all features of the first stage are zero
    heads = [weight[0, :3].numpy() for weight in module.heads.parameters()]
    expected = [
        distance_by_hand(one, other, bias, heads) for one, other in zip(first.numpy(), second.numpy(), strict=True)
    ]
    assert not maps_by_hand(second[2].numpy(), bias)[0].any()
    got = module(first, second)
    assert got.shape == (3,) and min(expected) > 0
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-9)
    assert torch.equal(module(second, first), got)
    assert torch.equal(module(first, first), torch.zeros(3, dtype=torch.float64))


def test_lpips_gradient_without_features() -> None:
    features = torch.zeros(1, 4, 2, 2, requires_grad=True)
    feature_distance(features, torch.ones(1, 4, 2, 2), floor=0.5).sum().backward()
    assert features.grad is not None
    assert torch.allclose(features.grad, torch.full((1, 4, 2, 2), -2 * 0.5 / 0.5))  # -2 v / floor, where v = 1 / 2


def test_feature_distance_floor() -> None:
    long, short = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1), torch.tensor([0.03, 0.04]).view(1, 2, 1, 1)
    assert torch.allclose(feature_distance(long, short).sum(), torch.tensor(0.0), atol=1e-12)
    assert torch.allclose(feature_distance(long, short, floor=0.5).sum(), torch.tensor((1 - 0.05 / 0.5) ** 2))


def test_lpips_is_frozen_with_gradients_for_images() -> None:
    module = Lpips()
    assert not any(parameter.requires_grad for parameter in module.train().parameters())
    first, second = noise(2, 3, 16, 16, seed=1).requires_grad_(), noise(2, 3, 16, 16, seed=2)
    module(first, second).sum().backward()
    assert first.grad is not None and all(image.abs().sum() > 0 for image in first.grad)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(first.bfloat16(), second.bfloat16()).dtype == torch.float32


def test_lpips_has_the_published_size() -> None:
    with torch.device("meta"):
        module = Lpips()
    assert all(parameter.is_meta for parameter in module.parameters())
    counts = [sum(parameter.numel() for parameter in part.parameters()) for part in (module.vgg16, module.heads)]
    assert counts == [14_714_688, 64 + 128 + 256 + 512 + 512]
    assert len(module.vgg16.features) == 30  # torchvision's has one more, the last pooling


@pytest.mark.parametrize("shapes", [((2, 3, 16, 16), (1, 3, 16, 16)), ((1, 1, 16, 16),) * 2, ((1, 3, 15, 16),) * 2])
def test_lpips_refuses_images_that_do_not_fit(shapes: tuple[tuple[int, ...], ...]) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match="images"):
        Lpips()(*map(torch.empty, shapes))
