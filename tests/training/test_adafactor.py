"""Adafactor against the algorithm that optax publishes, written out in NumPy, and runs that PyTorch's began."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diptych.training.adafactor import Adafactor, factored_axes, moment_shapes
from diptych.training.optim import build_optimizer, load_optimizer_tensors, optimizer_tensors
from tests.training.toy import settings

SHAPES = {
    "kernel": (160, 130, 3, 3),
    "tall kernel": (128, 256, 1, 3),
    "matrix": (130, 200),
    "narrow": (64, 300),
    "few inputs": (256, 3, 3, 3),
    "bias": (160,),
}
LR = 1e-2


def written_out(x: np.ndarray, gradients: list[np.ndarray], weight_decay: float) -> np.ndarray:
    """optax.adafactor at its defaults (scale_by_factored_rms, clip_by_block_rms, scale_by_param_block_rms), float64."""
    order = np.argsort(x.shape, kind="stable")
    factored = x.ndim >= 2 and x.shape[order[-2]] >= 128
    v: Any = 0.0
    rows: Any = 0.0
    columns: Any = 0.0
    for t, g in enumerate(gradients, start=1):
        beta, square = 1 - t**-0.8, g**2 + 1e-30
        if factored:
            second, largest = order[-2:]
            rows = beta * rows + (1 - beta) * square.mean(largest, keepdims=True)
            columns = beta * columns + (1 - beta) * square.mean(second, keepdims=True)
            u = g * (rows / rows.mean(second, keepdims=True)) ** -0.5 * columns**-0.5
        else:
            v = beta * v + (1 - beta) * square
            u = g * v**-0.5
        u = u / max(1.0, float(np.sqrt(np.mean(u**2))))
        u = u * LR * max(1e-3, float(np.sqrt(np.mean(x**2))))
        x = x * (1 - LR * weight_decay) - u
    return x


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("name", SHAPES)
def test_updates_are_those_of_the_published_algorithm(name: str, weight_decay: float) -> None:
    rng, shape = np.random.default_rng(0), SHAPES[name]
    start = 0.05 * rng.standard_normal(shape) * (name != "bias")  # a bias of zeros still moves
    gradients = [rng.standard_normal(shape) * rng.uniform(0.1, 3, (*shape[:1], *(1 for _ in shape[1:]))) for _ in "123"]
    gradients[1].flat[0] = 300.0  # an update that is clipped
    parameter = nn.Parameter(torch.tensor(start, dtype=torch.float32))
    optimizer = Adafactor([parameter], lr=LR, weight_decay=weight_decay)
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient, dtype=torch.float32)
        optimizer.step()
    expected = written_out(start, gradients, weight_decay)
    moved = np.abs(expected - start).max()
    assert moved > 1e-6
    assert np.abs(parameter.detach().numpy() - expected).max() < 1e-4 * moved


def test_what_is_kept_of_each_shape() -> None:
    kept = {name: sum(s.numel() for s in moment_shapes(torch.Size(shape)).values()) for name, shape in SHAPES.items()}
    assert kept == {
        "kernel": 9 * (160 + 130),
        "tall kernel": 3 * (128 + 256),
        "matrix": 330,
        "narrow": 64 * 300,
        "few inputs": 256 * 27,
        "bias": 160,
    }
    assert factored_axes(torch.Size((3, 3, 512, 512))) == (2, 3), "wherever the two largest stand"


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.linear = nn.Conv2d(128, 130, 3, padding=1), nn.Linear(130, 200)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).mean((2, 3)))


def step(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    net(torch.randn(2, 128, 4, 4, generator=torch.Generator().manual_seed(seed))).square().sum().backward()
    optimizer.step()


def test_what_is_factored_goes_on_with_the_same_bits() -> None:
    config = settings(optimizer="adafactor", learning_rate=LR)
    straight, resumed = Two(), Two()
    optimizer = build_optimizer(straight, config)
    for seed in range(3):
        step(straight, optimizer, seed)
    resumed.load_state_dict(straight.state_dict())
    flat = {key: value.clone() for key, value in optimizer_tensors(optimizer, straight).items()}
    assert {"conv.weight/row", "conv.weight/column", "conv.bias/moment", "linear.weight/step"} <= flat.keys()
    other = build_optimizer(resumed, config)
    load_optimizer_tensors(other, resumed, flat)
    for seed in range(3, 5):
        step(straight, optimizer, seed)
        step(resumed, other, seed)
    for (key, a), b in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), key


def test_a_run_that_pytorchs_adafactor_began_goes_on() -> None:
    """A matrix and a bias as that would have moved them; a kernel by what the two factorings have in common."""
    theirs, ours = Two(), Two()
    before = torch.optim.Adafactor(theirs.parameters(), lr=LR, beta2_decay=-0.8, weight_decay=0.0)
    for seed in range(4):
        step(theirs, before, seed)
    ours.load_state_dict(theirs.state_dict())
    optimizer = build_optimizer(ours, settings(optimizer="adafactor", learning_rate=LR, weight_decay=0.0))
    flat = {key: value.clone() for key, value in optimizer_tensors(before, theirs).items()}
    load_optimizer_tensors(optimizer, ours, flat)
    start = {key: value.detach().clone() for key, value in theirs.named_parameters()}
    step(theirs, before, 9)
    step(ours, optimizer, 9)
    for key, expected in theirs.named_parameters():
        moved, wanted = ours.get_parameter(key).detach() - start[key], expected.detach() - start[key]
        if key == "conv.weight":  # which factors others of its dimensions
            assert torch.cosine_similarity(moved.flatten(), wanted.flatten(), dim=0) > 0.75
            assert moved.norm().item() == pytest.approx(wanted.norm().item(), rel=0.3)
        else:
            assert (moved - wanted).norm() < 1e-4 * wanted.norm(), key
