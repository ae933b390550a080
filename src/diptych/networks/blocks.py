"""The blocks that networks repeat: what is compiled, or computed again in the backward pass, each by itself."""

from __future__ import annotations

from torch import nn

from diptych.networks.adm_blocks import AdmAttention
from diptych.networks.code_transformer import CodeTransformerBlock
from diptych.networks.layers import SpatialTransformer
from diptych.networks.residual import ResidualBlock
from diptych.networks.transformer import TextTransformerBlock

BLOCKS = (ResidualBlock, SpatialTransformer, AdmAttention, TextTransformerBlock, CodeTransformerBlock)
"""Modules of which networks have many. They keep no state between calls, and nothing reads their weights but they."""


def blocks_of(module: nn.Module, frozen: bool = False) -> list[nn.Module]:
    """The blocks in a module that are trained, or all of them (`frozen`): outermost ones, in the order in which it
    holds them."""
    if isinstance(module, BLOCKS):
        return [module] if frozen or any(p.requires_grad for p in module.parameters()) else []
    return [block for part in module.children() for block in blocks_of(part, frozen)]
