"""What makes a step faster or smaller and changes nothing that is learnt but last bits: applied from outside to any
model, whose state dict keeps its names and values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diptych.core.errors import UserError
from diptych.networks.blocks import blocks_of
from diptych.networks.compiled_blocks import allow_recompiling
from diptych.training.cuda_graphs import GraphedNetwork
from diptych.training.trainable import Trainable
from diptych.training.training_config import TrainingConfig

BACKEND = "inductor"
"""Of torch.compile; tests have one that needs no compiler."""


def accelerate(trainable: Trainable, config: TrainingConfig, device: torch.device, shapes: int = 1) -> nn.Module:
    """The trainable's module on the device, as `channels_last`, `activation_checkpointing`, `compile` and `cuda_graphs`
    of the config say. A `UserError` for what this device or model cannot do. shapes: of images that it is trained on.

    To be called before anything refers to the parameters: an optimizer, an average.
    """
    if config.cuda_graphs and shapes > 1:
        raise UserError("training.cuda_graphs needs images of one shape: set it to false, or data.bucket_step to 0")
    module = trainable.module.to(device)
    if config.channels_last:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.activation_checkpointing == "blocks":
        for block in require_blocks(module, "activation_checkpointing"):
            recompute(block)
    if config.compile == "blocks":
        compile_each(require_blocks(module, "compile"), shapes)
    if config.cuda_graphs and device.type != "cuda":
        raise UserError(f"training.cuda_graphs is for CUDA devices, and this run is on {device}: set it to false")
    if config.cuda_graphs or config.compile == "blocks":
        fix_shapes(trainable, config.cuda_graphs)
    return module


def require_blocks(module: nn.Module, field: str) -> list[nn.Module]:
    """The blocks of a module. A `UserError` where it has none."""
    if blocks := blocks_of(module):
        return blocks
    raise UserError(f"training.{field}=blocks: {type(module).__name__} has no blocks that repeat; set it to no")


def recompute(block: nn.Module) -> None:
    """Let a block keep only its inputs for the backward pass, and compute the rest again there (Chen et al. 2016)."""
    forward, random = block.forward, has_dropout(block)

    def recomputing(*inputs: Any, **options: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*inputs, **options)
        return checkpoint(forward, *inputs, use_reentrant=False, preserve_rng_state=random, **options)

    block.forward = recomputing


def has_dropout(module: nn.Module) -> bool:
    """Whether it draws random numbers in training."""
    rates = (part.p if isinstance(part, nn.Dropout) else getattr(part, "dropout", 0.0) for part in module.modules())
    return any(isinstance(rate, float) and rate > 0 for rate in rates)


def compiling(config: TrainingConfig) -> str:
    """A line on why the first step takes long, or none."""
    return "compiling the blocks of the networks: minutes before the first step" if config.compile == "blocks" else ""


def compile_each(blocks: list[nn.Module], shapes: int = 1) -> None:
    """Compile each block in place for the shapes that it meets; blocks of equal shape share what is compiled. shapes:
    of images."""
    import torch._functorch.config

    allow_recompiling(len(blocks), shapes)
    torch._functorch.config.donated_buffer = False  # adaptive weights take several gradients of one graph
    for block in blocks:
        block.compile(dynamic=False, backend=BACKEND)


def fix_shapes(trainable: Trainable, graphs: bool) -> None:
    """Pad texts to the length of the longest that the model reads, so that a denoising network sees one shape; with
    `graphs` capture its passes. A `UserError` for a model without such a network where these are asked for."""
    system = getattr(trainable, "system", None)
    denoiser = getattr(system, "denoiser", None)
    if denoiser is None:
        if graphs:
            raise UserError("training.cuda_graphs is for denoising networks, and this model has none: set it to false")
        return
    network, text = denoiser.network, getattr(system, "text", None)
    if graphs:
        network = GraphedNetwork(network)
    if (tokens := getattr(text, "max_tokens", None)) is not None:
        network = PaddedTexts(network, tokens)
    denoiser.network = network


class PaddedTexts(nn.Module):
    """A network whose texts are padded to `tokens` tokens, masked; those without a mask have one length already."""

    def __init__(self, network: nn.Module, tokens: int) -> None:
        super().__init__()
        self.network, self.tokens = network, tokens

    def forward(self, x: Tensor, time: Tensor, **cond: Tensor) -> Tensor:
        context, mask = cond.get("context"), cond.get("context_mask")
        if context is not None and mask is not None and (more := self.tokens - context.shape[1]) > 0:
            cond["context"] = nn.functional.pad(context, (0, 0, 0, more))
            cond["context_mask"] = nn.functional.pad(mask, (0, more))
        return self.network(x, time, **cond)
