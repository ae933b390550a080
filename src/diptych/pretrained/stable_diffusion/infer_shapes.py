"""Our configs of Stable Diffusion's networks from the shapes in a CompVis file, which has no config.

What shapes do not show follows the two releases: 1.x has 8 attention heads at every level and projects into its
transformers by convolutions; 2.x has heads of 64 channels and projects by linear layers.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from typing import Any

from diptych.core.errors import UserError
from diptych.networks.autoencoder import AutoencoderConfig
from diptych.networks.unet import UNetConfig
from diptych.pretrained.stable_diffusion.state_dict_keys import FIRST_STAGE, UNET

Shapes = Mapping[str, tuple[int, ...]]


class PrefixedShapes:
    """The shapes under a prefix; one that is missing raises a `UserError` with its whole key."""

    def __init__(self, shapes: Shapes, prefix: str, source: str) -> None:
        self.shapes = {key.removeprefix(prefix): shape for key, shape in shapes.items() if key.startswith(prefix)}
        self.prefix, self.source = prefix, source

    def __contains__(self, key: str) -> bool:
        return key in self.shapes

    def size(self, key: str, axis: int = 0) -> int:
        if key not in self.shapes:
            raise UserError(f"{self.source}: key {self.prefix + key!r} is missing")
        shape = self.shapes[key]
        if axis >= len(shape):
            raise UserError(f"{self.source}: key {self.prefix + key!r} has the unexpected shape {shape}")
        return shape[axis]

    def matrix(self, key: str) -> tuple[int, int]:
        """Rows and columns."""
        rows, columns = self.size(key), self.size(key, 1)
        if len(self.shapes[key]) != 2:
            raise UserError(f"{self.source}: key {self.prefix + key!r} has the unexpected shape {self.shapes[key]}")
        return rows, columns

    def has_prefix(self, start: str) -> bool:
        """Whether any key begins so: a module of which one tensor is missing is there, and the tensor is missed."""
        return any(key.startswith(start) for key in self.shapes)

    def count(self, pattern: str) -> int:
        """How many different numbers stand where the pattern has its group."""
        return len({match[1] for key in self.shapes if (match := re.match(pattern, key))})

    def error(self, what: str) -> UserError:
        return UserError(f"{self.source}: {what}")


def unet_of_shapes(shapes: Shapes, source: str, latent_channels: int = 4, prefix: str = UNET) -> UNetConfig:
    """The config of a CompVis U-Net with spatial transformers. `latent_channels` of its input are the noisy latent.

    Raises a `UserError` for a key that is missing, and for a network that ours cannot be.
    """
    has = PrefixedShapes(shapes, prefix, source)
    if "label_emb.0.0.weight" in has or "label_emb.weight" in has:
        raise has.error(f"{prefix}label_emb adds classes or sizes to the time, which Stable Diffusion's U-Net lacks")
    inputs, channels = has.size("input_blocks.0.0.weight", 1), has.size("input_blocks.0.0.weight")
    levels: list[list[int]] = [[]]
    transformers: list[str] = []
    attending = set()
    for number in range(1, 1 + has.count(r"input_blocks\.(\d+)\.") - 1):
        block = f"input_blocks.{number}"
        if has.has_prefix(f"{block}.0.op."):
            levels.append([])
            continue
        levels[-1].append(has.size(f"{block}.0.out_layers.3.weight"))
        if has.has_prefix(f"{block}.1."):
            attending.add(len(levels) - 1)
            transformers.append(f"{block}.1")
    middle = "middle_block.1"
    depths = {has.count(rf"{re.escape(at)}\.transformer_blocks\.(\d+)\.") for at in (*transformers, middle)}
    widths = {width for level in levels for width in level}
    if len({len(level) for level in levels}) != 1 or any(len(set(level)) != 1 for level in levels):
        raise has.error(f"the levels of {prefix}input_blocks have different numbers of blocks: {levels}")
    if len(depths) != 1:
        raise has.error(f"the transformers of {prefix} have different depths: {sorted(depths)}")
    if any(width % channels for width in widths):
        raise has.error(f"the widths {sorted(widths)} of {prefix}input_blocks are no multiples of {channels}")
    blocks = len(levels[0])
    for level, number in itertools.product(range(len(levels)), range(blocks)):
        if (level in attending) != has.has_prefix(f"input_blocks.{1 + level * (blocks + 1) + number}.1."):
            raise has.error(f"some blocks of level {level} of {prefix}input_blocks have a transformer, others not")
    projection = has.shapes.get(f"{middle}.proj_in.weight", ())
    linear = len(projection) == 2
    inner = f"{middle}.transformer_blocks.0"
    return UNetConfig(
        in_channels=min(inputs, latent_channels),
        concat_channels=max(inputs - latent_channels, 0),
        out_channels=has.size("out.2.weight"),
        channels=channels,
        multipliers=tuple(level[0] // channels for level in levels),
        blocks=blocks,
        attention_levels=tuple(sorted(attending)),
        depth=max(depths.pop(), 1),
        **_heads(linear),
        context_width=has.size(f"{inner}.attn2.to_k.weight", 1),
        linear_projection=linear,
    )


def _heads(linear: bool) -> dict[str, Any]:
    return {"heads": None, "head_width": 64} if linear else {"heads": 8, "head_width": None}


def autoencoder_of_shapes(shapes: Shapes, source: str, prefix: str = FIRST_STAGE) -> AutoencoderConfig:
    """The config of a CompVis `AutoencoderKL` or `VQModel`. Raises a `UserError` for a key that is missing."""
    has = PrefixedShapes(shapes, prefix, source)
    channels = has.size("encoder.conv_in.weight")
    levels = [
        [has.size(f"encoder.down.{level}.block.{number}.conv2.weight") for number in _numbers(has, level)]
        for level in range(has.count(r"encoder\.down\.(\d+)\."))
    ]
    if len({len(level) for level in levels}) != 1 or any(width % channels for level in levels for width in level):
        raise has.error(f"the levels of {prefix}encoder.down do not match one another: {levels}")
    latent_channels = has.size("decoder.conv_in.weight", 1)
    quantised = has.size("encoder.conv_out.weight") == latent_channels  # a KL has mean and variance of each
    return AutoencoderConfig(
        image_channels=has.size("encoder.conv_in.weight", 1),
        latent_channels=latent_channels,
        channels=channels,
        multipliers=tuple(level[-1] // channels for level in levels),
        blocks=len(levels[0]),
        attention=has.has_prefix("encoder.mid.attn_1."),
        attention_levels=tuple(i for i in range(len(levels)) if has.has_prefix(f"encoder.down.{i}.attn.")),
        codebook=has.size("quantize.embedding.weight") if quantised else None,
    )


def _numbers(has: PrefixedShapes, level: int) -> Iterable[int]:
    return range(has.count(rf"encoder\.down\.{level}\.block\.(\d+)\."))
