"""Where diffusers keeps each of our weights: names of `UNet2DConditionModel` and `AutoencoderKL` from ours."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from diptych.networks.autoencoder import AutoencoderConfig
from diptych.networks.unet import UNetConfig

T = TypeVar("T")
Part = tuple[str, ...]
"""A key, or a piece of one, split at its dots."""

RESIDUAL = {"time": "time_emb_proj", "skip": "conv_shortcut"}
ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
BLOCK = {"self_attention": "attn1", "cross_attention": "attn2", "feed_forward": "ff"}
FEED_FORWARD = {"expand": "net.0.proj", "contract": "net.2"}
ENDS = {"norm_out": "conv_norm_out"}


def unet_keys(ours: Iterable[str], config: UNetConfig) -> dict[str, str]:
    """Our key -> theirs, for a U-Net of this shape. A pooled condition has no place there and raises `KeyError`."""
    levels = len(config.multipliers)
    places = {
        "down": _places([config.blocks] * levels, own_resampler=False),
        "up": _places([config.blocks + 1] * levels, own_resampler=False),
    }

    def theirs(part: Part) -> Part:
        head, *rest = part
        if head in ("down", "up"):
            level, index, _ = places[head][int(rest[0])]
            return (f"{head}_blocks", str(level), *_stage(head, index, tuple(rest[1:])))
        if head == "middle":
            kind, number = {"0": ("resnets", "0"), "1": ("attentions", "0"), "2": ("resnets", "1")}[rest[0]]
            inner = _spatial_transformer if kind == "attentions" else _residual
            return ("mid_block", kind, number, *inner(tuple(rest[1:])))
        if head == "time":
            return ("time_embedding", {"0": "linear_1", "2": "linear_2"}[rest[0]], *rest[1:])
        if head == "pooled":
            raise KeyError("diffusers has no pooled condition of this kind")
        return (ENDS.get(head, head), *rest)

    return {key: ".".join(theirs(tuple(key.split(".")))) for key in ours}


def autoencoder_keys(ours: Iterable[str], config: AutoencoderConfig) -> dict[str, str]:
    """Our key -> theirs, for an autoencoder of this shape without patches, which theirs does not have."""
    levels = len(config.multipliers)
    places = {
        "down": _places([config.blocks] * levels, own_resampler=True),
        "up": _places([config.blocks + 1] * levels, own_resampler=True),
    }

    def theirs(part: Part) -> Part:
        side, head, *rest = part
        if side in ("quant_conv", "post_quant_conv"):
            return part
        if head in ("down", "up"):
            level, index, resamples = places[head][int(rest[0])]
            where = (f"{head}samplers", "0") if resamples else ("resnets", str(index))
            return (side, f"{head}_blocks", str(level), *where, *_residual(tuple(rest[1:])))
        if head == "middle":
            return (side, "mid_block", *_middle(tuple(rest)))
        return (side, ENDS.get(head, head), *rest)

    return {key: ".".join(theirs(tuple(key.split(".")))) for key in ours}


def renamed(tensors: Mapping[str, T], keys: Mapping[str, str]) -> dict[str, T]:
    """The same tensors under the names of `keys`."""
    return {keys[name]: tensor for name, tensor in tensors.items()}


def _places(blocks: Sequence[int], own_resampler: bool) -> list[tuple[int, int, bool]]:
    """(level, index, is a resampler) of each entry of our flat list, in the order in which the data meets them.

    own_resampler: whether the resampler that ends each level but the last stands in the list by itself.
    """
    places = []
    for level, count in enumerate(blocks):
        places += [(level, index, False) for index in range(count)]
        if own_resampler and level != len(blocks) - 1:
            places.append((level, count, True))
    return places


def _stage(side: str, index: int, part: Part) -> Part:
    head, *rest = part
    if head == "resample":
        return (f"{side}samplers", "0", *rest)
    if head == "transformer":
        return ("attentions", str(index), *_spatial_transformer(tuple(rest)))
    return ("resnets", str(index), *_residual(tuple(rest)))


def _residual(part: Part) -> Part:
    return (RESIDUAL.get(part[0], part[0]), *part[1:])


def _spatial_transformer(part: Part) -> Part:
    head, *rest = part
    if head != "blocks":
        return ({"project_in": "proj_in", "project_out": "proj_out"}.get(head, head), *rest)
    number, layer, *rest = rest
    names = FEED_FORWARD if layer == "feed_forward" else ATTENTION if layer.endswith("attention") else {}
    return ("transformer_blocks", number, BLOCK.get(layer, layer), *(names.get(name, name) for name in rest))


def _middle(part: Part) -> Part:
    """The autoencoder's middle, whose attention has its norm beside it here and inside there."""
    head, *rest = part
    if head in ("block1", "block2"):
        return ("resnets", {"block1": "0", "block2": "1"}[head], *_residual(tuple(rest)))
    if head == "norm":
        return ("attentions", "0", "group_norm", *rest)
    return ("attentions", "0", *(ATTENTION.get(name, name) for name in rest))
