"""The config.json of diffusers' U-Net and autoencoder, as our configs and back.

What our networks do one way only must be set so, or left out; anything else is refused with the name of its field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from diptych.core.errors import UserError
from diptych.networks.autoencoder import AutoencoderConfig
from diptych.networks.unet import UNetConfig

SCALE = 0.18215
"""Of Stable Diffusion's latents, where nothing says otherwise."""
LATENT = 4
"""Channels of its latents; what a U-Net reads beyond them is concatenated: a mask and the masked latent."""

EITHER = ("dropout", "sample_size", "upcast_attention", "force_upcast", "addition_embed_type_num_heads")
"""Fields that say nothing about the networks."""
UNET_FIXED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "attention_type": ("default",),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "downsample_padding": (1,),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "norm_eps": (1e-5,),
    "resnet_out_scale_factor": (1,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_type": ("positional",),
}
UNET_READ = (
    *("in_channels", "out_channels", "block_out_channels", "down_block_types", "up_block_types", "layers_per_block"),
    *("attention_head_dim", "num_attention_heads", "cross_attention_dim", "transformer_layers_per_block"),
    *("use_linear_projection", "norm_num_groups"),
)
AUTOENCODER_FIXED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "use_quant_conv": (True,),
    "use_post_quant_conv": (True,),
}
AUTOENCODER_READ = (
    *("in_channels", "out_channels", "latent_channels", "block_out_channels", "down_block_types", "up_block_types"),
    *("layers_per_block", "mid_block_add_attention", "norm_num_groups", "scaling_factor"),
)


def unet_config(values: Mapping[str, Any], where: str) -> UNetConfig:
    """Our config of a `UNet2DConditionModel`.

    `attention_head_dim` is the number of heads there, whatever it is called, or a list of numbers, one for each level.
    Raises a `UserError` with the name of the first field that describes what our U-Net does not have.
    """
    _check(values, UNET_FIXED, UNET_READ, where)
    widths = _list(values, "block_out_channels", (320, 640, 1280, 1280), where)
    levels = len(widths)
    down = _list(values, "down_block_types", ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), where)
    up = _list(values, "up_block_types", ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3, where)
    attending = tuple(level for level, kind in enumerate(down) if kind == "CrossAttnDownBlock2D")
    if (list(down), list(up)) != tuple(_blocks(range(levels), attending)):
        raise refused(where, "down_block_types" if {*down} - {*DOWN} else "up_block_types", [*down, *up])
    heads = values.get("num_attention_heads") or values.get("attention_head_dim", 8)
    inputs = _number(values, "in_channels", LATENT, where)
    return UNetConfig(
        in_channels=min(inputs, LATENT),
        concat_channels=max(inputs - LATENT, 0),
        out_channels=values.get("out_channels", 4),
        channels=widths[0],
        multipliers=_multipliers(widths, where),
        blocks=_one(values, "layers_per_block", 2, range(levels), where),
        attention_levels=attending,
        depth=_one(values, "transformer_layers_per_block", 1, attending, where),
        **_heads(heads, widths, (*attending, levels - 1), where),
        context_width=_one(values, "cross_attention_dim", 1280, range(levels), where),
        linear_projection=bool(values.get("use_linear_projection")),
        norm_groups=values.get("norm_num_groups", 32),
    )


DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")


