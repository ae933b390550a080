"""Optimizers: what decays, how the learning rate moves, and state that goes through flat tensors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from diptych.core.errors import UserError
from diptych.training.optim import build_optimizer, load_optimizer_tensors, optimizer_tensors
from tests.training.toy import settings


def module() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(36, 2))


def step(net: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    net(torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("decayed", ["matrices", "all"])
def test_matrices_and_kernels_decay_and_the_rest_where_it_is_asked_for(decayed: str) -> None:
    net = module()
    optimizer = build_optimizer(net, settings(weight_decay=0.5, decayed=decayed))
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, p in net.named_parameters():
        assert decay[id(p)] == (0.5 if p.ndim >= 2 or decayed == "all" else 0.0), name


@pytest.mark.parametrize("name", ["adamw", "adam", "adafactor"])
def test_state_through_flat_tensors_goes_on_with_the_same_bits(name: str) -> None:
    config = settings(optimizer=name)
    straight = module()
    optimizer = build_optimizer(straight, config)
    for seed in range(3):
        step(straight, optimizer, seed)
    resumed = copy.deepcopy(straight)
    flat = {key: value.clone() for key, value in optimizer_tensors(optimizer, straight).items()}
    assert all("/" in key for key in flat)
    other = build_optimizer(resumed, config)
    load_optimizer_tensors(other, resumed, flat)
    for seed in range(3, 6):
        step(straight, optimizer, seed)
        step(resumed, other, seed)
    for (key, a), b in zip(straight.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), key


def test_state_of_another_model_is_refused_by_key() -> None:
    net = module()
    optimizer = build_optimizer(net, settings())
    with pytest.raises(UserError, match=r"'9\.weight/exp_avg'"):
        load_optimizer_tensors(optimizer, net, {"9.weight/exp_avg": torch.zeros(2)})


@pytest.mark.parametrize(("own", "other"), [("adamw", "adafactor"), ("adafactor", "adam")])
def test_state_of_another_optimizer_or_shape_is_refused(own: str, other: str) -> None:
    net, wide = module(), nn.Sequential(*module()[:3], nn.Linear(36, 3))
    each = ((net, own), (net, other), (wide, own))
    optimizer, theirs, wider = (build_optimizer(network, settings(optimizer=name)) for network, name in each)
    for one, network in ((theirs, net), (wider, wide)):
        step(network, one, 0)
        with pytest.raises(
            UserError, match=r"optimizer state of .* another optimizer or model: it has .*, not"
        ) as told:
            load_optimizer_tensors(optimizer, net, optimizer_tensors(one, network))
        assert "\n" not in str(told.value)


def test_a_model_without_trainable_parameters_is_refused() -> None:
    with pytest.raises(UserError, match="nothing to train"):
        build_optimizer(module().requires_grad_(False), settings())
