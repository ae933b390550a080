"""Weights that lie in the host's memory, and on a device only while they are needed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from diptych.core.errors import UserError

ALIGNED = 256
"""Bytes to which tensors are aligned on the device, as its allocator does: so kernels are chosen as without."""
PIECE = 64 * 2**20
"""Bytes of a piece of pinned memory. It is allocated in powers of two: one piece for all would waste up to half."""


class Span(NamedTuple):
    """Where a parameter lies among the bytes of several."""

    start: int
    size: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def stop(self) -> int:
        return self.start + math.prod(self.size) * self.dtype.itemsize

    def of(self, flat: Tensor) -> Tensor:
        """The parameter among the bytes `flat` (N,) of several, as a view."""
        return flat[self.start : self.stop].view(self.dtype).as_strided(self.size, self.stride)


class HostWeights:
    """The parameters of modules as bytes on the host, of which `copy_to` and `bind` give them copies on a device.

    Meanwhile each is a placeholder on that device: of its shape and type, in the memory of one number. So whoever asks
    a parameter for its device, shape or type hears what holds while it works. The number is NaN where the type has it,
    so that a placeholder which is mistaken for a weight is seen. State dicts have the weights, as they lie on the host.
    """

    def __init__(self, modules: Iterable[nn.Module], device: torch.device) -> None:
        """Take over all parameters of the modules. Buffers, which are small, move to the device for good."""
        self.device, modules = device, list(modules)
        self.parameters = list(dict.fromkeys(p for module in modules for p in module.parameters()))
        self.places, self.bytes = laid_out(self.parameters)
        self.pieces: list[Tensor] = []
        self.placeholders = [placeholder(one.size, one.dtype, device) for one in self.places]
        for parameter, place, empty in zip(self.parameters, self.places, self.placeholders, strict=True):
            self._store(parameter.detach(), place)
            parameter.data = empty  # frees what it had
            parameter.requires_grad_(False)  # autocast would keep copies of those that are trained
        for owner in {one for module in modules for one in module.modules() if one._buffers}:
            owner._buffers.update({name: b if b is None else b.to(device) for name, b in owner._buffers.items()})
        self._place_of = dict(zip(self.parameters, self.places, strict=True))
        for owner in {one for module in modules for one in module.modules() if one._parameters}:
            owner.register_state_dict_post_hook(partial(self._into_state_dict))

    def _store(self, tensor: Tensor, place: Span) -> None:
        """Copy a parameter into pieces, which are allocated when they are reached."""
        values, start = dense(tensor).as_strided((tensor.numel(),), (1,)).view(torch.uint8).cpu(), place.start
        while len(values):
            while start // PIECE >= len(self.pieces):
                size = min(PIECE, self.bytes - len(self.pieces) * PIECE)
                self.pieces.append(torch.empty(size, dtype=torch.uint8, pin_memory=self.device.type == "cuda"))
            part = self.pieces[start // PIECE][start % PIECE :][: len(values)]
            part.copy_(values[: len(part)])
            values, start = values[len(part) :], start + len(part)

    def copy_to(self, flat: Tensor) -> None:
        """Copy all to `flat` (bytes or more,) on the device; from pinned memory, the host does not wait for it."""
        for number, piece in enumerate(self.pieces):
            flat[number * PIECE :][: len(piece)].copy_(piece, non_blocking=True)

    def copied(self) -> Tensor:
        """A copy of all on the device."""
        flat = torch.empty(self.bytes, dtype=torch.uint8, device=self.device)
        self.copy_to(flat)
        return flat

    def views(self, flat: Tensor) -> list[Tensor]:
        """The parameters in what `copy_to` filled."""
        return [place.of(flat) for place in self.places]

    def bind(self, tensors: Iterable[Tensor]) -> None:
        """Give the parameters these values."""
        for parameter, tensor in zip(self.parameters, tensors, strict=True):
            parameter.data = tensor

    def unbind(self) -> None:
        """Give the parameters their placeholders."""
        self.bind(self.placeholders)

    def stored(self, parameter: nn.Parameter) -> Tensor:
        """A parameter as it lies on the host."""
        place = self._place_of[parameter]
        first, last = place.start // PIECE, max(place.stop - 1, place.start) // PIECE
        flat = self.pieces[first] if first == last else torch.cat(self.pieces[first : last + 1])
        return place._replace(start=place.start - first * PIECE).of(flat)

    def _into_state_dict(self, module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter in self._place_of:
                state[prefix + name] = self.stored(parameter)


def laid_out(parameters: Iterable[Tensor]) -> tuple[list[Span], int]:
    """The places of parameters one after the other, and the bytes of all."""
    places, start = list[Span](), 0
    for parameter in parameters:
        strides = dense(parameter.detach()).stride()
        places.append(Span(start, parameter.shape, strides, parameter.dtype))
        start = -(-places[-1].stop // ALIGNED) * ALIGNED
    return places, places[-1].stop if places else 0


def dense(tensor: Tensor) -> Tensor:
    """The tensor, copied where its numbers have gaps between them or share memory."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1 and stride != expected:
            return tensor.contiguous()
        expected *= size
    return tensor


def placeholder(size: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of one number that looks like a parameter."""
    one = torch.full((1,), float("nan") if dtype.is_floating_point else 0, device=device)
    return one.to(dtype).as_strided(size, [0] * len(size))


def is_placeholder(tensor: Tensor) -> bool:
    """Whether a tensor is one number repeated, as `placeholder` makes it."""
    return tensor.numel() > 1 and not any(tensor.stride())


def stay_on(module: nn.Module, device: torch.device) -> None:
    """Refuse to move a module, or to change its type, when the model around it is told to: its weights are not all
    there. Moves to where it is change nothing."""

    def apply(fn: Any, recurse: bool = True) -> nn.Module:
        for parameter in module.parameters():
            probe = torch.empty(0, dtype=parameter.dtype, device=device)
            moved = fn(probe)
            if (moved.device, moved.dtype) != (probe.device, probe.dtype):
                raise UserError(
                    f"a model of which parts are offloaded stays on {device} as it is: open it again, as it is to be"
                )
            break
        return module

    module._apply = apply  # type: ignore[method-assign]
