"""The Efficient U-Net, and the conditions of both U-Nets, on small random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.errors import UserError
from diptych.networks.efficient_unet import EfficientUNet, EfficientUNetConfig, PixelShuffle
from diptych.networks.residual import ResidualBlock
from diptych.networks.unet import UNet, UNetConfig
from diptych.recipes import get
from diptych.training.experiment_config import PixelTraining
from tests.networks.reference import noise, randomised

SMALL = EfficientUNetConfig(
    channels=8,
    multipliers=(1, 2),
    blocks=(1, 2),
    self_attention_levels=(1,),
    cross_attention_levels=(1,),
    head_width=8,
    context_width=12,
    pooled_width=10,
    norm_groups=4,
)
BY_LEVEL = SMALL.override(["skips=level"])
PLAIN = UNetConfig(
    in_channels=3,
    concat_channels=3,
    out_channels=3,
    channels=8,
    multipliers=(1, 2),
    blocks=1,
    attention_levels=(1,),
    feed_forward=0,
    heads=None,
    head_width=8,
    context_width=12,
    pooled_width=10,
    context_norm=True,
    augmented=True,
    norm_groups=4,
)
IMAGEN = {"heads": 2, "attention_width": 2, "text_pooling_heads": 3, "scale_shift": True, "skip_conv": True}
APPENDIX_F = EfficientUNetConfig.from_dict({**SMALL.to_dict(), **IMAGEN, "feed_forward": 0, "skips": "level"})
CONFIGS = {"block": SMALL, "level": BY_LEVEL, "appendix F": APPENDIX_F, "plain": PLAIN}
TIME = torch.tensor([900.0, 3.0])


def build(config: EfficientUNetConfig | UNetConfig) -> EfficientUNet | UNet:
    torch.manual_seed(0)
    return (EfficientUNet(config) if isinstance(config, EfficientUNetConfig) else UNet(config)).eval()


def condition(height: int = 8, width: int = 8) -> dict[str, Tensor]:
    return {
        "context": noise(2, 5, 12, seed=2),
        "context_mask": torch.tensor([[True] * 5, [True, True, False, False, True]]),
        "pooled": noise(2, 10, seed=3),
        "concat": noise(2, 3, height, width, seed=4),
        "level": torch.tensor([0.2, 0.7]),
    }


@pytest.fixture(params=CONFIGS)
def network(request: pytest.FixtureRequest) -> EfficientUNet | UNet:
    return randomised(build(CONFIGS[request.param]))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@torch.no_grad()
def test_unets_are_zero_at_initialisation(config: EfficientUNetConfig | UNetConfig) -> None:
    out = build(config)(noise(2, 3, 8, 8), TIME, **condition())
    assert out.shape == (2, 3, 8, 8)
    assert not out.any()


@torch.no_grad()
def test_unets_take_other_image_sizes(network: nn.Module) -> None:
    for height, width in ((4, 4), (8, 16), (20, 12)):
        out = network(noise(2, 3, height, width), TIME, **condition(height, width))
        assert out.shape == (2, 3, height, width)
        assert torch.isfinite(out).all()


@torch.no_grad()
def test_efficient_unet_refuses_sizes_that_it_cannot_halve() -> None:
    with pytest.raises(ValueError, match=r"8 x 6 cannot be halved 2 times"):
        build(SMALL)(noise(2, 3, 8, 6), TIME)
    for height, width in ((7, 8), (6, 6), (5, 3)):
        out = build(PLAIN)(noise(2, 3, height, width), TIME, **condition(height, width))
        assert out.shape == (2, 3, height, width)


@torch.no_grad()
def test_unets_conditions_change_their_own_image_only(network: nn.Module) -> None:
    x, cond = noise(2, 3, 8, 8), condition()
    before = network(x, TIME, **cond)
    others = {
        "context": noise(2, 5, 12, seed=12),
        "context_mask": torch.tensor([[True, False, True, True, True], [True] * 5]),
        "pooled": noise(2, 10, seed=13),
        "concat": noise(2, 3, 8, 8, seed=14),
        "level": torch.tensor([0.21, 0.71]),
    }
    changes = [(key, {**cond, key: torch.stack([cond[key][0], value[1]])}) for key, value in others.items()]
    for key, changed in changes:
        after = network(x, TIME, **changed)
        assert torch.equal(after[0], before[0]), f"{key} of image 1 reaches image 0"
        assert (after[1] - before[1]).abs().max() > 1e-4 * before[1].abs().max(), f"{key} is not read"
    assert not torch.allclose(network(x, TIME + 5, **cond), before, rtol=1e-4)


@torch.no_grad()
def test_unets_ignore_masked_tokens(network: nn.Module) -> None:
    x, cond = noise(2, 3, 8, 8), condition()
    hidden = ~cond["context_mask"]
    before = network(x, TIME, **cond)
    other = torch.where(hidden[..., None], 100 * noise(2, 5, 12, seed=20), cond["context"])
    assert torch.allclose(network(x, TIME, **{**cond, "context": other}), before, atol=1e-5)
    longer = {
        "context": torch.cat([cond["context"], noise(2, 3, 12, seed=21)], 1),
        "context_mask": F.pad(cond["context_mask"], (0, 3)),
    }
    assert torch.allclose(network(x, TIME, **{**cond, **longer}), before, atol=1e-5)


@torch.no_grad()
def test_unets_are_independent_of_the_batch(network: nn.Module) -> None:
    x, cond = noise(2, 3, 8, 8), condition()
    together = network(x, TIME, **cond)
    for i in range(2):
        alone = network(x[i : i + 1], TIME[i : i + 1], **{key: value[i : i + 1] for key, value in cond.items()})
        assert torch.allclose(alone[0], together[i], atol=1e-5)


@pytest.mark.parametrize(
    ("change", "key"),
    [("pooled_width=none", "pooled"), ("augmented=false", "level"), ("context_width=none", "context")],
)
@pytest.mark.parametrize("config", [SMALL, PLAIN], ids=["efficient", "plain"])
def test_unets_refuse_conditions_that_they_were_not_built_for(config, change: str, key: str) -> None:
    bare, field = build(config.override([change])), change.partition("=")[0]
    with pytest.raises(ValueError, match=rf"^{key} was given to a network that was built without: its {field} is"):
        bare(noise(2, 3, 8, 8), TIME, **condition())


def test_unets_gradients_reach_every_parameter(network: nn.Module) -> None:
    network(noise(2, 3, 8, 8), TIME, **condition()).square().mean().backward()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


def test_efficient_unet_first_training_steps_reach_every_parameter() -> None:
    """Zeroed layers stop the gradient of the layers behind them in the first steps only."""
    network = build(SMALL).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    target = noise(2, 3, 8, 8, seed=9)
    for _ in range(4):
        optimizer.zero_grad()
        (network(noise(2, 3, 8, 8), TIME, **condition()) - target).square().mean().backward()
        optimizer.step()
    silent = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


@torch.no_grad()
def test_efficient_unet_skips_are_scaled() -> None:
    """The half of a block's input of the skip connection is scaled; the half from the level below is not."""
    scaled, plain = (randomised(build(SMALL.override([f"skip_scale={scale}", "norm_groups=1"]))) for scale in (0.5, 1))
    x, cond = noise(2, 3, 8, 8), condition()
    assert not torch.allclose(scaled(x, TIME, **cond), plain(x, TIME, **cond), rtol=1e-3)

    seen: dict[float, list[Tensor]] = {0.5: [], 1.0: []}
    for network, scale in ((scaled, 0.5), (plain, 1.0)):
        deepest: Any = network.up[-1]
        deepest.blocks[0].register_forward_pre_hook(lambda _, inputs, to=seen[scale]: to.append(inputs[0]))
        network(x, TIME, **cond)
    ours, theirs = seen[0.5][0], seen[1.0][0]
    half = ours.shape[1] // 2
    assert torch.equal(ours[:, :half], theirs[:, :half]), "the half from the level below is not scaled"
    assert torch.allclose(ours[:, half:], 0.5 * theirs[:, half:])


