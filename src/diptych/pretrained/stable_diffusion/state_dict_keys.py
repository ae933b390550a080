"""Where Stable Diffusion's U-Net and autoencoder lie in published files: diffusers' names and CompVis's, from ours.

A layout follows from our config alone, for any number of levels, blocks and attention levels. CompVis's names are those
of latent-diffusion as well, and of whatever came from it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from torch import nn

from diptych.core.errors import UserError
from diptych.networks.autoencoder import Autoencoder, AutoencoderConfig
from diptych.networks.unet import UNet, UNetConfig
from diptych.pretrained.key_map import Layout, Piece
from diptych.weights.lazy import on_meta

UNET = "model.diffusion_model."
FIRST_STAGE = "first_stage_model."
"""Prefixes of CompVis's networks in a single file."""

Words = list[str]
"""A key, or the rest of one, split at its dots."""

ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
OLDER_ATTENTION = {"query": "query", "key": "key", "value": "value", "out": "proj_attn"}
"""What diffusers called the autoencoder's attention before version 0.17."""
COMPVIS_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "proj_out"}
TRANSFORMER = {
    "project_in": "proj_in",
    "project_out": "proj_out",
    "blocks": "transformer_blocks",
    "self_attention": "attn1",
    "cross_attention": "attn2",
    "feed_forward": "ff",
    "expand": "net.0.proj",
    "contract": "net.2",
    **ATTENTION,
}
"""The spatial transformer, which has one layout everywhere."""
RESIDUAL = {"time": "time_emb_proj", "skip": "conv_shortcut"}
COMPVIS_RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "skip": "skip_connection",
}
COMPVIS_FIRST_STAGE_RESIDUAL = {"skip": "nin_shortcut"}


class Place(NamedTuple):
    """Where an entry of our flat list of layers lies."""

    level: int
    index: int
    """Among the blocks of its level; their number for the resampling that ends the level."""


