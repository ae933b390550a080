"""Published networks have the published number of parameters, to the last one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diptych.networks.autoencoder import AutoencoderConfig
from diptych.networks.unet import UNet, UNetConfig
from diptych.recipes import get
from diptych.training.experiment_config import PixelTraining


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (UNetConfig(), 859_520_964),
        (UNetConfig(concat_channels=5), 859_535_364),  # inpainting: 5 more input channels of a 3x3 convolution
        (UNetConfig(context_width=1280), 872_300_484),  # LDM's text-to-image model
    ],
    ids=["sd1", "sd1-inpainting", "ldm-text"],
)
def test_unet_has_the_published_size(config: UNetConfig, count: int) -> None:
    with torch.device("meta"):
        assert parameters(config.build()) == count


def test_autoencoder_has_the_published_size() -> None:
    with torch.device("meta"):
        assert parameters(AutoencoderConfig().build()) == 83_653_863


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("imagen-base", 2_305_382_403),
        ("imagen-sr-256", 566_374_147),
        ("imagen-sr-1024", 549_590_787),
        ("sr3", 560_719_107),
        ("sr3-imagenet", 617_118_467),
        ("ddpm", 36_534_275),
    ],
)
def test_pixel_diffusion_keeps_its_size(name: str, count: int) -> None:
    """None is published to the last digit (test_recipes_imagen.py tells how near they are); saved weights must fit."""
    system = get(name).system
    assert isinstance(system, PixelTraining)
    with torch.device("meta"):
        assert parameters(system.model.network.build()) == count


def test_unet_without_additions_has_the_published_keys() -> None:
    fields = {"feed_forward": 4, "context_norm": False, "augmented": False, "pooled_width": None}
    with torch.device("meta"):
        keys, plain = UNet(UNetConfig()).state_dict(), UNet(UNetConfig.from_dict(fields)).state_dict()
        more = UNet(UNetConfig(pooled_width=768, context_norm=True, augmented=True)).state_dict()
    assert keys.keys() == plain.keys()
    assert {key.split(".")[0] for key in more.keys() - keys.keys()} == {"pooled", "context_norm", "level"}
