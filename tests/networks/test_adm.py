"""ADM's U-Net gives diffusers' numbers in the shapes of DeepFloyd IF, and minds what it was built for. (Of what OpenAI
published, tests/pretrained/test_guided_diffusion.py compares with the original module.)
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from diptych.cli.describe import describe
from diptych.core.errors import UserError
from diptych.networks.adm import AdmUNet, AdmUNetConfig
from diptych.networks.noisy_classifier import NoisyClassifier, NoisyClassifierConfig
from diptych.pretrained.adm_keys import diffusers_adm
from diptych.pretrained.key_map import pieces, published
from diptych.recipes import get
from diptych.training.experiment_config import PixelTraining
from diptych.weights.lazy import LazyCheckpoint, fill
from tests.networks.reference import noise, randomised, relative_error

WIDTH, TOKENS = 32, 7
IF: dict[str, Any] = {
    "channels": 16,
    "multipliers": (1, 2, 3),
    "blocks": 2,
    "attention_levels": (1, 2),
    "head_width": 8,
    "context_width": WIDTH,
    "context_projection": 64,
    "text_pooling_heads": 4,
    "time_width": 48,
    "activation": "gelu",
    "norm_groups": 8,
}
ENLARGING: dict[str, Any] = {
    **IF,
    "concat_channels": 3,
    "augmented": True,
    "self_attention": False,
    "preactivated": True,
    "residual_scale": 0.7071,
}
"""The shape that IF calls efficient."""
CONFIGS = {
    "I": AdmUNetConfig(**IF),
    "II": AdmUNetConfig(**{**ENLARGING, "blocks": (1, 2, 3), "attention_levels": (2,)}),
    "III": AdmUNetConfig(
        **{**ENLARGING, "multipliers": (1, 1, 2, 3), "blocks": (1, 2, 1, 2), "attention_levels": (3,)}
    ),
    "no projection": AdmUNetConfig(**{**IF, "context_projection": None, "activation": "silu", "time_width": None}),
    "both": AdmUNetConfig(**{**ENLARGING, "self_attention": True}),
}
CLASSES = AdmUNetConfig(
    channels=16, multipliers=(0.5, 1), blocks=1, attention_levels=(1,), head_width=8, classes=5, norm_groups=4
)
TIME, ENTRY = torch.tensor([981, 10]), torch.tensor([250, 999])


def theirs(config: AdmUNetConfig) -> dict[str, Any]:
    """The same shape as diffusers has it."""
    levels = range(len(config.multipliers))
    attends = [level in config.attention_levels for level in levels]
    efficient: dict[str, Any] = {
        "class_embed_type": "timestep",
        "only_cross_attention": not config.self_attention,
        "resnet_skip_time_act": True,
        "time_embedding_act_fn": config.activation,
        "resnet_out_scale_factor": 1 / config.residual_scale,
        "mid_block_scale_factor": 1 / config.residual_scale,
        "mid_block_only_cross_attention": not config.self_attention,
    }
    return {
        "in_channels": config.in_channels + config.concat_channels,
        "out_channels": config.out_channels,
        "block_out_channels": tuple(config.level_channels(level) for level in levels),
        "layers_per_block": config.blocks,
        "down_block_types": tuple(block_type("Down", attends[level]) for level in levels),
        "up_block_types": tuple(block_type("Up", attends[level]) for level in reversed(levels)),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "act_fn": config.activation,
        "attention_head_dim": config.head_width,
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": config.text_pooling_heads,
        "cross_attention_dim": config.context_projection or config.context_width,
        "cross_attention_norm": "group_norm",
        "encoder_hid_dim": config.context_width if config.context_projection else None,
        "encoder_hid_dim_type": "text_proj" if config.context_projection else None,
        "norm_num_groups": config.norm_groups,
        "resnet_time_scale_shift": "scale_shift",
        "time_embedding_dim": config.time_width,
        **(efficient if config.augmented else {}),
    }


def block_type(way: str, attends: bool) -> str:
    return f"SimpleCrossAttn{way}Block2D" if attends else f"Resnet{way}sampleBlock2D"


def condition(config: AdmUNetConfig, side: int = 16) -> dict[str, Tensor]:
    known = {
        "context": noise(2, TOKENS, WIDTH, seed=3) if config.context_width else None,
        "concat": noise(2, 3, side, side, seed=2) if config.concat_channels else None,
        "level": ENTRY.double() / 1000 if config.augmented else None,
        "label": torch.tensor([0, 4]) if config.classes else None,
    }
    return {key: value for key, value in known.items() if value is not None}


@pytest.mark.every(2)
@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_adm_matches_diffusers(name: str) -> None:
    diffusers = pytest.importorskip("diffusers")
    config = CONFIGS[name]
    reference = randomised(diffusers.UNet2DConditionModel(**theirs(config)))
    with torch.device("meta"):
        network = AdmUNet(config)
    layout, stored = diffusers_adm(network), reference.state_dict()
    fill(network.eval(), pieces(layout, LazyCheckpoint.of(stored, "diffusers")), "diffusers")
    x, cond = noise(2, 3, 16, 16), condition(config)
    extra = {"class_labels": ENTRY} if config.augmented else {}
    whole = torch.cat([x, cond["concat"]], 1) if "concat" in cond else x
    expected = reference(whole, TIME, cond["context"], **extra).sample
    assert relative_error(network(x, TIME.float(), **cond), expected) <= 1e-5
    assert expected.std() > 0.02
    back = published(layout, network.state_dict())
    assert back.keys() == stored.keys() and all(torch.equal(back[key], stored[key]) for key in back)


@pytest.mark.parametrize("kind", ["group", "layer"])
@pytest.mark.parametrize("self_attention", [True, False])
@torch.no_grad()
def test_adm_ignores_masked_padding(kind: str, self_attention: bool) -> None:
    """Neither to attention, nor to the norm of the text or its pooling: a text is read alike in every batch."""
    fields = {"context_norm_kind": kind, "self_attention": self_attention}
    network, x = randomised(AdmUNet(AdmUNetConfig.from_dict({**IF, "norm_groups": 1, **fields}))), noise(2, 3, 16, 16)
    context = noise(2, TOKENS, WIDTH, seed=3)
    longer = torch.cat([context, noise(2, 2, WIDTH, seed=8)], 1)
    mask = torch.arange(TOKENS + 2)[None].expand(2, -1) < TOKENS
    short, padded = network(x, TIME, context=context), network(x, TIME, context=longer, context_mask=mask)
    assert relative_error(padded, short) <= 1e-5
    assert relative_error(network(x, TIME, context=longer), short) > 1e-3
    everything = mask[:, :TOKENS]
    assert torch.equal(network(x, TIME, context=context, context_mask=everything), short)


@pytest.mark.parametrize("config", [CONFIGS["II"], CLASSES], ids=["text", "classes"])
def test_adm_gradients_and_conditions(config: AdmUNetConfig) -> None:
    network, cond = randomised(AdmUNet(config)), condition(config)
    x = noise(2, 3, 16, 16)
    network(x, TIME, **cond).square().mean().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent
    with torch.no_grad():
        before = network(x, TIME, **cond)
        for key, value in cond.items():
            other = network(x, TIME, **{**cond, key: value.flip(0)})
            assert (other - before).abs().max() > 1e-3, key
        assert (network(x, TIME.flip(0), **cond) - before).abs().max() > 1e-3


def test_adm_is_zero_at_initialisation() -> None:
    torch.manual_seed(0)
    assert not AdmUNet(CLASSES)(noise(2, 3, 8, 8), TIME, label=torch.tensor([0, 1])).any()


@torch.no_grad()
def test_adm_half_precision_keeps_the_time() -> None:
    """Whole network in bfloat16: times that bfloat16 could not tell apart still make a difference."""
    network, cond = randomised(AdmUNet(CLASSES)), condition(CLASSES)
    x = noise(2, 3, 8, 8)
    full = network(x, TIME, **cond)
    half = network.to(torch.bfloat16)(x.bfloat16(), TIME.float(), **cond)
    assert half.dtype == torch.bfloat16 and relative_error(half.float(), full) < 0.1
    network, close = network.float(), torch.tensor([981.0, 980.0])
    embedding = network.embed(x.bfloat16().float()[:1].expand(2, -1, -1, -1), close, label=torch.tensor([1, 1]))
    assert (embedding[0] - embedding[1]).abs().max() > 1e-3
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network(x, TIME, **cond)
    assert relative_error(mixed.float(), full) < 0.1


def test_adm_refuses_conditions_that_it_was_not_built_for() -> None:
    network, x = AdmUNet(CLASSES), noise(2, 3, 8, 8)
    label = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="context was given"):
        network(x, TIME, label=label, context=noise(2, 3, 4))
    with pytest.raises(ValueError, match="concat was given"):
        network(x, TIME, label=label, concat=x)
    with pytest.raises(ValueError, match="built for a label"):
        network(x, TIME)
    with pytest.raises(ValueError, match="9 x 8 cannot be halved 1 times"):
        network(noise(2, 3, 9, 8), TIME, label=label)
    with pytest.raises(ValueError, match="built for a context"):
        AdmUNet(AdmUNetConfig(**{**IF, "self_attention": False}))(noise(2, 3, 16, 16), TIME)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"multipliers": (0.3, 1)}, "multipliers"),
        ({"multipliers": ()}, "multipliers"),
        ({"blocks": (1, 2, 3)}, "blocks"),
        ({"head_width": 7}, "head_width"),
        ({"heads": 2}, "heads"),
        ({"attention_levels": (2,)}, "attention_levels"),
        ({"self_attention": False}, "self_attention"),
        ({"context_projection": 8}, "context_projection"),
        ({"context_width": 9, "text_pooling_heads": 2}, "text_pooling_heads"),
        ({"classes": 0}, "classes"),
    ],
)
def test_adm_config_errors_name_the_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError, match=rf"AdmUNetConfig\.{field} must"):
        AdmUNetConfig.from_dict({**CLASSES.to_dict(), **changes})


def test_adm_config_json_round_trip() -> None:
    for config in (*CONFIGS.values(), CLASSES):
        assert AdmUNetConfig.from_dict(config.to_dict()) == config


# The noisy classifier

ENCODER = AdmUNetConfig(channels=16, multipliers=(1, 2), blocks=1, attention_levels=(1,), head_width=8, norm_groups=4)


def classifier(pool: str = "attention") -> NoisyClassifier:
    size = 8 if pool == "attention" else None
    config = NoisyClassifierConfig.from_dict({"encoder": ENCODER.to_dict(), "classes": 5, "pool": pool, "size": size})
    return randomised(NoisyClassifier(config))


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
def test_noisy_classifier_has_a_gradient_for_the_image(pool: str) -> None:
    x = noise(2, 3, 8, 8).requires_grad_()
    logits = classifier(pool)(x, TIME)
    assert logits.shape == (2, 5)
    (gradient,) = torch.autograd.grad(logits.log_softmax(1)[:, 3].sum(), x)
    assert gradient.isfinite().all() and gradient.abs().flatten(1).max(1).values.min() > 1e-4
    alone = classifier(pool)(x[:1], TIME[:1])
    assert relative_error(alone.detach(), logits[:1].detach()) <= 1e-5


def test_noisy_classifier_image_size() -> None:
    with pytest.raises(ValueError, match="takes 8 x 8 images, not 16 x 16"):
        classifier()(noise(2, 3, 16, 16), TIME)
    assert classifier("adaptive")(noise(2, 3, 16, 12), TIME).shape == (2, 5)


@pytest.mark.parametrize(
    ("changes", "field"),
    [({"size": None}, "size"), ({"size": 9}, "size"), ({"pool": "spatial"}, "size"), ({"classes": 0}, "classes")],
)
def test_noisy_classifier_config_errors_name_the_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError, match=rf"NoisyClassifierConfig\.{field} must"):
        NoisyClassifierConfig.from_dict({"encoder": ENCODER.to_dict(), "size": 8, **changes})
    conditional = AdmUNetConfig.from_dict({**ENCODER.to_dict(), "classes": 3})
    with pytest.raises(UserError, match=r"NoisyClassifierConfig\.encoder must have no condition but the time"):
        NoisyClassifierConfig(encoder=conditional, size=8)


# Full size: the counts are the original module's, built with the flags of guided-diffusion's README

COUNTS = {
    "adm-64": 295_904_454,
    "adm-128": 421_529_606,
    "adm-256": 553_838_086,
    "adm-256-unconditional": 552_814_086,
    "adm-512": 558_997_638,
    "adm-64-256": 311_795_910,
    "adm-128-512": 308_835_270,
}
CLASSIFIERS = {64: 65_438_568, 128: 42_568_040, 256: 54_096_360, 512: 54_448_360}


@pytest.mark.parametrize("name", COUNTS)
def test_adm_recipes_have_the_published_size(name: str) -> None:
    assert describe(name)["networks"] == {"network": COUNTS[name]}
    system = get(name).system
    assert isinstance(system, PixelTraining) and name.endswith(
        f"{system.model.size}{'-unconditional' * ('un' in name)}"
    )


@pytest.mark.parametrize("size", CLASSIFIERS)
def test_noisy_classifiers_have_the_published_size(size: int) -> None:
    system = get(f"adm-{size}").system
    assert isinstance(system, PixelTraining) and isinstance(system.model.network, AdmUNetConfig)
    shape = system.model.network
    encoder = AdmUNetConfig(
        channels=128,
        multipliers=shape.multipliers,
        blocks=4 if size == 64 else 2,
        attention_levels=shape.attention_levels,
    )
    with torch.device("meta"):
        network = NoisyClassifier(NoisyClassifierConfig(encoder=encoder, size=size))
    assert sum(p.numel() for p in network.parameters()) == CLASSIFIERS[size]