def diffusers_unet(config: UNetConfig) -> Layout:
    """Of a `UNet2DConditionModel`."""
    down, up = _stages(config)

    def theirs(words: Words) -> str:
        match words:
            case ["down" | "up" as side, number, head, *rest]:
                level, index = (down if side == "down" else up)[int(number)]
                where = f"{side}_blocks.{level}"
                if head == "resample":
                    return dotted(where, f"{side}samplers.0", *rest)
                if head == "transformer":
                    return dotted(where, "attentions", index, renamed(TRANSFORMER, rest))
                return dotted(where, "resnets", index, renamed(RESIDUAL, rest))
            case ["middle", "1", *rest]:
                return dotted("mid_block.attentions.0", renamed(TRANSFORMER, rest))
            case ["middle", number, *rest]:
                return dotted("mid_block.resnets", int(number) // 2, renamed(RESIDUAL, rest))
            case ["time", number, *rest]:
                return dotted("time_embedding", {"0": "linear_1", "2": "linear_2"}[number], *rest)
        return renamed({"norm_out": "conv_norm_out"}, words)

    return _layout(unet_names(config), theirs)


def compvis_unet(config: UNetConfig, prefix: str = UNET) -> Layout:
    """Of CompVis's `UNetModel`, with spatial transformers; `prefix` stands before each name."""
    down, up = _stages(config)

    def theirs(words: Words) -> str:
        match words:
            case ["conv_in", *rest]:
                return dotted("input_blocks.0.0", *rest)
            case ["down", number, head, *rest]:
                level, index = down[int(number)]
                first = 1 + level * (config.blocks + 1)
                if head == "resample":  # a block of its own, after those of the level
                    return dotted("input_blocks", first + config.blocks, "0.op", *rest[1:])
                return dotted("input_blocks", first + index, _stage(head, rest))
            case ["middle", "1", *rest]:
                return dotted("middle_block.1", renamed(TRANSFORMER, rest))
            case ["middle", number, *rest]:
                return dotted("middle_block", number, renamed(COMPVIS_RESIDUAL, rest))
            case ["up", number, "resample", *rest]:  # behind the block and its transformer, where it has one
                attends = len(config.multipliers) - 1 - up[int(number)].level in config.attention_levels
                return dotted("output_blocks", number, 2 if attends else 1, *rest)
            case ["up", number, head, *rest]:
                return dotted("output_blocks", number, _stage(head, rest))
            case ["time", *rest]:
                return dotted("time_embed", *rest)
        return renamed({"norm_out": "out.0", "conv_out": "out.2"}, words)

    return _layout(unet_names(config), theirs, prefix)


def diffusers_autoencoder(config: AutoencoderConfig, older: bool = False) -> Layout:
    """Of an `AutoencoderKL`; `older` for files from before its attention got its present names."""
    attention = OLDER_ATTENTION if older else ATTENTION
    down, up = _levels(config)

    def theirs(words: Words) -> str:
        match words:
            case [half, "down" | "up" as side, number, *rest]:
                level, index = (down if side == "down" else up)[int(number)]
                where = f"{half}.{side}_blocks.{level}"
                if index == config.blocks + (side == "up"):
                    return dotted(where, f"{side}samplers.0", *rest)
                return dotted(where, "resnets", index, renamed(RESIDUAL, rest))
            case [half, "middle", "block1" | "block2" as block, *rest]:
                return dotted(half, "mid_block.resnets", int(block[-1]) - 1, renamed(RESIDUAL, rest))
            case [half, "middle", "norm", *rest]:
                return dotted(half, "mid_block.attentions.0.group_norm", *rest)
            case [half, "middle", "attention", *rest]:
                return dotted(half, "mid_block.attentions.0", renamed(attention, rest))
        return renamed({"norm_out": "conv_norm_out"}, words)

    return _layout(autoencoder_names(config), theirs)


def compvis_autoencoder(config: AutoencoderConfig, prefix: str = FIRST_STAGE) -> Layout:
    """Of CompVis's `AutoencoderKL` or `VQModel`, whose attention is of 1x1 convolutions; `prefix` stands before each
    name."""
    down, up = _levels(config)

    def theirs(words: Words) -> str:
        match words:
            case [half, "down" | "up" as side, number, *rest]:
                level, index = (down if side == "down" else up)[int(number)]
                level = level if side == "down" else len(config.multipliers) - 1 - level
                where = f"{half}.{side}.{level}"
                if index == config.blocks + (side == "up"):
                    return dotted(where, f"{side}sample", *rest)
                if rest[0] == "attention_norm":
                    return dotted(where, "attn", index, "norm", *rest[1:])
                if rest[0] == "attention":
                    return dotted(where, "attn", index, renamed(COMPVIS_ATTENTION, rest[1:]))
                return dotted(where, "block", index, renamed(COMPVIS_FIRST_STAGE_RESIDUAL, rest))
            case [half, "middle", "block1" | "block2" as block, *rest]:
                return dotted(half, f"mid.block_{block[-1]}", renamed(COMPVIS_FIRST_STAGE_RESIDUAL, rest))
            case [half, "middle", "norm", *rest]:
                return dotted(half, "mid.attn_1.norm", *rest)
            case [half, "middle", "attention", *rest]:
                return dotted(half, "mid.attn_1", renamed(COMPVIS_ATTENTION, rest))
        return renamed({"quantise": "quantize"}, words)

    layout = _layout(autoencoder_names(config), theirs, prefix)
    convolved = {name for name in layout if ".attention." in name and name.endswith(".weight")}
    return {name: piece._replace(ones=2) if name in convolved else piece for name, piece in layout.items()}


def averaged(layout: Layout) -> dict[str, Piece]:
    """Where the moving averages of the same tensors lie in a CompVis file: in one flat name, its dots left out."""
    return {
        name: piece._replace(key=averaged_key(piece.key)) if piece.key.startswith(UNET) else piece
        for name, piece in layout.items()
    }


def averaged_key(key: str) -> str:
    return "model_ema." + key.removeprefix("model.").replace(".", "")


WORD = re.compile(
    r"input_blocks|output_blocks|middle_block|time_embed|in_layers|emb_layers|out_layers|skip_connection"
    r"|transformer_blocks|proj_in|proj_out|attn[12]|to_[qkv]|to_out|norm[123]?|net|proj|ff|op|conv|out|weight|bias|\d+"
)
"""What names of a U-Net's tensors are made of between their dots."""


def trained_key(key: str) -> str:
    """The inverse of `averaged_key`: which word of a name ends where follows from all words that there are."""
    words = WORD.findall(key.removeprefix("model_ema.diffusion_model"))
    for place, word in enumerate(words[:-1]):
        if word in ("input_blocks", "output_blocks") and len(number := words[place + 1]) > 1:
            words[place + 1] = f"{number[:-1]}.{number[-1]}"  # of the block, and in it, where no more than nine are
    return UNET + ".".join(words)


@functools.lru_cache(maxsize=16)  # each layout of a model asks again, and building a network takes its time
def unet_names(config: UNetConfig) -> tuple[str, ...]:
    """The tensors of our U-Net that published ones have. A `UserError` names the field that they have no place for."""
    for field, usual in (("pooled_width", None), ("augmented", False), ("context_norm", False)):
        if getattr(config, field) != usual:
            raise UserError(f"published U-Nets have no place for UNetConfig.{field} = {getattr(config, field)!r}")
    if config.feed_forward == 0:
        raise UserError("published U-Nets have no place for UNetConfig.feed_forward = 0")
    return tuple(name for name in names(lambda: UNet(config)) if name.split(".")[0] in UNET_PARTS)


@functools.lru_cache(maxsize=16)
def autoencoder_names(config: AutoencoderConfig) -> tuple[str, ...]:
    """The tensors of our autoencoder. A `UserError` names the field that published ones have no place for."""
    if config.patch != 1:
        raise UserError(f"published autoencoders have no place for AutoencoderConfig.patch = {config.patch}")
    return tuple(names(lambda: Autoencoder(config)))


UNET_PARTS = ("conv_in", "down", "middle", "up", "norm_out", "conv_out", "time")


def names(build: Callable[[], nn.Module]) -> list[str]:
    """The names of a module's tensors, without making any."""
    with on_meta():
        return list(build().state_dict())


def dotted(*words: str | int) -> str:
    return ".".join(str(word) for word in words if word != "")


def renamed(table: Mapping[str, str], words: Words) -> str:
    return dotted(*(table.get(word, word) for word in words))


def _layout(ours: Iterable[str], theirs: Callable[[Words], str], prefix: str = "") -> dict[str, Piece]:
    return {name: Piece(prefix + theirs(name.split("."))) for name in ours}


def _stage(head: str, rest: Words) -> str:
    """Within one of CompVis's blocks: the residual block comes first, then the spatial transformer."""
    if head == "transformer":
        return dotted("1", renamed(TRANSFORMER, rest))
    return dotted("0", renamed(COMPVIS_RESIDUAL, rest))


def _stages(config: UNetConfig) -> tuple[list[Place], list[Place]]:
    """The levels of our U-Net's stages on the way down and up, each counted from where the data enters."""
    levels = range(len(config.multipliers))
    down = [Place(level, index) for level in levels for index in range(config.blocks)]
    return down, [Place(level, index) for level in levels for index in range(config.blocks + 1)]


def _levels(config: AutoencoderConfig) -> tuple[list[Place], list[Place]]:
    """The same of our autoencoder's layers, where the resampling that ends a level but the last is one of its own."""
    last = len(config.multipliers) - 1

    def layers(blocks: int) -> list[Place]:
        return [Place(level, i) for level in range(last + 1) for i in range(blocks + (level != last))]

    return layers(config.blocks), layers(config.blocks + 1)
