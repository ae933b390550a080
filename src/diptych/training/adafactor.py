"""Adafactor (Shazeer & Stern 2018) as optax has it, whose defaults trained Imagen's base: little state, kernels too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
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
        self, params: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float = 1e-2, weight_decay: float = 0.0
    ) -> None:
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
            shapes = moment_shapes(parameter.shape)
            state.update({name: parameter.new_zeros(shape, dtype=torch.float32) for name, shape in shapes.items()})
        return state

    def _move(self, parameter: Tensor, gradient: Tensor, lr: float, weight_decay: float) -> None:
        state = self._state(parameter)
        state["step"] += 1
        fresh = state["step"].item() ** -DECAY  # 1 - beta2: 1 at the first step
        square = gradient.square() + SQUARE_EPS
        axes = factored_axes(parameter.shape)
        if axes is None:
            update = gradient * state["moment"].lerp_(square, fresh).rsqrt()
        else:
            row, column = (state[name].lerp_(square.mean(axis, keepdim=True), fresh) for name, axis in _means(axes))
            # moment = row x column / mean of the rows, of each tap of a kernel
            update = gradient * (row / row.mean(axes[0], keepdim=True)).rsqrt_() * column.rsqrt()
        del square
        update /= (_rms(update) / LARGEST_UPDATE).clamp(min=1.0)
        scale = _rms(parameter.float()).clamp(min=LEAST_SCALE)
        if weight_decay:
            parameter.mul_(1 - lr * weight_decay)
        parameter.sub_((lr * scale * update).to(parameter))


def factored_axes(shape: torch.Size) -> tuple[int, int] | None:
    """The axes of the second largest and of the largest dimension, or none where those are too small to be factored."""
    order = sorted(range(len(shape)), key=lambda axis: shape[axis])
    if len(order) < 2 or shape[order[-2]] < SMALLEST_FACTORED:
        return None
    return order[-2], order[-1]


def moment_shapes(shape: torch.Size) -> dict[str, torch.Size]:
    """The moments that are kept of a parameter of that shape, by name; the mean over an axis leaves it 1 long."""
    if (axes := factored_axes(shape)) is None:
        return {"moment": shape}
    return {name: torch.Size([1 if i == axis else n for i, n in enumerate(shape)]) for name, axis in _means(axes)}


def _means(axes: tuple[int, int]) -> tuple[tuple[str, int], tuple[str, int]]:
    """Rows are means over the largest dimension, columns over the second largest."""
    return ("row", axes[1]), ("column", axes[0])


def _rms(values: Tensor) -> Tensor:
    return values.square().mean().sqrt()


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