@torch.no_grad()
@pytest.mark.parametrize("scale", [0.5, 1.0])
def test_efficient_unet_outer_skip_is_scaled(scale: float) -> None:
    """The last convolution reads the first one's output, scaled as every other skip is."""
    network = randomised(build(SMALL.override([f"skip_scale={scale}"])))
    first, last = [], []
    network.conv_in.register_forward_hook(lambda _, inputs, output: first.append(output))
    network.norm_out.register_forward_pre_hook(lambda _, inputs: last.append(inputs[0]))
    network(noise(2, 3, 8, 8), TIME, **condition())
    assert torch.equal(last[0][:, SMALL.channels :], scale * first[0])


@torch.no_grad()
def test_efficient_unet_convolves_at_half_size_and_below() -> None:
    """Halved before a level's blocks, doubled after them: at full size there is but the first and the last."""
    network, sizes = randomised(build(SMALL)), set[int]()
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d) and name not in ("conv_in", "conv_out", "shrink.0"):
            module.register_forward_pre_hook(lambda _, inputs: sizes.add(inputs[0].shape[-1]))
    network(noise(2, 3, 16, 16), TIME, **condition(16, 16))
    assert sizes == {8, 4}


def test_efficient_unet_skips_by_level_have_fewer_parameters() -> None:
    counts = [sum(p.numel() for p in build(config).parameters()) for config in (SMALL, BY_LEVEL)]
    assert counts[1] < counts[0]
    reads = [[BY_LEVEL.has_skip(level, block) for block in range(2)] for level in range(2)]
    assert reads == [[True, False], [False, False]]


