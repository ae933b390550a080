"""LoRA files in each of the published layouts, made from the modules of diffusers and transformers.

Their names come from those modules, or are written out by hand: none comes from a map of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.networks.reference import noise

KINDS_OF_LAYER = (  # one of each kind is in every file below that its style has names for
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_v",
    "up_blocks.1.attentions.1.transformer_blocks.0.attn1.to_out.0",
    "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "down_blocks.1.attentions.1.transformer_blocks.0.ff.net.2",
    "down_blocks.1.attentions.0.proj_in",
    "mid_block.attentions.0.proj_out",
    "mid_block.resnets.1.conv2",
    "down_blocks.1.resnets.0.conv1",
    "down_blocks.1.resnets.0.time_emb_proj",
    "up_blocks.1.resnets.0.conv_shortcut",
    "down_blocks.0.downsamplers.0.conv",
    "up_blocks.0.upsamplers.0.conv",
    "up_blocks.1.upsamplers.0.conv",
    "time_embedding.linear_1",
    "conv_in",
    "conv_out",
    "encoder.layers.0.self_attn.q_proj",
    "encoder.layers.1.self_attn.out_proj",
    "encoder.layers.0.mlp.fc1",
    "encoder.layers.1.mlp.fc2",
)
COMPVIS = {  # by hand, for the miniature's three levels of two blocks
    KINDS_OF_LAYER[0]: "input_blocks_1_1_transformer_blocks_0_attn1_to_q",
    KINDS_OF_LAYER[1]: "input_blocks_1_1_transformer_blocks_0_attn2_to_k",
    KINDS_OF_LAYER[2]: "middle_block_1_transformer_blocks_0_attn2_to_v",
    KINDS_OF_LAYER[3]: "output_blocks_4_1_transformer_blocks_0_attn1_to_out_0",
    KINDS_OF_LAYER[4]: "output_blocks_3_1_transformer_blocks_0_ff_net_0_proj",
    KINDS_OF_LAYER[5]: "input_blocks_5_1_transformer_blocks_0_ff_net_2",
    KINDS_OF_LAYER[6]: "input_blocks_4_1_proj_in",
    KINDS_OF_LAYER[7]: "middle_block_1_proj_out",
    KINDS_OF_LAYER[8]: "middle_block_2_out_layers_3",
    KINDS_OF_LAYER[9]: "input_blocks_4_0_in_layers_2",
    KINDS_OF_LAYER[10]: "input_blocks_4_0_emb_layers_1",
    KINDS_OF_LAYER[11]: "output_blocks_3_0_skip_connection",
    KINDS_OF_LAYER[12]: "input_blocks_3_0_op",
    KINDS_OF_LAYER[13]: "output_blocks_2_1_conv",
    KINDS_OF_LAYER[14]: "output_blocks_5_2_conv",
    KINDS_OF_LAYER[15]: "time_embed_0",
    KINDS_OF_LAYER[16]: "input_blocks_0_0",
    KINDS_OF_LAYER[17]: "out_2",
}
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
OLD_TEXT = {"q_proj": "to_q_lora", "k_proj": "to_k_lora", "v_proj": "to_v_lora", "out_proj": "to_out_lora"}

Change = tuple[Tensor, Tensor, float]
"""A, B and alpha."""
Changes = dict[str, Change]
"""Of each layer, by its name in diffusers' or transformers' module."""


def their_layers(pipeline: Any) -> Iterator[tuple[str, Any]]:
    for network in (pipeline.unet, pipeline.text_encoder):
        for name, module in network.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                yield name.removeprefix("text_model."), module


def is_text(name: str) -> bool:
    return name.startswith("encoder.")


def changes(
    pipeline: Any,
    chosen: Callable[[str], bool] = lambda name: True,
    alpha: Callable[[int], float] = lambda number: 1.0 + number % 3,
    seed: int = 0,
) -> Changes:
    """Random ones, of ranks 2 to 4, each about a third as strong as the weight that it changes."""
    found = {}
    for number, (name, module) in enumerate(their_layers(pipeline)):
        if chosen(name):
            weight, rank = module.weight, 2 + number % 3
            down = noise(rank, *weight.shape[1:], seed=2 * number + 1000 * seed)
            up = noise(weight.shape[0], rank, *(1,) * (weight.ndim - 2), seed=2 * number + 1 + 1000 * seed)
            strength = 0.3 / rank**0.5 / weight[0].numel() ** 0.5
            found[name] = down, strength * up, alpha(number)
    return found


def kohya(made: Changes) -> dict[str, Tensor]:
    return parts({flat(name): change for name, change in made.items()}, ".lora_down.weight", ".lora_up.weight")


def flat(name: str) -> str:
    return f"lora_{'te_text_model' if is_text(name) else 'unet'}_{name}".replace(".", "_")


def compvis(made: Changes) -> dict[str, Tensor]:
    text = {flat(name): change for name, change in made.items() if is_text(name)}
    unet = {f"lora_unet_{COMPVIS[name]}": change for name, change in made.items() if not is_text(name)}
    return parts(unet | text, ".lora_down.weight", ".lora_up.weight")


def peft(made: Changes) -> dict[str, Tensor]:
    found = {dotted(name): change for name, change in made.items()}
    return parts(found, ".lora_A.weight", ".lora_B.weight")


def dotted(name: str) -> str:
    return f"text_encoder.text_model.{name}" if is_text(name) else f"unet.{name}"


def linear_layer(made: Changes) -> dict[str, Tensor]:
    """Of the middle years: `.lora.down` in the U-Net, `lora_linear_layer` in the text encoder."""
    text = {f"{dotted(name)}.lora_linear_layer": change for name, change in made.items() if is_text(name)}
    unet = {f"{dotted(name)}.lora": change for name, change in made.items() if not is_text(name)}
    return parts(unet | text, ".down.weight", ".up.weight")


def processors(made: Changes) -> dict[str, Tensor]:
    """The first layout: attention alone, in the U-Net without its name."""
    found = {}
    for name, change in made.items():
        head, last = name.removesuffix(".0").rsplit(".", 1)
        place = f"text_encoder.text_model.{head}.{OLD_TEXT[last]}" if is_text(name) else f"{head}.processor.{last}_lora"
        found[place] = change
    return parts(found, ".down.weight", ".up.weight")


def parts(found: Changes, down: str, up: str) -> dict[str, Tensor]:
    tensors = {}
    for name, change in found.items():
        tensors |= {name + down: change[0], name + up: change[1], f"{name}.alpha": torch.tensor(change[2])}
    return tensors


def without_alphas(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in tensors.items() if not key.endswith(".alpha")}


def written(tmp_path: Path, tensors: dict[str, Tensor], name: str = "lora.safetensors", **header: str) -> Path:
    save_file({key: tensor.contiguous().clone() for key, tensor in tensors.items()}, tmp_path / name, header or None)
    return tmp_path / name


def weights(model: Any) -> dict[str, Tensor]:
    """Copies of all that the U-Net and the text encoder are made of."""
    parts = {"unet": model.unet, "text": model.text.model}
    return {f"{part}.{key}": t.clone() for part, network in parts.items() for key, t in network.state_dict().items()}
