"""Noticing that the weights of a network have changed, in less than a millisecond."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from diptych.networks.lora import adapters


class WeightsWatch:
    """Watches the parameters and buffers of a module, and what LoRA adds to its layers."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._addresses: list[int] = []
        self._middles: list[Tensor] = []

    def state(self) -> int:
        """A number that is another one after any of them was replaced, changed or scaled.

        A change that PyTorch does not count (`weight.data.mul_`) is seen where it reaches the middle of the tensor.
        """
        tensors, scales = self._watched()
        addresses = [tensor.data_ptr() for tensor in tensors]
        if addresses != self._addresses:
            self._addresses = addresses
            self._middles = [tensor.detach().flatten()[tensor.numel() // 2 :][:1] for tensor in tensors]
        versions = tuple(tensor._version for tensor in tensors)
        middles = torch.cat(self._middles).float().numpy().tobytes() if self._middles else b""
        return hash((tuple(addresses), versions, middles, tuple(scales)))

    def _watched(self) -> tuple[list[Tensor], list[Any]]:
        """The tensors, and the names and scales of what LoRA adds. PyTorch's own walk through modules takes ten times
        as long."""
        tensors, scales, waiting = list[Tensor | None](), list[Any](), [self.module]
        while waiting:
            module = waiting.pop()
            waiting += [child for child in module._modules.values() if child is not None]
            tensors += module._parameters.values()
            tensors += module._buffers.values()
            for name, each in adapters(module):
                scales.append((name, each.scale, each.live, each.change.alpha))
                tensors += [each.change.down, each.change.up]
        return [tensor for tensor in tensors if tensor is not None], scales
