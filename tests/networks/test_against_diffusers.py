"""The same weights give the same numbers in diffusers' networks: every layer of the published shapes, made small."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from diptych.networks.autoencoder import Autoencoder, AutoencoderConfig
from diptych.networks.unet import UNet, UNetConfig
from diptych.pretrained.key_map import published
from diptych.pretrained.stable_diffusion.state_dict_keys import diffusers_autoencoder, diffusers_unet
from tests.networks.reference import noise, randomised, relative_error

diffusers = pytest.importorskip("diffusers")

ALLOWED = 1e-5
SILENT = 8  # width of a context that theirs must be given where ours has none; its layers are made to add nothing
SD1 = UNetConfig(channels=32, multipliers=(1, 2, 4, 4), context_width=24)
SD2 = UNetConfig(
    channels=32, multipliers=(1, 2, 2), attention_levels=(0, 1), heads=None, head_width=16, context_width=24,
    linear_projection=True, depth=2, blocks=1,
)  # fmt: skip
INPAINTING = UNetConfig(channels=32, multipliers=(1, 2), attention_levels=(0, 1), concat_channels=5, context_width=24)
PLAIN = UNetConfig(channels=32, multipliers=(1, 2), attention_levels=(1,), context_width=None)


def their_unet(config: UNetConfig, size: int = 16):
    """Their network of our config. Its `attention_head_dim` is the number of heads."""
    levels = range(len(config.multipliers))
    channels = [config.level_channels(level) for level in levels]
    down = ["CrossAttnDownBlock2D" if level in config.attention_levels else "DownBlock2D" for level in levels]
    up = ["CrossAttnUpBlock2D" if level in config.attention_levels else "UpBlock2D" for level in reversed(levels)]
    heads: Any = config.heads or tuple(width // (config.head_width or 1) for width in channels)
    return diffusers.UNet2DConditionModel(
        sample_size=size,
        in_channels=config.in_channels + config.concat_channels,
        out_channels=config.out_channels,
        down_block_types=tuple(down),
        up_block_types=tuple(up),
        block_out_channels=tuple(channels),
        layers_per_block=config.blocks,
        transformer_layers_per_block=config.depth,
        cross_attention_dim=config.context_width or SILENT,
        attention_head_dim=heads,
        use_linear_projection=config.linear_projection,
        norm_num_groups=config.norm_groups,
    ).eval()


def norms(module: nn.Module) -> dict[str, tuple[float, int]]:
    """(eps, groups) of every norm, by the name of its weight: an eps shows only where activations are tiny."""
    kinds = (nn.GroupNorm, nn.LayerNorm)
    norms = {name: part for name, part in module.named_modules() if isinstance(part, kinds)}
    return {f"{name}.weight": (part.eps, getattr(part, "num_groups", 1)) for name, part in norms.items()}


def pair(config: UNetConfig):
    """Our network with random weights, and theirs with the same; each key of theirs is filled from one of ours."""
    ours, theirs = randomised(UNet(config)), their_unet(config)
    state = ours.state_dict()
    left = theirs.load_state_dict(published(diffusers_unet(config), state), strict=config.context_width is not None)
    assert all(".attn2." in key or ".norm2." in key for key in left.missing_keys) and not left.unexpected_keys
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name in left.missing_keys and "to_out" in name:
                parameter.zero_()
    theirs_norms = norms(theirs)
    layout = diffusers_unet(config)
    assert all(theirs_norms[layout[name].key] == value for name, value in norms(ours).items())
    return ours, theirs


@pytest.mark.every(2)
@pytest.mark.parametrize("size", [(16, 16), (13, 10), (1, 3)], ids=["halved evenly", "odd", "tiny"])
@pytest.mark.parametrize("config", [SD1, SD2, PLAIN], ids=["sd1", "sd2", "no-context"])
@torch.no_grad()
def test_unet_matches_diffusers(config: UNetConfig, size: tuple[int, int]) -> None:
    ours, theirs = pair(config)
    x, time = noise(2, 4, *size), torch.tensor([981.0, 3.0])
    context = noise(2, 7, config.context_width or SILENT, seed=2)
    expected = theirs(x, time, context).sample
    got = ours(x, time) if config.context_width is None else ours(x, time, context=context)
    assert relative_error(got, expected) <= ALLOWED
    assert expected.std() > 0.1, "the comparison says nothing if the output is next to nothing"


@torch.no_grad()
def test_unet_depends_on_every_input() -> None:
    """Otherwise two networks that both ignore something would agree."""
    ours = randomised(UNet(SD1))
    x, time, context = noise(1, 4, 16, 16), torch.tensor([500.0]), noise(1, 7, 24, seed=2)
    usual = ours(x, time, context=context)
    assert relative_error(ours(x, time + 1, context=context), usual) > 1e-3
    assert relative_error(ours(x, time, context=context + 0.1), usual) > 1e-3
    assert relative_error(ours(x, time, context=context.flip(1)), usual) <= ALLOWED, "a context is a set"


@torch.no_grad()
def test_unet_ignores_masked_context() -> None:
    ours, theirs = pair(SD2)
    x, time, context = noise(2, 4, 16, 16), torch.tensor([500.0, 20.0]), noise(2, 7, 24, seed=2)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 3:] = False
    masked = ours(x, time, context=context, context_mask=mask)
    assert relative_error(masked, theirs(x, time, context, encoder_attention_mask=mask).sample) <= ALLOWED
    short = ours(x[1:], time[1:], context=context[1:, :3])
    assert relative_error(masked[1:], short) <= ALLOWED


@torch.no_grad()
def test_inpainting_unet_order_of_channels() -> None:
    ours, theirs = pair(INPAINTING)
    x, more, time, context = noise(2, 4, 8, 8), noise(2, 5, 8, 8, seed=3), torch.tensor([500.0, 20.0]), noise(2, 7, 24)
    expected = theirs(torch.cat([x, more], 1), time, context).sample
    assert relative_error(ours(x, time, context=context, concat=more), expected) <= ALLOWED


@torch.no_grad()
def test_unet_adds_pooled_text_to_the_time() -> None:
    config = PLAIN.override(["pooled_width=12"])
    ours = randomised(UNet(config))
    x, time, pooled = noise(2, 4, 8, 8), torch.tensor([500.0, 20.0]), noise(2, 12, seed=4)
    assert relative_error(ours(x, time, pooled=pooled), ours(x, time, pooled=pooled.flip(0))) > 1e-3
    plain = UNet(PLAIN).eval()
    plain.load_state_dict({k: v for k, v in ours.state_dict().items() if not k.startswith("pooled.")})
    for parameter in ours.pooled.parameters():
        parameter.zero_()
    assert torch.equal(ours(x, time, pooled=pooled), plain(x, time))


AUTOENCODERS = [
    AutoencoderConfig(channels=32, multipliers=(1, 2, 4, 4), latent_channels=4),
    AutoencoderConfig(channels=32, multipliers=(1, 3), latent_channels=6, blocks=1, norm_groups=8),
]


@pytest.mark.parametrize("config", AUTOENCODERS, ids=["kl-f8", "two-levels"])
@torch.no_grad()
def test_autoencoder_matches_diffusers(config: AutoencoderConfig) -> None:
    levels = len(config.multipliers)
    theirs = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=tuple(config.channels * m for m in config.multipliers),
        layers_per_block=config.blocks,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
    ).eval()
    ours = randomised(Autoencoder(config))
    state = ours.state_dict()
    layout = diffusers_autoencoder(config)
    theirs.load_state_dict(published(layout, state), strict=True)
    assert {layout[name].key: value for name, value in norms(ours).items()} == norms(theirs)

    images = noise(2, 3, 32, 48).clamp(-1, 1)
    expected = theirs.encode(images).latent_dist
    posterior = ours.encode(images)
    assert posterior.mean.shape == (2, config.latent_channels, 32 // config.factor, 48 // config.factor)
    assert relative_error(ours.moments(images), expected.parameters) <= ALLOWED
    assert relative_error(posterior.log_variance, expected.logvar) <= ALLOWED
    assert relative_error(posterior.kl(), expected.kl()) <= ALLOWED
    draw = noise(*posterior.mean.shape, seed=5)
    assert relative_error(posterior.sample(draw), expected.mean + expected.std * draw) <= ALLOWED
    assert relative_error(ours.decode(posterior.mean), theirs.decode(expected.mean).sample) <= ALLOWED
