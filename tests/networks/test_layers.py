"""Layers against their formulas, written out plainly in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.core.errors import UserError
from diptych.networks.autoencoder import Autoencoder, AutoencoderConfig, Posterior
from diptych.networks.layers import Attention, norm, timestep_embedding
from diptych.networks.transformer import TextTransformer, TextTransformerConfig
from diptych.networks.unet import UNet, UNetConfig
from tests.networks.reference import noise, randomised, relative_error


@pytest.mark.parametrize("width", [8, 9])
def test_timestep_embedding_is_cosines_then_sines_of_falling_frequencies(width: int) -> None:
    half = width // 2
    got = timestep_embedding(torch.tensor([0.0, 3.0, 999.0]), width)
    for row, time in zip(got.tolist(), (0.0, 3.0, 999.0), strict=True):
        angles = [time * 10_000 ** (-i / half) for i in range(half)]
        assert row == pytest.approx([*map(math.cos, angles), *map(math.sin, angles), *[0.0] * (width % 2)], abs=1e-4)


def test_norm_takes_the_most_groups_that_divide_the_channels() -> None:
    assert [norm(channels).num_groups for channels in (320, 96, 48, 20, 7)] == [32, 32, 16, 4, 1]


def plain_attention(layer: Attention, x: Tensor, context: Tensor, seen: list[int]) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V for one image, head by head, over the tokens that are seen (LDM, section 3.3)."""
    q, k, v = layer.query(x), layer.key(context[seen]), layer.value(context[seen])  # (N, inner), (L, inner) twice
    width, heads = q.shape[1] // layer.heads, []
    for head in range(layer.heads):
        part = slice(head * width, (head + 1) * width)
        scores = q[:, part] @ k[:, part].T / math.sqrt(width)
        heads.append(scores.exp() / scores.exp().sum(1, keepdim=True) @ v[:, part])
    return layer.out(torch.cat(heads, 1))


@torch.no_grad()
def test_attention_is_the_formula_with_its_mask() -> None:
    layer = randomised(Attention(12, 10, heads=3, head_width=4)).double()
    x, context = noise(2, 5, 12).double(), noise(2, 6, 10, seed=2).double()
    mask = torch.tensor([[True] * 6, [True, False, True, True, False, False]])
    got = layer(x, context, mask)
    for i, seen in enumerate(([0, 1, 2, 3, 4, 5], [0, 2, 3])):
        assert torch.allclose(got[i], plain_attention(layer, x[i], context[i], seen), atol=1e-12)


def plain_text_transformer(model: TextTransformer, ids: list[int]) -> Tensor:
    """Rombach et al. 2022, appendix E.2, equations 18 to 23, for one text."""
    z = model.token.weight[ids] + model.position[: len(ids)]  # 18
    for block in model.blocks:
        x1 = F.layer_norm(z, z.shape[1:], block.norm1.weight, block.norm1.bias)  # 19
        x2 = plain_attention(block.attention, x1, x1, list(range(len(ids)))) + z  # 20
        x3 = F.layer_norm(x2, z.shape[1:], block.norm2.weight, block.norm2.bias)  # 21
        h = x3 @ block.mlp[0].weight.T + block.mlp[0].bias
        h = h * (1 + torch.erf(h / math.sqrt(2))) / 2
        z = h @ block.mlp[3].weight.T + block.mlp[3].bias + x2  # 22
    return F.layer_norm(z, z.shape[1:], model.norm.weight, model.norm.bias)  # 23


@torch.no_grad()
def test_text_transformer_is_equations_18_to_23_and_masks_padding() -> None:
    config = TextTransformerConfig(vocabulary=20, max_tokens=9, width=12, layers=2, heads=3, head_width=5)
    model = randomised(TextTransformer(config)).double()
    texts = [[2, 7, 19, 3], [2, 3]]
    ids, mask = torch.tensor([texts[0], [*texts[1], 0, 0]]), torch.tensor([[True] * 4, [True, True, False, False]])
    got = model(ids, mask)
    for i, text in enumerate(texts):
        assert torch.allclose(got[i, : len(text)], plain_text_transformer(model, text), atol=1e-12)


