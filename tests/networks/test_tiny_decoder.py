"""The tiny decoder: its shape, its cost against the autoencoder's, its receptive field, and clipping of outliers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from diptych.core.errors import UserError
from diptych.networks.autoencoder import Autoencoder, AutoencoderConfig
from diptych.networks.tiny_decoder import FAR, TinyDecoder, TinyDecoderConfig
from diptych.recipes import get
from diptych.recipes.emoji.latent import SMALL_AUTOENCODER
from diptych.training.tasks.distillation import DistillationConfig
from tests.networks.reference import noise, randomised, relative_error

SMALL = TinyDecoderConfig(latent_channels=3, channels=(4, 6, 8), blocks=1, patch=2)


def work(module: nn.Module, latents: torch.Tensor) -> int:
    """Floating-point operations of decoding."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.decode(latents)  # type: ignore[operator]
    return counter.get_total_flops()


def test_tiny_decoder_costs_a_tenth_of_the_autoencoder() -> None:
    ours = get("emoji-tiny-decoder").system
    assert isinstance(ours, DistillationConfig)
    for tiny, whole in ((ours.network, SMALL_AUTOENCODER), (TinyDecoderConfig(), AutoencoderConfig())):
        assert (tiny.factor, tiny.latent_channels) == (whole.factor, whole.latent_channels)
        latents = torch.empty(1, tiny.latent_channels, 8, 8, device="meta")
        with torch.device("meta"):
            assert 10 * work(TinyDecoder(tiny), latents) < work(Autoencoder(whole), latents)
    with torch.device("meta"):
        assert 2 * sum(p.numel() for p in TinyDecoder(ours.network).parameters()) < 300_000, "bytes in bfloat16"
        assert sum(p.numel() for p in TinyDecoder(TinyDecoderConfig()).parameters()) == 853_443


@torch.no_grad()
def test_tiny_decoder_is_local() -> None:
    decoder, latents = randomised(TinyDecoder(SMALL)), noise(2, 3, 20, 24)
    images = decoder.decode(latents)
    assert images.shape == (2, 3, 20 * SMALL.factor, 24 * SMALL.factor) and SMALL.factor == 8
    other = latents.clone()
    other[0, :, 10, 12] += 1
    changed = (decoder.decode(other) - images).abs().amax(1) > 0  # (2, H, W)
    assert not changed[1].any()
    rows, columns = changed[0].any(1).nonzero().flatten() // 8, changed[0].any(0).nonzero().flatten() // 8
    assert rows.min() < 10 < rows.max() and columns.min() < 12 < columns.max()
    assert min(rows.min() - 4, columns.min() - 6) >= 0 and rows.max() <= 16 and columns.max() <= 18, "no farther"
    assert relative_error(decoder.decode(latents[:1]), images[:1]) <= 1e-5, "images are independent"


@torch.no_grad()
def test_tiny_decoder_scales_and_clips_latents() -> None:
    decoder, latents = randomised(TinyDecoder(SMALL)), noise(1, 3, 4, 4)
    expected = decoder.decode(latents)
    decoder.scale.fill_(0.25)
    assert relative_error(decoder.decode(4 * latents), expected) <= 1e-5
    seen = []
    decoder.conv_in.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    decoder.decode(1e6 * latents)
    assert seen[0].abs().max() <= FAR


@pytest.mark.parametrize(("field", "value"), [("channels", ()), ("channels", (8, 0)), ("blocks", 0), ("patch", 0)])
def test_tiny_decoder_config_errors_name_the_field(field: str, value: object) -> None:
    with pytest.raises(UserError, match=f"TinyDecoderConfig.{field} must"):
        TinyDecoderConfig.from_dict({field: value})
