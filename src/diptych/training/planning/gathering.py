"""Sharded training in bytes: on the meta device, what `sharding` gathers and reduces in a step, at the same moments."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from diptych.engines.accounting import Kind, Meter, own_rows
from diptych.training.sharding import kept_whole, require_shardable, units_of


class Unit:
    """Parameters that are gathered together."""

    def __init__(self, module: nn.Module, parameters: list[nn.Parameter]) -> None:
        self.module, self.parameters = module, parameters
        self.message: Tensor | None = None
        """What the processes sent, before it is copied into parameters."""
        self.weights: list[Tensor] = []
        """Gathered parameters."""
        self.gradients: list[Tensor] = []
        """Of whole parameters, in the type in which they were gathered."""


class Gathering:
    """Follows a module's units through a step as FSDP2 does: weights of a unit are gathered before its forward pass and
    freed after it, gathered again in the backward pass, with those of the unit before it ahead, and its gradients are
    reduced to rows in float32 when all of them are there. The module's own parameters, in no unit, stay from the loss
    to the end of the backward pass.
    """

    def __init__(self, module: nn.Module, meter: Meter, group: int, half: bool, compiled: bool = False) -> None:
        """group: processes that hold one copy together. half: gather in bfloat16. compiled: whether blocks are."""
        self.whole = whole = kept_whole(module)
        """Parameters that are not divided."""
        require_shardable(module, whole)
        self.meter, self.group, self.dtype = meter, group, torch.bfloat16 if half else torch.float32
        self.held: Tensor | None = None
        """The last message of the forward pass, which is kept until the next is there."""
        self.reduced: Tensor | None = None
        """The input of the last reduction, kept as long."""
        self.backward, self.order = False, list[Unit]()
        self.rows: dict[nn.Parameter, Tensor] = {}
        """This process's rows of gradients."""
        owners, self.units = dict[nn.Parameter, Unit](), list[Unit]()
        for part in units_of(module, whole, compiled):
            own = [p for p in part.parameters() if p not in whole and p not in owners]
            unit = Unit(part, own)
            owners.update(dict.fromkeys(own, unit))
            self.units.append(unit)
            if part is not module and own:
                part.register_forward_pre_hook(lambda *_, unit=unit: self.before(unit))
                part.register_forward_hook(lambda _, __, out, unit=unit: self.after(unit, out), always_call=True)
            elif part is module:
                self.root = unit
        for parameter, unit in owners.items():
            parameter.register_post_accumulate_grad_hook(lambda p, unit=unit: self.gradient(p, unit))

    def empty(self, size: int, kind: Kind, dtype: torch.dtype | None = None) -> Tensor:
        before, self.meter.kind = self.meter.kind, kind
        made = torch.empty(size, dtype=dtype or self.dtype, device="meta")
        self.meter.kind = before
        return made

    def padded(self, parameters: Iterable[nn.Parameter]) -> int:
        """Numbers of all processes' rows of these."""
        return sum(self.group * own_rows(p.shape, self.group) for p in parameters)

    def send(self, unit: Unit) -> None:
        if unit.message is None and not unit.weights:
            unit.message = self.empty(self.padded(unit.parameters), "gathered weights")

    def gather(self, unit: Unit) -> None:
        if unit.weights:
            return
        self.send(unit)
        self.held = None
        unit.weights = [self.empty(self.padded([p]), "gathered weights") for p in unit.parameters]
        if not self.backward:
            self.held = unit.message
        unit.message = None

    def accumulate(self) -> None:
        """There are gradients of parts before."""
        for unit in self.units:
            for p in unit.parameters:
                self.rows[p] = self.empty(own_rows(p.shape, self.group), "gradients", torch.float32)

    def start(self) -> None:
        """To be called before the loss."""
        self.gather(self.root)

    def turn(self) -> None:
        """To be called between the loss and its backward pass."""
        self.held, self.backward = None, True

    def finish(self) -> None:
        """To be called after the backward pass."""
        for unit in (*self.order, self.root):
            self.reduce(unit)
        self.reduced = None

    def before(self, unit: Unit) -> None:
        self.gather(unit)

    def after(self, unit: Unit, out: Any) -> None:
        if self.backward:  # computed again: its backward pass follows
            return
        unit.weights = []
        self.order.append(unit)
        place = len(self.order) - 1
        for tensor in tensors_in(out):
            if tensor.requires_grad:
                tensor.register_hook(lambda _: self.enter(place))

    def enter(self, place: int) -> None:
        """The backward pass comes to the unit that ran at this place."""
        self.gather(self.order[place])
        if place:
            self.send(self.order[place - 1])

    def gradient(self, parameter: nn.Parameter, unit: Unit) -> None:
        parameter.grad = None
        unit.gradients.append(self.empty(parameter.numel(), "gradients"))
        if unit is not self.root and len(unit.gradients) == len(unit.parameters):
            self.reduce(unit)

    def reduce(self, unit: Unit) -> None:
        unit.weights, unit.message = [], None
        if not unit.gradients:
            return
        self.reduced = None
        self.reduced = self.empty(self.padded(unit.parameters), "gradients", torch.float32)
        unit.gradients = []
        rows = [self.empty(own_rows(p.shape, self.group), "gradients", torch.float32) for p in unit.parameters]
        for parameter, own in zip(unit.parameters, rows, strict=True):
            self.rows.setdefault(parameter, own)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of what a module returns."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [tensor for one in value for tensor in tensors_in(one)] if isinstance(value, (tuple, list)) else []
