"""Optimizers by name, and optimizer state without pickle."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Adam, AdamW, Optimizer

from diptych.core.errors import UserError
from diptych.training.adafactor import Adafactor, moment_shapes, translated
from diptych.training.parallel import Replicated
from diptych.training.training_config import TrainingConfig

FUSED_DEVICES = ("cpu", "cuda", "mps", "xpu")


def build_optimizer(module: nn.Module | Replicated, config: TrainingConfig) -> Optimizer:
    """An optimizer over the parameters that want a gradient.

    Weight decay is for matrices and kernels: biases and norms (fewer than two dimensions) get none, unless
    `config.decayed` is `all`. Adafactor keeps little more than two vectors a matrix or kernel, and ignores `betas`.
    """
    parallel = Replicated.of(module)
    parameters = list(parallel.trained.values())
    if not parameters:
        kind = type(parallel.module).__name__
        raise UserError(f"{kind} has no parameter that wants a gradient: there is nothing to train")
    small = config.weight_decay if config.decayed == "all" else 0.0
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": small},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adafactor":
        return Adafactor(groups, lr=config.learning_rate, rows=parallel.row_groups())
    kind = {"adamw": AdamW, "adam": Adam}[config.optimizer]
    fused = all(p.device.type in FUSED_DEVICES and p.is_floating_point() for p in parameters)
    return kind(groups, lr=config.learning_rate, betas=config.betas, fused=fused)


def skip_unless_finite(optimizer: Optimizer, *numbers: Tensor) -> None:
    """Let this step and all later ones change no weight and no moment, if one of the numbers () is not finite when the
    device comes to it. Fused optimizers know it by what `GradScaler` tells them, and `Adafactor` reads that too."""
    now = (~torch.stack(numbers).isfinite().all()).float()
    before = getattr(optimizer, "found_inf", None)
    optimizer.found_inf = now if before is None else torch.maximum(before, now)  # type: ignore[attr-defined]


def optimizer_tensors(optimizer: Optimizer, module: nn.Module | Replicated) -> dict[str, Tensor]:
    """The optimizer's state as flat tensors named `parameter/state`, for example `conv.weight/exp_avg`."""
    parallel, tensors = Replicated.of(module), dict[str, Tensor]()
    names = {id(p): name for name, p in parallel.trained.items()}
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        name, shapes = names[id(p)], state_shapes(optimizer, parallel.whole(names[id(p)]).shape)
        for key, value in optimizer.state.get(p, {}).items():
            value = value if isinstance(value, Tensor) else torch.tensor(value)
            tensors[f"{name}/{key}"] = parallel.like(value, name, shapes.get(key, value.shape))
    return tensors


def load_optimizer_tensors(optimizer: Optimizer, module: nn.Module | Replicated, tensors: Mapping[str, Tensor]) -> bool:
    """Put back what `optimizer_tensors` gave; whether it is PyTorch's Adafactor's and was made into ours. Raises a
    `UserError` for what is of another model or optimizer."""
    order = {id(p): i for i, p in enumerate(p for group in optimizer.param_groups for p in group["params"])}
    parallel = Replicated.of(module)
    index = {name: order[id(p)] for name, p in parallel.trained.items()}
    states: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, kind = key.rpartition("/")
        if name not in index:
            raise UserError(f"the optimizer state has {key!r}, but the model trains no parameter {name!r}")
        states.setdefault(name, {})[kind] = tensor
    state: dict[int, dict[str, Tensor]] = {}
    older = False
    for name, values in states.items():
        shape = parallel.whole(name).shape
        if isinstance(optimizer, Adafactor):
            values = translated(saved := values, shape)
            older |= values.keys() != saved.keys()
        shapes = {kind: value.shape for kind, value in values.items()}
        if shapes != (expected := state_shapes(optimizer, shape)):
            held, needed = (", ".join(f"{kind} {tuple(s)}" for kind, s in each.items()) for each in (shapes, expected))
            raise UserError(
                f"the optimizer state of {name!r} is that of another optimizer or model: it has {held}, not {needed}"
            )
        state[index[name]] = {kind: parallel.own(value, name) for kind, value in values.items()}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for parameter, kept in optimizer.state.items():
        for kind, value in kept.items():  # fused kernels go through the memory of both side by side
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                kept[kind] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    return older


def state_shapes(optimizer: Optimizer, shape: torch.Size) -> dict[str, torch.Size]:
    """What an optimizer that `build_optimizer` makes keeps of a parameter of that shape, once it took a step."""
    moments = moment_shapes(shape) if isinstance(optimizer, Adafactor) else {"exp_avg": shape, "exp_avg_sq": shape}
    return {"step": torch.Size(), **moments}
