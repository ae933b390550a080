"""Stable Diffusion 1.x at its full size beside diffusers, the same random weights: minutes, and 8 GB of memory."""

from __future__ import annotations

import pytest
import torch

from diptych.networks.autoencoder import Autoencoder, AutoencoderConfig
from diptych.networks.unet import UNet, UNetConfig
from diptych.published.pieces import pieces
from diptych.published.sd_keys import diffusers_autoencoder, diffusers_unet
from diptych.weights.checkpoint import Checkpoint, fill
from tests.networks.reference import noise, randomised, relative_error
from tests.parity import within

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.slow

FAMILY, FILES, LIMIT = "Stable Diffusion 1.x", "full size", 1e-5


@torch.no_grad()
def test_a_forward_of_the_unet():
    theirs = randomised(diffusers.UNet2DConditionModel(cross_attention_dim=768, attention_head_dim=8))
    with torch.device("meta"):
        ours = UNet(UNetConfig())
    fill(ours, pieces(diffusers_unet(UNetConfig()), Checkpoint.of(theirs.state_dict(), "theirs")), "theirs")
    assert sum(parameter.numel() for parameter in ours.parameters()) == 859_520_964
    x, context = noise(1, 4, 64, 64), noise(1, 77, 768, seed=2)
    reference = theirs(x, 500, context).sample
    error = relative_error(ours.eval()(x, torch.tensor([500.0]), context=context), reference)
    within(FAMILY, FILES, "U-Net forward at 64 x 64 latents, relative", error, LIMIT)


@torch.no_grad()
def test_a_decode():
    theirs = randomised(
        diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        )
    )
    config = AutoencoderConfig()
    with torch.device("meta"):
        ours = Autoencoder(config)
    fill(ours, pieces(diffusers_autoencoder(config), Checkpoint.of(theirs.state_dict(), "theirs")), "theirs")
    assert sum(parameter.numel() for parameter in ours.parameters()) == 83_653_863
    latents = noise(1, 4, 32, 32)
    error = relative_error(ours.eval().decode(latents), theirs.decode(latents).sample)
    within(FAMILY, FILES, "decode to 256 x 256 pixels, relative", error, LIMIT)
