"""The moving average, against the formula written out in float64."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diptych.training.ema import EMA


def model() -> nn.Sequential:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    module[2].requires_grad_(False)
    return module


@pytest.mark.parametrize("warmup", [True, False])
def test_the_average_follows_the_formula(warmup: bool) -> None:
    module = model()
    ema = EMA(module, 0.9, warmup)
    expected = module[0].weight.detach().double()
    for s in range(30):
        with torch.no_grad():
            module[0].weight.add_(torch.randn(4, 3))
        decay = min(0.9, (1 + s) / (10 + s)) if warmup else 0.9
        expected = decay * expected + (1 - decay) * module[0].weight.detach().double()
        ema.update(s)
    torch.testing.assert_close(ema.state_dict()["0.weight"].double(), expected, rtol=1e-5, atol=1e-6)


def test_buffers_and_frozen_parameters_are_the_modules_own() -> None:
    module = model()
    ema = EMA(module, 0.9)
    module(torch.randn(8, 3))  # moves the running mean
    nn.init.constant_(module[2].weight, 7)
    state = ema.state_dict()
    assert state.keys() == module.state_dict().keys()
    assert torch.equal(state["1.running_mean"], module[1].running_mean)
    assert state["1.running_mean"].abs().sum() > 0
    assert (state["2.weight"] == 7).all()


def test_swapped_in_gives_the_average_and_then_the_weights_back_even_after_an_error() -> None:
    module = model()
    ema = EMA(module, 0.5, warmup=False)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(1)
    ema.update(0)
    own = {key: value.clone() for key, value in module.state_dict().items()}
    average = {key: value.clone() for key, value in ema.state_dict().items()}
    assert not torch.equal(own["0.weight"], average["0.weight"])
    with pytest.raises(RuntimeError), ema.swapped_in():
        assert all(torch.equal(value, average[key]) for key, value in module.state_dict().items())
        raise RuntimeError
    assert all(torch.equal(value, own[key]) for key, value in module.state_dict().items())


def test_a_saved_average_comes_back_and_tied_weights_stay_tied() -> None:
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[1].weight = module[0].weight
    ema = EMA(module, 0.9)
    with torch.no_grad():
        module[0].weight.add_(1)
    ema.update(5)
    saved = {key: value.clone() for key, value in ema.state_dict().items()}
    assert torch.equal(saved["0.weight"], saved["1.weight"])
    twin = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    twin[1].weight = twin[0].weight
    other = EMA(twin, 0.9)
    other.load_state_dict(saved)
    assert all(torch.equal(other.state_dict()[key], value) for key, value in saved.items())
