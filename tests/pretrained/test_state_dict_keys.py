"""Where our tensors lie in diffusers' and CompVis's layouts, and our configs from what those say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from diptych.core.errors import UserError
from diptych.networks.autoencoder import Autoencoder, AutoencoderConfig
from diptych.networks.unet import UNet, UNetConfig
from diptych.pretrained.key_map import Layout, pieces, published
from diptych.pretrained.stable_diffusion.config_json import (
    autoencoder_config,
    autoencoder_json,
    scaling_factor,
    unet_config,
    unet_json,
)
from diptych.pretrained.stable_diffusion.infer_shapes import autoencoder_of_shapes, unet_of_shapes
from diptych.pretrained.stable_diffusion.state_dict_keys import (
    FIRST_STAGE,
    UNET,
    averaged,
    compvis_autoencoder,
    compvis_unet,
    diffusers_autoencoder,
    diffusers_unet,
)
from diptych.weights.lazy import LazyCheckpoint
from tests.networks.reference import randomised

diffusers = pytest.importorskip("diffusers")

HEADS: dict[str, Any] = {"heads": None, "head_width": 64, "linear_projection": True}
UNETS = {
    "sd1": UNetConfig(),
    "inpainting": UNetConfig(concat_channels=5),
    "sd2": UNetConfig(context_width=1024, **HEADS),
    "small": UNetConfig(channels=32, multipliers=(1, 2), attention_levels=(0, 1), context_width=24, blocks=1),
    "deep": UNetConfig(channels=64, multipliers=(1, 2, 3), attention_levels=(1,), context_width=24, depth=3, blocks=3),
}
AUTOENCODERS = {
    "kl-f8": AutoencoderConfig(),
    "small": AutoencoderConfig(channels=32, multipliers=(1, 3), latent_channels=6, blocks=1),
    "without attention": AutoencoderConfig(channels=32, multipliers=(1, 2, 2), attention=False),
}


def shapes(config: UNetConfig | AutoencoderConfig) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        network = UNet(config) if isinstance(config, UNetConfig) else Autoencoder(config)
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def published_shapes(layout: Layout, ours: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {layout[name].key: shape + (1,) * layout[name].ones for name, shape in ours.items()}


@pytest.mark.parametrize("config", UNETS.values(), ids=UNETS)
def test_a_unet_is_known_by_its_shapes_and_by_its_json(config: UNetConfig) -> None:
    ours = shapes(config)
    for layout in (compvis_unet(config), diffusers_unet(config)):
        assert layout.keys() == ours.keys()
        assert len({piece.key for piece in layout.values()}) == len(ours), "no two of ours lie in one place"
    assert unet_of_shapes(published_shapes(compvis_unet(config), ours), "a file") == config
    assert unet_config(unet_json(config, 64), "config.json") == config


@pytest.mark.parametrize("config", AUTOENCODERS.values(), ids=AUTOENCODERS)
def test_an_autoencoder_is_known_by_its_shapes_and_by_its_json(config: AutoencoderConfig) -> None:
    ours = shapes(config)
    for layout in (compvis_autoencoder(config), diffusers_autoencoder(config), diffusers_autoencoder(config, True)):
        assert layout.keys() == ours.keys() and len({piece.key for piece in layout.values()}) == len(ours)
    assert autoencoder_of_shapes(published_shapes(compvis_autoencoder(config), ours), "a file") == config
    values = autoencoder_json(config, 0.3, 64)
    assert autoencoder_config(values, "config.json") == config and scaling_factor(values, "config.json") == 0.3


@pytest.mark.parametrize("name", ["small", "deep"])
def test_diffusers_finds_every_tensor_of_a_unet_where_we_put_it(name: str) -> None:
    """Its own functions for single files take our CompVis names to its names, and to the same tensors as ours do."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    config = UNETS[name]
    state = randomised(UNet(config)).state_dict()
    theirs = convert_ldm_unet_checkpoint(published(compvis_unet(config), state), unet_json(config, 16))
    expected = published(diffusers_unet(config), state)
    assert theirs.keys() == expected.keys() and all(torch.equal(theirs[key], expected[key]) for key in theirs)


@pytest.mark.parametrize("name", ["small", "without attention"])
def test_diffusers_finds_every_tensor_of_an_autoencoder_where_we_put_it(name: str) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    config = AUTOENCODERS[name]
    state = randomised(Autoencoder(config)).state_dict()
    file = published(compvis_autoencoder(config), state)
    theirs = convert_ldm_vae_checkpoint(dict(file), autoencoder_json(config, 1.0, 16))
    expected = published(diffusers_autoencoder(config), state)
    assert theirs.keys() == expected.keys() and all(torch.equal(theirs[key], expected[key]) for key in theirs)
    again = pieces(compvis_autoencoder(config), LazyCheckpoint.of(file, "a file"))
    assert all(torch.equal(again[key], state[key]) for key in state)