def unet_json(config: UNetConfig, latent_size: int) -> dict[str, Any]:
    """What diffusers writes of such a U-Net, for images whose latents have sides of `latent_size`."""
    levels = range(len(config.multipliers))
    widths = [config.level_channels(level) for level in levels]
    down, up = _blocks(levels, config.attention_levels)
    return {
        "_class_name": "UNet2DConditionModel",
        **{field: usual[0] for field, usual in UNET_FIXED.items()},
        "sample_size": latent_size,
        "in_channels": config.in_channels + config.concat_channels,
        "out_channels": config.out_channels,
        "block_out_channels": widths,
        "down_block_types": down,
        "up_block_types": up,
        "layers_per_block": config.blocks,
        "attention_head_dim": config.heads or [width // (config.head_width or 1) for width in widths],
        "cross_attention_dim": config.context_width,
        "transformer_layers_per_block": config.depth,
        "use_linear_projection": config.linear_projection,
        "norm_num_groups": config.norm_groups,
    }


def autoencoder_config(values: Mapping[str, Any], where: str) -> AutoencoderConfig:
    """Our config of an `AutoencoderKL`. Raises a `UserError` with the name of a field as `unet_config` does."""
    _check(values, AUTOENCODER_FIXED, AUTOENCODER_READ, where)
    widths = _list(values, "block_out_channels", (64,), where)
    for field, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if list(kinds := _list(values, field, (kind,), where)) != [kind] * len(widths):
            raise refused(where, field, kinds)
    channels = values.get("in_channels", 3)
    if values.get("out_channels", 3) != channels:
        raise refused(where, "out_channels", values.get("out_channels", 3))
    return AutoencoderConfig(
        image_channels=channels,
        latent_channels=values.get("latent_channels", 4),
        channels=widths[0],
        multipliers=_multipliers(widths, where),
        blocks=_one(values, "layers_per_block", 1, range(len(widths)), where),
        attention=bool(values.get("mid_block_add_attention", True)),
        norm_groups=values.get("norm_num_groups", 32),
    )


def scaling_factor(values: Mapping[str, Any], where: str) -> float:
    """By what an `AutoencoderKL`'s latents are multiplied."""
    factor = values.get("scaling_factor", SCALE)
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < 1e30:
        raise refused(where, "scaling_factor", factor)
    return float(factor)


def autoencoder_json(config: AutoencoderConfig, scale: float, size: int) -> dict[str, Any]:
    """What diffusers writes of such an autoencoder, for images with sides of `size`."""
    levels = len(config.multipliers)
    return {
        "_class_name": "AutoencoderKL",
        **{field: usual[0] for field, usual in AUTOENCODER_FIXED.items()},
        "sample_size": size,
        "in_channels": config.image_channels,
        "out_channels": config.image_channels,
        "latent_channels": config.latent_channels,
        "block_out_channels": [config.channels * multiplier for multiplier in config.multipliers],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": config.blocks,
        "mid_block_add_attention": config.attention,
        "norm_num_groups": config.norm_groups,
        "scaling_factor": scale,
        "force_upcast": True,
    }


def refused(where: str, field: str, value: Any) -> UserError:
    return UserError(f"{where}: {field} = {value!r} describes what diptych's networks do not have")


def _check(values: Mapping[str, Any], fixed: Mapping[str, tuple[Any, ...]], read: Sequence[str], where: str) -> None:
    """Raise for a field that does not say what it always does, and for one that we do not know and that says much."""
    for field, value in values.items():
        if field.startswith("_") or field in read or field in EITHER:
            continue
        if value not in fixed.get(field, (None, False)):
            raise refused(where, field, value)


def _list(values: Mapping[str, Any], field: str, usual: Sequence[Any], where: str) -> Sequence[Any]:
    value = values.get(field, usual)
    if not isinstance(value, (list, tuple)) or not value:
        raise UserError(f"{where}: {field} must be a list, not {value!r}")
    return value


def _number(values: Mapping[str, Any], field: str, usual: int, where: str) -> int:
    value = values.get(field, usual)
    if isinstance(value, bool) or not isinstance(value, int):
        raise UserError(f"{where}: {field} must be a whole number, not {value!r}")
    return value


def _one(values: Mapping[str, Any], field: str, usual: int, levels: Sequence[int], where: str) -> Any:
    """A number for all levels, or the one that a list has at all `levels`."""
    value = values.get(field, usual)
    if not isinstance(value, list):
        return value
    chosen = {value[level] for level in levels if level < len(value) and isinstance(value[level], int)}
    if len(chosen) != 1:
        raise refused(where, field, value)
    return chosen.pop()


def _multipliers(widths: Sequence[int], where: str) -> tuple[int, ...]:
    if any(not isinstance(width, int) or width < 1 or width % widths[0] for width in widths):
        raise refused(where, "block_out_channels", list(widths))
    return tuple(width // widths[0] for width in widths)


def _heads(heads: Any, widths: Sequence[int], levels: Sequence[int], where: str) -> dict[str, Any]:
    """Our two fields: one number of heads at the `levels` that attend, or heads of one width."""
    if isinstance(heads, int):
        return {"heads": heads, "head_width": None}
    counts = [heads[level] for level in levels if isinstance(heads, list) and level < len(heads) and heads[level]]
    if len(counts) == len(levels):
        if len(set(counts)) == 1:
            return {"heads": counts[0], "head_width": None}
        each = {widths[level] // count for level, count in zip(levels, counts, strict=True)}
        if len(each) == 1:
            return {"heads": None, "head_width": each.pop()}
    raise refused(where, "attention_head_dim", heads)


def _blocks(levels: Sequence[int], attending: Sequence[int]) -> tuple[list[str], list[str]]:
    """The types of the blocks on the way down and on the way up."""
    down = ["CrossAttnDownBlock2D" if level in attending else "DownBlock2D" for level in levels]
    up = ["CrossAttnUpBlock2D" if level in attending else "UpBlock2D" for level in reversed(levels)]
    return down, up