@torch.no_grad()
def test_unet_and_residual_block_are_zero_at_initialisation() -> None:
    """Zeroed last layers: training starts from the mean, not from random images (ADM)."""
    unet = UNet(UNetConfig(channels=32, multipliers=(1,), attention_levels=(), context_width=None))
    assert not unet(noise(1, 4, 8, 8), torch.tensor([3.0])).any()


@torch.no_grad()
def test_autoencoder_patches_and_factor() -> None:
    config = AutoencoderConfig(channels=16, multipliers=(1, 2), blocks=1, patch=2, norm_groups=4, latent_channels=3)
    model = randomised(Autoencoder(config))
    posterior = model.encode(noise(2, 3, 16, 24))
    assert config.factor == 4
    assert posterior.mean.shape == (2, 3, 4, 6)
    assert model.decode(posterior.mean).shape == (2, 3, 16, 24)


def test_posterior_is_a_gaussian() -> None:
    moments = torch.cat([torch.full((1, 1, 2, 2), 3.0), torch.full((1, 1, 2, 2), math.log(4.0))], dim=1)
    posterior = Posterior.from_moments(moments)
    assert torch.allclose(posterior.sample(torch.ones(1, 1, 2, 2)), torch.tensor(5.0))
    assert posterior.kl().tolist() == pytest.approx([4 * 0.5 * (9 + 4 - 1 - math.log(4.0))])
    assert not Posterior(torch.zeros(2, 3), torch.zeros(2, 3)).kl().any()
    wild = Posterior.from_moments(torch.tensor([0.0, 1e6])[None, :, None, None])
    assert torch.isfinite(wild.sample(torch.ones(1, 1, 1, 1))).all()


@torch.no_grad()
def test_unet_attention_levels() -> None:
    config = UNetConfig(channels=32, multipliers=(1, 2), attention_levels=(), context_width=12)
    keys = UNet(config).state_dict()
    assert not any(".transformer." in key for key in keys)
    assert any(key.startswith("middle.1.blocks.0.cross_attention") for key in keys)


@torch.no_grad()
def test_unet_bfloat16_autocast_changes_little() -> None:
    unet = randomised(UNet(UNetConfig(channels=32, multipliers=(1, 2), attention_levels=(1,), context_width=12)))
    x, time, context = noise(2, 4, 8, 8), torch.tensor([500.0, 3.0]), noise(2, 5, 12, seed=2)
    exact = unet(x, time, context=context)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = unet(x, time, context=context)
    assert relative_error(rounded.float(), exact) < 0.05


@pytest.mark.parametrize(
    ("config", "change", "says"),
    [
        (UNetConfig, {"channels": 0}, r"UNetConfig\.channels"),
        (UNetConfig, {"multipliers": []}, r"UNetConfig\.multipliers"),
        (UNetConfig, {"multipliers": [1, -2]}, r"UNetConfig\.multipliers"),
        (UNetConfig, {"heads": None}, r"UNetConfig\.heads"),
        (UNetConfig, {"heads": 8, "head_width": 64}, r"UNetConfig\.heads"),
        (UNetConfig, {"heads": 0}, r"UNetConfig\.heads"),
        (UNetConfig, {"heads": 7}, "divide the 320 channels"),
        (UNetConfig, {"attention_levels": [4]}, "attention_levels"),
        (UNetConfig, {"dropout": 1.0}, r"UNetConfig\.dropout"),
        (UNetConfig, {"context_width": 0}, r"UNetConfig\.context_width"),
        (AutoencoderConfig, {"latent_channels": 0}, "latent_channels"),
        (AutoencoderConfig, {"multipliers": []}, "multipliers"),
        (AutoencoderConfig, {"patch": -1}, "patch"),
        (TextTransformerConfig, {"heads": 0}, "heads"),
        (TextTransformerConfig, {"vocabulary": 3}, "vocabulary"),
    ],
)
def test_network_config_errors_name_the_field(config, change, says: str) -> None:
    with pytest.raises(UserError, match=says):
        config.from_dict(change)
