"""Stable Diffusion 1.x at its full size, at random weights: one forward and one decode beside diffusers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.networks.autoencoder import Autoencoder, AutoencoderConfig
from diptych.networks.unet import UNet, UNetConfig
from diptych.pretrained.key_map import pieces
from diptych.pretrained.stable_diffusion.config_json import autoencoder_config, autoencoder_json, unet_config, unet_json
from diptych.pretrained.stable_diffusion.state_dict_keys import diffusers_autoencoder, diffusers_unet
from diptych.weights.lazy import LazyCheckpoint, fill
from tests.networks.reference import noise, randomised, relative_error
from tests.parity import within

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.slow

FAMILY, FILES = "Stable Diffusion 1.x, full size", "diffusers layout"


def parameters(network: Any) -> int:
    return sum(p.numel() for p in network.parameters())


def compare(what: str, ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 0.1, "the comparison says nothing if the output is next to nothing"
    within(FAMILY, FILES, f"{what}, relative", relative_error(ours, theirs), 1e-5)


@torch.no_grad()
def test_one_forward_of_the_unet() -> None:
    """Latents of 64 x 64, as of images of 512 pixels. Both networks hold the same tensors: 3.4 GB."""
    values = unet_json(UNetConfig(), 64)
    theirs: Any = randomised(diffusers.UNet2DConditionModel.from_config(values))
    config = unet_config(theirs.config, "config.json")
    assert config == UNetConfig() and parameters(theirs) == 859_520_964
    with torch.device("meta"):
        ours = UNet(config)
    fill(ours, pieces(diffusers_unet(config), LazyCheckpoint.of(theirs.state_dict(), "diffusers")), "diffusers")
    x, time, context = noise(1, 4, 64, 64), torch.tensor([981]), noise(1, 77, 768, seed=2)
    compare("U-Net forward at 64 x 64", ours.eval()(x, time, context=context), theirs(x, time, context).sample)


@torch.no_grad()
def test_one_decode_and_one_encode() -> None:
    """An image of 512 x 512."""
    values = autoencoder_json(AutoencoderConfig(), 0.18215, 512)
    theirs: Any = randomised(diffusers.AutoencoderKL.from_config(values))
    config = autoencoder_config(theirs.config, "config.json")
    assert config == AutoencoderConfig() and parameters(theirs) == 83_653_863
    with torch.device("meta"):
        ours = Autoencoder(config)
    fill(ours, pieces(diffusers_autoencoder(config), LazyCheckpoint.of(theirs.state_dict(), "diffusers")), "diffusers")
    latents = noise(1, 4, 64, 64)
    compare("decode to 512 x 512", ours.eval().decode(latents), theirs.decode(latents).sample)
    image = noise(1, 3, 256, 256, seed=3).clamp(-1, 1)
    compare("encode from 256 x 256", ours.moments(image), theirs.encode(image).latent_dist.parameters)
