"""The halves of a cut network: the full one is the network, and the shallow one agrees where nothing has changed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.networks.adm import AdmUNet, AdmUNetConfig
from diptych.networks.deep_cache import cut
from diptych.networks.efficient_unet import EfficientUNet, EfficientUNetConfig
from diptych.networks.feature_cache import PLACE, FeatureCache
from diptych.networks.unet import UNet, UNetConfig
from tests.networks.reference import noise, randomised, relative_error

SMALL: dict[str, Any] = {"in_channels": 3, "out_channels": 3, "channels": 8, "norm_groups": 4}
NETWORKS = {
    "unet": lambda: UNet(UNetConfig(**SMALL, multipliers=(1, 2, 2), blocks=2, heads=2, context_width=6)),
    "unet, a block a level": lambda: UNet(
        UNetConfig(**SMALL, multipliers=(1, 2), blocks=1, attention_levels=(1,), heads=2, context_width=6)
    ),
    "unet, one level": lambda: UNet(
        UNetConfig(**SMALL, multipliers=(1,), blocks=1, attention_levels=(0,), heads=2, context_width=6)
    ),
    "adm": lambda: AdmUNet(
        AdmUNetConfig(**SMALL, multipliers=(1, 2), blocks=2, attention_levels=(1,), head_width=8, context_width=6)
    ),
    "adm, a block a level": lambda: AdmUNet(
        AdmUNetConfig(**SMALL, multipliers=(1, 1), blocks=1, attention_levels=(), head_width=8, context_width=6)
    ),
    "efficient": lambda: EfficientUNet(
        EfficientUNetConfig(
            **SMALL,
            concat_channels=0,
            multipliers=(1, 2),
            blocks=(2, 1),
            self_attention_levels=(0,),
            cross_attention_levels=(1,),
            head_width=8,
            context_width=6,
            augmented=False,
        )
    ),
}


def inputs() -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    mask = torch.tensor([[True, True, True], [True, False, False]])
    return noise(2, 3, 8, 8), torch.tensor([900.0, 20.0]), {"context": noise(2, 3, 6, seed=2), "context_mask": mask}


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_the_halves_are_the_network(name: str) -> None:
    network = randomised(NETWORKS[name]()).eval()
    x, time, cond = inputs()
    expected = network(x, time, **cond)
    halves = cut(network)
    output, deep = halves.unpacked(halves.full(x, time, **cond), x)
    assert torch.equal(output, expected)
    assert relative_error(halves.shallow(x, time, deep, **cond), expected) < 1e-6
    later = halves.shallow(x + 1, time - 10, deep, **cond)
    assert relative_error(later, expected) > 1e-3, "what is outermost is computed anew"
    assert relative_error(later, network(x + 1, time - 10, **cond)) > 1e-4, "and what is deep is not"


@torch.no_grad()
def test_each_call_that_is_due_is_full_and_one_of_another_batch() -> None:
    network = randomised(NETWORKS["unet"]()).eval()
    cache, (x, time, cond) = FeatureCache(network, 2), inputs()
    half = {key: value[:1] for key, value in cond.items()}
    full = [torch.equal(cache(x + i, time, **cond), network(x + i, time, **cond)) for i in range(5)]
    assert full == [True, False, True, False, True]
    assert torch.equal(cache(x[:1], time[:1], **half), network(x[:1], time[:1], **half)), "another number of rows"
    assert not torch.equal(cache(x[:1] + 1, time[:1], **half), network(x[:1] + 1, time[:1], **half))
    assert list(cache.state_dict()) == [f"network.{key}" for key in network.state_dict()], "a cache has no weights"
    assert not any(PLACE in key for key in network.state_dict()) and copy.deepcopy(network) is not network
