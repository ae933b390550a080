"""What tests of engines run: networks that take a moment to compile."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from diptych.networks.unet import UNetConfig

UNET = UNetConfig(channels=32, multipliers=(1, 2), blocks=1, attention_levels=(1,), heads=4, context_width=16)


def random_weights(module: nn.Module) -> Any:
    """Layers that begin as zeros would hide what stands before them."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.05 if parameter.ndim > 1 else 0.3)
    return module.eval().requires_grad_(False)
