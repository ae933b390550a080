"""Published networks have the published number of parameters, to the last one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diptych.networks.autoencoder import Autoencoder, AutoencoderConfig
from diptych.networks.unet import UNet, UNetConfig


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
def test_the_unet_has_the_published_size(config: UNetConfig, count: int) -> None:
    with torch.device("meta"):
        assert parameters(UNet(config)) == count


def test_the_autoencoder_has_the_published_size() -> None:
    with torch.device("meta"):
        assert parameters(Autoencoder(AutoencoderConfig())) == 83_653_863