def test_the_full_size_has_the_published_names() -> None:
    """Written down from the published files: SD 1.x, and its averages."""
    unet, autoencoder = compvis_unet(UNetConfig()), compvis_autoencoder(AutoencoderConfig())
    assert len(unet) == 686 and len(autoencoder) == 248
    keys = {piece.key for piece in unet.values()}
    for key in (
        "time_embed.2.bias",
        "input_blocks.3.0.op.weight",
        "input_blocks.4.0.skip_connection.weight",
        "input_blocks.11.0.in_layers.0.weight",
        "middle_block.1.transformer_blocks.0.attn2.to_k.weight",
        "output_blocks.2.1.conv.weight",
        "output_blocks.5.2.conv.weight",
        "output_blocks.11.1.proj_out.weight",
        "out.2.weight",
    ):
        assert UNET + key in keys
    first = {piece.key for piece in autoencoder.values()}
    for key in ("decoder.up.3.upsample.conv.weight", "encoder.down.2.downsample.conv.bias", "quant_conv.weight"):
        assert FIRST_STAGE + key in first
    assert FIRST_STAGE + "decoder.up.0.upsample.conv.weight" not in first
    assert autoencoder["decoder.middle.attention.out.weight"] == (FIRST_STAGE + "decoder.mid.attn_1.proj_out.weight",
        0, 1, 1, 2)  # fmt: skip
    assert averaged(unet)["conv_in.weight"].key == "model_ema.diffusion_modelinput_blocks00weight"


SD1 = unet_json(UNETS["sd1"], 64)


@pytest.mark.parametrize(
    ("heads", "expected"),
    [
        (8, {"heads": 8, "head_width": None}),
        ([8, 8, 8, 8], {"heads": 8, "head_width": None}),
        ([5, 10, 20, 20], {"heads": None, "head_width": 64}),
        ([10, 20, 40, 40], {"heads": None, "head_width": 32}),
    ],
)
def test_a_head_dim_is_a_number_of_heads(heads: Any, expected: dict[str, Any]) -> None:
    found = unet_config({**SD1, "attention_head_dim": heads}, "config.json")
    assert {name: getattr(found, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"addition_embed_type": "text_time"}, "addition_embed_type"),  # Stable Diffusion XL
        ({"dual_cross_attention": True}, "dual_cross_attention"),
        ({"class_embed_type": "projection"}, "class_embed_type"),
        ({"num_class_embeds": 1000}, "num_class_embeds"),
        ({"encoder_hid_dim": 768}, "encoder_hid_dim"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
        ({"only_cross_attention": [True, True, True, False]}, "only_cross_attention"),
        ({"mid_block_type": "UNetMidBlock2D"}, "mid_block_type"),
        ({"norm_eps": 1e-6}, "norm_eps"),
        ({"something_new": 3}, "something_new"),
        ({"attention_head_dim": [5, 10, 10, 20]}, "attention_head_dim"),
        ({"attention_head_dim": "8"}, "attention_head_dim"),
        ({"layers_per_block": [2, 2, 1, 2]}, "layers_per_block"),
        ({"transformer_layers_per_block": [1, 2, 10, 1]}, "transformer_layers_per_block"),
        ({"cross_attention_dim": [768, 768, 1024, 768]}, "cross_attention_dim"),
        ({"block_out_channels": [320, 500, 1280, 1280]}, "block_out_channels"),
        ({"block_out_channels": [0, 640, 1280, 1280]}, "block_out_channels"),
        ({"block_out_channels": 320}, "block_out_channels"),
        ({"down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["AttnDownBlock2D"]}, "down_block_types"),
        ({"up_block_types": ["CrossAttnUpBlock2D"] * 4}, "up_block_types"),
        ({"in_channels": "4"}, "in_channels"),
    ],
)
def test_a_unet_that_ours_cannot_be_is_refused_by_field(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=rf"config\.json: {says}"):
        unet_config({**SD1, **changes}, "config.json")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"shift_factor": 0.1}, "shift_factor"),
        ({"latents_mean": [0.1]}, "latents_mean"),
        ({"use_quant_conv": False}, "use_quant_conv"),
        ({"down_block_types": ["AttnDownEncoderBlock2D"] * 4}, "down_block_types"),
        ({"out_channels": 4}, "out_channels"),
    ],
)
def test_an_autoencoder_that_ours_cannot_be_is_refused_by_field(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=rf"config\.json: {says}"):
        autoencoder_config({**autoencoder_json(AutoencoderConfig(), 1.0, 512), **changes}, "config.json")
    with pytest.raises(UserError, match=r"config\.json: scaling_factor"):
        scaling_factor({"scaling_factor": 0}, "config.json")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("pooled_width=12", "pooled_width = 12"),
        ("context_norm=true", "context_norm"),
        ("feed_forward=0", "feed_forward"),
    ],
)
def test_a_unet_that_was_never_published_has_no_layout(change: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        compvis_unet(UNETS["small"].override([change]))


def test_an_autoencoder_with_patches_has_no_layout() -> None:
    with pytest.raises(UserError, match="patch = 2"):
        diffusers_autoencoder(AUTOENCODERS["small"].override(["patch=2"]))


def without(found: dict[str, tuple[int, ...]], key: str) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in found.items() if name != UNET + key}


def test_shapes_that_fit_no_unet_are_refused() -> None:
    config = UNETS["small"]
    found = published_shapes(compvis_unet(config), shapes(config))
    with pytest.raises(UserError, match=r"a file: key 'model\.diffusion_model\.out\.2\.weight' is missing"):
        unet_of_shapes(without(found, "out.2.weight"), "a file")
    with pytest.raises(UserError, match="label_emb"):
        unet_of_shapes({**found, UNET + "label_emb.0.0.weight": (4, 4)}, "a file")
    with pytest.raises(UserError, match=r"no multiples of 32"):
        unet_of_shapes({**found, UNET + "input_blocks.3.0.out_layers.3.weight": (70, 70, 3, 3)}, "a file")
    with pytest.raises(UserError, match="different depths"):
        unet_of_shapes({**found, UNET + "middle_block.1.transformer_blocks.1.norm1.weight": (64,)}, "a file")
