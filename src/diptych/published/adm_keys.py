"""Where an `AdmUNet` lies in the files of diffusers' U-Net, which is how DeepFloyd IF is published."""

from __future__ import annotations

from diptych.networks.adm import AdmUNet, AdmUNetConfig
from diptych.published.pieces import Layout, Piece

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