@torch.no_grad()
def test_pixel_shuffle_starts_without_a_checkerboard() -> None:
    torch.manual_seed(0)
    layer = PixelShuffle(6, 5)
    out = layer(noise(2, 6, 3, 4))
    assert out.shape == (2, 5, 6, 8)
    assert torch.equal(out, F.interpolate(out[..., ::2, ::2], scale_factor=2.0, mode="nearest"))
    assert out.std() > 0.1
    assert not torch.equal(out[:, 0], out[:, 1])


@torch.no_grad()
def test_efficient_unet_blocks_of_appendix_f() -> None:
    shapes = {key: tuple(value.shape) for key, value in build(APPENDIX_F).state_dict().items()}
    for way, level, here in (("down", 0, 8), ("down", 1, 16), ("up", 1, 16)):
        block = f"{way}.{level}.blocks.0"
        assert shapes[f"{block}.time.weight"] == (2 * here, 32), "a scale and a shift"
        assert shapes[f"{block}.skip.weight"] == (here, here, 1, 1), "also where the channels stay"
    attention = "down.1.transformer.blocks.0"
    for kind, reads in (("self_attention", 16), ("cross_attention", 12)):
        assert shapes[f"{attention}.{kind}.key.weight"] == (32, reads), "twice as wide within"
        assert shapes[f"{attention}.{kind}.out.weight"] == (16, 32)
    assert not [
        key for key in build(SMALL).state_dict() if "text_pooling" in key or key == "down.0.blocks.0.skip.weight"
    ]


@torch.no_grad()
def test_residual_block_scale_shift() -> None:
    torch.manual_seed(0)
    block, x, embedding = ResidualBlock(6, 4, 5, scale_shift=True), noise(2, 6, 4, 4), noise(2, 5, seed=3)
    randomised(block)
    scale, shift = block.time(F.silu(embedding))[:, :, None, None].chunk(2, 1)  # type: ignore[misc]
    h = block.norm2(block.conv1(F.silu(block.norm1(x)))) * (1 + scale) + shift
    assert torch.allclose(block(x, embedding), block.skip(x) + block.conv2(F.silu(h)), atol=1e-6)


@torch.no_grad()
def test_unet_without_feed_forward() -> None:
    keys = [key for key in build(PLAIN).state_dict() if "feed_forward" in key or "norm3" in key]
    assert not keys
    assert any("feed_forward" in key for key in build(PLAIN.override(["feed_forward=2"])).state_dict())


@torch.no_grad()
def test_unets_context_norm_removes_the_scale_of_tokens(network: nn.Module) -> None:
    x, cond = noise(2, 3, 8, 8), condition()
    with torch.no_grad():
        before = network(x, TIME, **cond)
        louder = network(x, TIME, **{**cond, "context": 7 * cond["context"]})
    assert torch.allclose(louder, before, atol=1e-4)


@torch.no_grad()
def test_unet_without_context_norm() -> None:
    x, cond = noise(2, 3, 8, 8), condition()
    bare = randomised(build(PLAIN.override(["context_norm=false"])))
    assert "context_norm.weight" not in bare.state_dict()
    louder = bare(x, TIME, **{**cond, "context": 7 * cond["context"]})
    assert not torch.allclose(louder, bare(x, TIME, **cond), atol=1e-2)


@torch.no_grad()
def test_unets_embed_levels_in_thousandths(network: nn.Module) -> None:
    """Two towers with the same weights: level 0.25 has the embedding of time 250."""
    network.get_submodule("level").load_state_dict(network.get_submodule("time").state_dict())
    x = noise(1, 3, 8, 8)
    embed: Any = network.embed
    first = embed(x, torch.tensor([600.0]), level=torch.tensor([0.25]))
    second = embed(x, torch.tensor([250.0]), level=torch.tensor([0.6]))
    assert torch.allclose(first, second, atol=1e-5)


