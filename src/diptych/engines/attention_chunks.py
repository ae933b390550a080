"""Attention in chunks of queries, where no kernel does without the scores of all queries and keys at once.

Each query attends by itself, so chunks give what all at once give, but for rounding. CUDA's fused kernels take heads
whose width is a multiple of 8; for others, and on Apple's GPUs, PyTorch makes the matrix of scores, as large as the
square of the positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from diptych.core.memory_use import free_device_memory
from diptych.networks.adm_blocks import AdmAttention
from diptych.networks.layers import Attention

FUSED = 8
"""What divides the width of heads that fused kernels take."""
SHARE = 0.25
"""Of the free memory, at most, that scores take."""
COPIES = 3
"""Tensors of scores that are there at a time: the products, with the mask, their softmax."""


class ChunkedAttention(TorchFunctionMode):
    """Within, attention is computed in as few chunks as keep the scores within a share of the device's free memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            free = free_device_memory(args[0].device)
            if free is not None:
                return attend(*args, most=int(SHARE * free), **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    most: int,
    **options: Any,
) -> Tensor:
    """`F.scaled_dot_product_attention` of queries (B, heads, N, D) to keys (B, heads, L, D), in chunks whose scores
    take no more than `most` bytes, as far as one query allows."""
    count = query.shape[-2]
    each = COPIES * query.shape[:-2].numel() * key.shape[-2] * query.element_size()
    rows = max(1, most // max(1, each))
    if rows >= count or is_causal or dropout_p or query.requires_grad:
        return F.scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, **options)
    masks = [attn_mask] * -(-count // rows)
    if attn_mask is not None and attn_mask.shape[-2] > 1:
        masks = list(attn_mask.split(rows, dim=-2))
    parts = zip(query.split(rows, dim=-2), masks, strict=True)
    return torch.cat([F.scaled_dot_product_attention(some, key, value, mask, **options) for some, mask in parts], -2)


def attend_in_chunks(network: nn.Module, device: torch.device) -> None:
    """Have a network attend in chunks, where it has heads on a device for which there is no fused kernel."""
    if device.type == "mps" or (device.type == "cuda" and any(width % FUSED for width in head_widths(network))):
        modes: list[ChunkedAttention] = []

        def enter(module: nn.Module, inputs: Any) -> None:
            modes.append(ChunkedAttention())
            modes[-1].__enter__()

        def leave(module: nn.Module, inputs: Any, output: Any) -> None:
            modes.pop().__exit__(None, None, None)

        network.register_forward_pre_hook(enter)
        network.register_forward_hook(leave, always_call=True)


def head_widths(network: nn.Module) -> set[int]:
    """How wide the attention heads of a network are."""
    return {
        part.query.out_features // part.heads
        for part in network.modules()
        if isinstance(part, (Attention, AdmAttention))
    }
