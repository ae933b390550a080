"""Noticing that the weights of a network have changed, in about a millisecond for one of 600 tensors."""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from diptych.core.steady import steady_period
from diptych.networks.deep_cache import CutUNet
from diptych.networks.lora import PLACE, adapters, add_live_adapters


class WeightsWatch:
    """Watches the layers of a module, their numbers, parameters and buffers, and what LoRA adds to them.

    hooked: after `state`, whether a layer within has hooks other than LoRA's. Those of the module itself are called
      whatever runs its method; those of a network that is cut are not, by its halves.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)  # which holds what holds this
        self.hooked = False
        self._known: tuple[object, Hashable] | None = None  # a period without changes, and the state in it
        self._layers: list[nn.Module] = []
        self._replaced = 0  # times that layers were
        self._numbers: list[tuple[dict[str, Any], str]] = []  # attributes of layers, each by where it is looked up
        self._addresses: list[int] = []
        self._samples: list[Tensor] = []

    def state(self) -> Hashable:
        """What is something else after any of them was replaced, changed or scaled.

        A change that PyTorch does not count (`weight.data.mul_`) is seen where it reaches the beginning, the middle or
        the end of the tensor. One of a layer's attributes is where it is a number (`norm.eps`). Where weights are
        steady it looks once.
        """
        period = steady_period()
        if period is None or self._known is None or self._known[0] is not period:
            self._known = period, self._state()
        return self._known[1]

    def _state(self) -> Hashable:
        module = self._module()
        assert module is not None, "a network is watched that is no more"
        layers, tensors, scales = self._watched(module)
        if layers != self._layers:
            self._layers, self._replaced = layers, self._replaced + 1
            self._numbers = [(vars(layer), name) for layer in layers for name in numbers(layer)]
        addresses = [tensor.data_ptr() for tensor in tensors]
        if addresses != self._addresses:
            self._addresses = addresses
            self._samples = [samples(tensor) for tensor in tensors]
        versions = tuple(0 if tensor.is_inference() else tensor._version for tensor in tensors)
        values = torch.cat(self._samples).float().numpy().tobytes() if self._samples else b""
        numbers_now = tuple(attributes.get(name) for attributes, name in self._numbers)
        scales.append(tuple(numbers(module).values()))
        # The values, not their hash: those of -1 and -2 are the same.
        return self._replaced, tuple(addresses), versions, values, tuple(scales), numbers_now

    def _watched(self, root: nn.Module) -> tuple[list[nn.Module], list[Tensor], list[Any]]:
        """The layers within, the tensors, and the names and scales of what LoRA adds. PyTorch's own walk through
        modules takes ten times as long."""
        layers, tensors, scales, waiting = list[nn.Module](), list[Tensor | None](), list[Any](), [root]
        outermost = (root, root.network) if isinstance(root, CutUNet) else (root,)
        self.hooked = False
        while waiting:
            module = waiting.pop()
            if module is not root:
                layers.append(module)
            if (module._forward_hooks or module._forward_pre_hooks) and module not in outermost:
                self.hooked |= bool(module._forward_pre_hooks)
                self.hooked |= any(hook is not add_live_adapters for hook in module._forward_hooks.values())
            waiting += [child for child in module._modules.values() if child is not None]
            tensors += module._parameters.values()
            tensors += module._buffers.values()
            if PLACE in vars(module):
                for name, each in adapters(module):
                    scales.append((name, each.scale, each.live, each.change.alpha))
                    tensors += [each.change.down, each.change.up]
        return layers, [tensor for tensor in tensors if tensor is not None], scales


def numbers(layer: nn.Module) -> dict[str, float]:
    """Those of its attributes that are numbers, such as the `eps` of a norm."""
    return {name: value for name, value in vars(layer).items() if isinstance(value, (float, int))}


def samples(tensor: Tensor) -> Tensor:
    """A view of the first, the middle and the last value in memory; `flatten` copies layouts such as channels_last,
    whose copy would stay as it was."""
    if tensor.numel() == 0:
        return tensor.detach().flatten()
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    step = max(1, last // 2)
    return tensor.detach().as_strided((1 + min(2, last // step),), (step,))
