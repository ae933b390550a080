"""Adafactor (Shazeer & Stern 2018) as optax has it, whose defaults trained Imagen's base: little state, kernels too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

SMALLEST_FACTORED = 128
"""A parameter is factored if its two largest dimensions are both at least so large."""
DECAY = 0.8
"""c of beta2(t) = 1 - t^-c (section 7.2)."""
SQUARE_EPS = 1e-30
"""Added to squared gradients (eps 1 of the paper's algorithm 4)."""
LEAST_SCALE = 1e-3
"""Least root mean square by which a parameter's step is scaled (eps 2)."""
LARGEST_UPDATE = 1.0
"""Root mean square to which an update is clipped (d, section 6)."""


class Rows(NamedTuple):
    """What a parameter is of which a process has some rows."""

    shape: torch.Size
    """Of the whole."""
    group: Any
    """The processes that have all rows together, each its own."""


class Adafactor(Optimizer):
    """Second moments from two vectors a matrix, clipped updates, steps relative to the size of what they change.

    The moments of a parameter with two dimensions of 128 or more are factored over the two largest of all its
    dimensions: a 3x3 kernel (out, in, 3, 3) keeps 9 (out + in) numbers. PyTorch's own factors the last two, which are
    the taps of a kernel, and so keeps (out, in, 6): two thirds of a number a weight, where a 1x1 kernel keeps two.
    Smaller parameters keep every moment. There is no first moment.

    As in optax's `adafactor` at its defaults, but for weight decay, which is decoupled and scaled by `lr` as AdamW's.
    `lr` is relative: with 1e-4 a parameter moves by up to 1e-4 of its root mean square, or of 1e-3 where that is less.
    As in PyTorch's fused optimizers, a tensor `found_inf` () of 1.0 lets a step change nothing.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-2,
        weight_decay: float = 0.0,
        rows: Mapping[Tensor, Rows] | None = None,
    ) -> None:
        """rows: the parameters of which there are some rows here, and others in other processes: what is averaged over
        rows is averaged over all of them."""
        self.rows = dict(rows or {})
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    kept = self._copies(parameter)
                    self._move(parameter, parameter.grad.float(), group["lr"], group["weight_decay"])
                    for tensor, before in kept:
                        tensor.copy_(torch.where(self.found_inf != 0, before, tensor))
        return loss

    def _copies(self, parameter: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The parameter and its moments with copies, where a step may have to leave them as they were."""
        if self.found_inf is None:
            return []
        moments = [value for name, value in self._state(parameter).items() if name != "step"]
        return [(tensor, tensor.clone()) for tensor in (parameter, *moments)]

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        if not (state := self.state[parameter]):
            state["step"] = torch.zeros(())
            rows = self.rows.get(parameter)
            shapes = moment_shapes(parameter.shape) if rows is None else moment_shapes(rows.shape, len(parameter))
            state.update({name: parameter.new_zeros(shape, dtype=torch.float32) for name, shape in shapes.items()})
        return state

    def _move(self, parameter: Tensor, gradient: Tensor, lr: float, weight_decay: float) -> None:
        state, rows = self._state(parameter), self.rows.get(parameter)
        state["step"] += 1
        fresh = state["step"].item() ** -DECAY  # 1 - beta2: 1 at the first step
        square = gradient.square() + SQUARE_EPS
        axes = factored_axes(parameter.shape if rows is None else rows.shape)
        if axes is None:
            update = gradient * state["moment"].lerp_(square, fresh).rsqrt()
        else:
            row, column = (state[name].lerp_(_mean(square, axis, rows), fresh) for name, axis in _means(axes))
            # moment = row x column / mean of the rows, of each tap of a kernel
            update = gradient * (row / _mean(row, axes[0], rows)).rsqrt_() * column.rsqrt()
        del square
        update /= (_rms(update, rows) / LARGEST_UPDATE).clamp(min=1.0)
        scale = _rms(parameter.float(), rows).clamp(min=LEAST_SCALE)
        if weight_decay:
            parameter.mul_(1 - lr * weight_decay)
        parameter.sub_((lr * scale * update).to(parameter))


def factored_axes(shape: torch.Size) -> tuple[int, int] | None:
    """The axes of the second largest and of the largest dimension, or none where those are too small to be factored."""
    order = sorted(range(len(shape)), key=lambda axis: shape[axis])
    if len(order) < 2 or shape[order[-2]] < SMALLEST_FACTORED:
        return None
    return order[-2], order[-1]


def moment_shapes(shape: torch.Size, rows: int | None = None) -> dict[str, torch.Size]:
    """The moments that are kept of a parameter of that shape, or of so many rows of it, by name; the mean over an axis
    leaves it 1 long."""
    here = shape if rows is None else torch.Size([rows, *shape[1:]])
    if (axes := factored_axes(shape)) is None:
        return {"moment": here}
    return {name: torch.Size([1 if i == axis else n for i, n in enumerate(here)]) for name, axis in _means(axes)}


def _means(axes: tuple[int, int]) -> tuple[tuple[str, int], tuple[str, int]]:
    """Rows are means over the largest dimension, columns over the second largest."""
    return ("row", axes[1]), ("column", axes[0])


def _mean(values: Tensor, axis: int, rows: Rows | None) -> Tensor:
    """The mean over an axis, which is 1 long then; over rows of those of all processes."""
    if rows is None or axis != 0:
        return values.mean(axis, keepdim=True)
    total = values.sum(0, keepdim=True)
    dist.all_reduce(total, group=rows.group)
    return total / rows.shape[0]


def _rms(values: Tensor, rows: Rows | None) -> Tensor:
    if rows is None:
        return values.square().mean().sqrt()
    total = values.square().sum()
    dist.all_reduce(total, group=rows.group)
    return (total / rows.shape.numel()).sqrt()


def translated(state: Mapping[str, Tensor], shape: torch.Size) -> dict[str, Tensor]:
    """A parameter's state as PyTorch's Adafactor keeps it, which diptych used before, as ours; ours as it is.

    What that factored over the last two dimensions is multiplied out, and averaged along ours.
    """
    if "variance" in state:
        moment = state["variance"]
    elif "row_var" in state:
        row, column = state["row_var"], state["col_var"]
        moment = row * column / row.mean(-2, keepdim=True).clamp(min=SQUARE_EPS)
    else:
        return dict(state)
    axes = factored_axes(shape)
    if axes is None:
        return {"step": state["step"], "moment": moment}
    return {"step": state["step"], **{name: moment.mean(axis, keepdim=True) for name, axis in _means(axes)}}
