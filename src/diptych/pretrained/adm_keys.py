"""Where an `AdmUNet` lies in published files: by diffusers' names (DeepFloyd IF) and by ADM's own (guided-diffusion,
latent-diffusion); and what the shapes in a file by ADM's names say of its config.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from diptych.core.errors import UserError
from diptych.networks.adm import AdmEncoder, AdmUNet, AdmUNetConfig
from diptych.networks.adm_blocks import AdmAttention
from diptych.pretrained.key_map import Layout, Piece
from diptych.pretrained.stable_diffusion.infer_shapes import PrefixedShapes
from diptych.pretrained.stable_diffusion.state_dict_keys import COMPVIS_RESIDUAL

BLOCK = {"time": "time_emb_proj", "skip": "conv_shortcut"}
ATTENTION = {
    "norm": "group_norm",
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "out": "to_out.0",
    "context_norm": "norm_cross",
    "context_key": "add_k_proj",
    "context_value": "add_v_proj",
}
POOLING = {
    "offset": "pool.positional_embedding",
    "query": "pool.q_proj",
    "key": "pool.k_proj",
    "value": "pool.v_proj",
    "project": "proj",
}
TOWERS = {"time": "time_embedding", "level": "class_embedding"}
LINEAR = {"0": "linear_1", "2": "linear_2"}
QKV = ("query", "key", "value")
OUTER = {"conv_in": "input_blocks.0.0", "time": "time_embed", "label": "label_emb", "norm_out": "out.0"}
OUTER |= {"conv_out": "out.2"}
ALONE = {"context_projection": "encoder_hid_proj", "norm_out": "conv_norm_out"}


def diffusers_adm(network: AdmUNet) -> Layout:
    """Of a `UNet2DConditionModel` whose levels resample in residual blocks; network may be on the meta device."""
    down, up = places(network.config)

    def theirs(name: str) -> str:
        match name.split("."):
            case ["down" | "up" as side, number, part, layer, *rest]:
                level, index = (down if side == "down" else up)[int(number)]
                where = f"{side}_blocks.{level}"
                if index is None:
                    return dotted(where, f"{side}samplers.0", BLOCK.get(layer, layer), *rest)
                if part == "attention":
                    return dotted(where, f"attentions.{index}", ATTENTION[layer], *rest)
                return dotted(where, f"resnets.{index}", BLOCK.get(layer, layer), *rest)
            case ["middle", "1", layer, *rest]:
                return dotted("mid_block.attentions.0", ATTENTION[layer], *rest)
            case ["middle", number, layer, *rest]:
                return dotted(f"mid_block.resnets.{int(number) // 2}", BLOCK.get(layer, layer), *rest)
            case ["time" | "level" as tower, number, *rest]:
                return dotted(TOWERS[tower], LINEAR[number], *rest)
            case ["text_pooling", layer, *rest]:
                return dotted("add_embedding", POOLING.get(layer, layer), *rest)
            case [layer, *rest]:
                return dotted(ALONE.get(layer, layer), *rest)
        raise ValueError(f"a name of an AdmUNet has parts: {name!r}")

    return {name: Piece(theirs(name)) for name in network.state_dict()}


def dotted(*words: str) -> str:
    return ".".join(words)


def places(config: AdmUNetConfig) -> tuple[list[tuple[int, int | None]], list[tuple[int, int | None]]]:
    """For each step on the way down and up: which of their levels, and which of its blocks, none for the resampling."""
    last = len(config.multipliers) - 1
    down: list[tuple[int, int | None]] = []
    up: list[tuple[int, int | None]] = []
    for level in range(last + 1):
        down += [(level, index) for index in range(config.level_blocks(level))]
        down += [] if level == last else [(level, None)]
    for level in reversed(range(last + 1)):
        up += [(last - level, index) for index in range(config.level_blocks(level) + 1)]
        up += [] if level == 0 else [(last - level, None)]
    return down, up


def compvis_adm(network: AdmEncoder, prefix: str = "", older_attention: bool = True) -> Layout:
    """Of guided-diffusion's `UNetModel` and the unconditional models of latent-diffusion; `prefix` before each name.

    older_attention: query, key and value follow one another within each head; else all heads of each (of OpenAI's
    U-Nets the 64-px one alone).
    """
    layout = {}
    for name in network.state_dict():
        words = name.split(".")
        head, rest = _compvis_place(network, words)
        if rest[0] in QKV:
            module = network.get_submodule(".".join(words[: -len(rest)]))
            assert isinstance(module, AdmAttention)
            heads = module.heads if older_attention else 1
            weight = rest[1] == "weight"
            key = dotted(prefix + head, "qkv", rest[1])
            layout[name] = Piece(key, QKV.index(rest[0]), len(QKV), heads, ones=int(weight))
        elif rest[0] == "out":
            layout[name] = Piece(dotted(prefix + head, "proj_out", rest[1]), ones=int(rest[1] == "weight"))
        else:
            layout[name] = Piece(dotted(prefix + head, *rest))
    return layout


def _compvis_place(network: AdmEncoder, words: list[str]) -> tuple[str, list[str]]:
    """Their name of the module that a name of ours lies in, and what is left of ours."""
    match words:
        case ["down", number, "block", *rest]:
            layer = {"conv": "op"} if len(rest) == 2 and rest[0] == "conv" else COMPVIS_RESIDUAL
            return f"input_blocks.{int(number) + 1}.0", [layer.get(rest[0], rest[0]), *rest[1:]]
        case ["down", number, "attention", *rest]:
            return f"input_blocks.{int(number) + 1}.1", rest
        case ["middle", "1", *rest]:
            return "middle_block.1", rest
        case ["middle", number, *rest]:
            return f"middle_block.{number}", [COMPVIS_RESIDUAL.get(rest[0], rest[0]), *rest[1:]]
        case ["up", number, part, *rest]:
            levels = places(network.config)[1]
            doubling = sum(index is None for _, index in levels[: int(number)])  # each lies in the block before it
            block = int(number) - doubling
            if part == "attention":
                return f"output_blocks.{block}.1", rest
            layers = [COMPVIS_RESIDUAL.get(rest[0], rest[0]), *rest[1:]]
            if levels[int(number)][1] is not None:
                return f"output_blocks.{block}.0", layers
            attends = len(network.config.multipliers) - 1 - levels[int(number)][0] in network.config.attention_levels
            return f"output_blocks.{block - 1}.{1 + attends}", layers
        case [layer, *rest]:
            return OUTER[layer], rest
    raise ValueError(f"a name of an AdmUNet has parts: {words}")


def adm_of_shapes(
    shapes: Mapping[str, tuple[int, ...]], source: str, in_channels: int, prefix: str = "", **unseen: Any
) -> AdmUNetConfig:
    """The config of a U-Net by ADM's names. The first `in_channels` of its input are the noisy image or latent.

    unseen: fields that shapes do not show, `heads` or `head_width` among them. Raises a `UserError` for a key that is
    missing, and for a network that ours cannot be.
    """
    has = PrefixedShapes(shapes, prefix, source)
    resampled, blocks = _levels(has)
    trunk = encoder_of_shapes(has, blocks, resampled)
    inputs = has.size("input_blocks.0.0.weight", 1)
    values = {"heads": None, "head_width": None, **trunk, **unseen}
    try:
        return AdmUNetConfig(
            in_channels=min(inputs, in_channels),
            concat_channels=max(inputs - in_channels, 0),
            out_channels=has.size("out.2.weight"),
            classes=has.size("label_emb.weight") if "label_emb.weight" in has else None,
            **values,
        )
    except UserError as error:
        raise has.error(str(error)) from None


def _levels(has: PrefixedShapes) -> tuple[bool, list[int]]:
    """Whether a U-Net resamples in residual blocks, and how many blocks each of its levels has, largest level first."""
    last = has.count(r"output_blocks\.(\d+)\.") - 1
    convolved = {n for n in range(last) if any(f"output_blocks.{n}.{i}.conv.weight" in has for i in (1, 2))}
    residual = {n for n in range(last) if any(f"output_blocks.{n}.{i}.in_layers.0.weight" in has for i in (1, 2))}
    ends = [-1, *sorted(convolved | residual), last]
    return bool(residual), [after - before - 1 for before, after in itertools.pairwise(ends)][::-1]


def encoder_of_shapes(has: PrefixedShapes, blocks: list[int], resampled: bool) -> dict[str, Any]:
    """What the way down and the middle say, with so many residual blocks on each level, as fields of the config."""
    channels, first = has.size("time_embed.0.weight", 1), 1
    widths: list[int] = []
    attending = []
    for level, count in enumerate(blocks):
        numbers = range(first, first + count)
        widths += [has.size(f"input_blocks.{numbers[-1]}.0.out_layers.3.weight")] if count > 0 else []
        attends = {has.has_prefix(f"input_blocks.{number}.1.") for number in numbers}
        if len(attends) != 1:
            raise has.error(f"some blocks of level {level} of {has.prefix}input_blocks have attention, others not")
        attending += [level] if attends == {True} else []
        first += count + 1
    if any("transformer_blocks" in key for key in has.shapes):
        raise has.error(f"{has.prefix} has transformers in the place of attention")
    middle = "middle_block.0"
    embedding, width = has.size(f"{middle}.emb_layers.1.weight"), has.size(f"{middle}.out_layers.3.weight")
    return {
        "channels": channels,
        "multipliers": tuple(one // channels if one % channels == 0 else one / channels for one in widths),
        "blocks": blocks[0] if len(set(blocks)) == 1 else tuple(blocks),
        "attention_levels": tuple(attending),
        "scale_shift": embedding == 2 * width,
        "residual_resampling": resampled,
        "time_width": None if (time := has.size("time_embed.0.weight")) == 4 * channels else time,
    }