def stored(c: EfficientUNetConfig) -> dict[str, tuple[int, ...]]:
    """The names and shapes of the weights of a saved stage without transformers, written out."""
    wide, shapes = 4 * c.channels, dict[str, tuple[int, ...]]()

    def put(name: str, out: int, *rest: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, *rest), (out,)

    for tower in ("time", "level"):
        put(f"{tower}.0", wide, c.channels)
        put(f"{tower}.2", wide, wide)
    assert c.pooled_width is not None
    put("pooled.0", c.pooled_width)
    put("pooled.1", wide, c.pooled_width)
    put("conv_in", c.channels, c.in_channels + c.concat_channels, 3, 3)
    above = c.channels
    for level, (multiplier, count) in enumerate(zip(c.multipliers, c.blocks, strict=True)):
        here = c.channels * multiplier
        put(f"shrink.{level}", here, above, 3, 3)
        put(f"grow.{level}.conv", 4 * above, here, 1, 1)
        for way, index in ((way, index) for way in ("down", "up") for index in range(count)):
            inputs = 2 * here if way == "up" else here
            block = f"{way}.{level}.blocks.{index}"
            put(f"{block}.norm1", inputs)
            put(f"{block}.conv1", here, inputs, 3, 3)
            put(f"{block}.time", here, wide)
            put(f"{block}.norm2", here)
            put(f"{block}.conv2", here, here, 3, 3)
            if way == "up":
                put(f"{block}.skip", here, inputs, 1, 1)
        above = here
    put("norm_out", 2 * c.channels)
    put("conv_out", c.out_channels, 2 * c.channels, 3, 3)
    return shapes


@pytest.mark.parametrize("name", ["emoji-sr-128", "emoji-sr-512"])
def test_efficient_unet_state_dict_names_and_shapes(name: str) -> None:
    system = get(name).system
    assert isinstance(system, PixelTraining) and isinstance(system.model.network, EfficientUNetConfig)
    with torch.device("meta"):
        network = EfficientUNet(system.model.network)
    assert {key: tuple(value.shape) for key, value in network.state_dict().items()} == stored(system.model.network)


def test_unet_configs_of_older_files() -> None:
    new = ("kind", "feed_forward", "context_norm", "augmented")
    old = {key: value for key, value in UNetConfig().to_dict().items() if key not in new}
    assert UNetConfig.from_dict(old) == UNetConfig()
    before = {key: value for key, value in SMALL.to_dict().items() if key not in ("skips", *IMAGEN)}
    assert EfficientUNetConfig.from_dict(before) == SMALL


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"channels": 0}, r"\.channels must"),
        ({"multipliers": []}, r"\.multipliers must"),
        ({"multipliers": [1, 2, 4, 0]}, r"\.multipliers must"),
        ({"blocks": [2, 4, 8]}, r"\.blocks must have a value for each of the multipliers"),
        ({"blocks": [2, 4, 8, 0]}, r"\.blocks must be at least 1"),
        ({"head_width": 48}, r"\.head_width must divide the 1024 channels of level 3"),
        ({"head_width": 0}, r"\.head_width must"),
        ({"self_attention_levels": [4]}, r"\.self_attention_levels must"),
        ({"cross_attention_levels": [-1]}, r"\.cross_attention_levels must"),
        ({"cross_attention_levels": [], "context_width": 12}, r"\.cross_attention_levels must name a level"),
        ({"skip_scale": 0.0}, r"\.skip_scale must"),
        ({"skips": "none"}, r"\.skips must be one of block, level"),
        ({"dropout": 1.0}, r"\.dropout must"),
        ({"feed_forward": -1}, r"\.feed_forward must"),
        ({"pooled_width": 0}, r"\.pooled_width must"),
        ({"heads": 7}, r"\.heads must divide the 1024 channels of level 3"),
        ({"attention_width": 2}, r"\.attention_width must be 1 where heads is none"),
        ({"text_pooling_heads": 2}, r"\.text_pooling_heads must divide context_width, and be none without one"),
        ({"text_pooling_heads": 5, "context_width": 12}, r"\.text_pooling_heads must divide context_width"),
    ],
)
def test_efficient_unet_config_errors_name_the_field(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=rf"^EfficientUNetConfig{says}"):
        EfficientUNetConfig.from_dict(change)
