"""A run never goes on, and nothing of it is kept, from numbers that are not finite."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from diptych.core.errors import UserError
from diptych.training.distributed import Team
from diptych.training.parallel import Replicated


class Taken(NamedTuple):
    """What is kept of a step until the host knows what came of it."""

    step: int
    """From 0."""
    rate: float
    """The learning rate."""
    parts: Sequence[tuple[list, Tensor]]
    """Of each part of this process's batch, the keys of its examples and their losses (B,)."""


def stop_not_finite(taken: Taken, loss: float, norm: float, module: nn.Module | Replicated, team: Team) -> NoReturn:
    """Stop, the weights as they were before that step, on all processes, and say which examples were in the batch; or,
    where the step before left weights that are not finite, that."""
    step, parts = taken.step, taken.parts
    require_finite_state(step, module, {}, {})
    bad = [str(key) for keys, losses in parts for key, x in zip(keys, losses.tolist(), strict=True) if x - x != 0]
    every = [str(key) for keys, _ in parts for key in keys]
    chain = itertools.chain.from_iterable
    keys = list(chain(team.gather(bad))) or list(chain(team.gather(every)))
    listed = ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
    raise UserError(
        f"step {step + 1}: loss {loss} with gradient norm {norm} is not finite; stopped before the weights "
        f"changed. Batch: {listed}. Lower training.learning_rate, or look at these images"
    )


def require_finite_state(
    step: int,
    module: nn.Module | Replicated,
    average: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    read: Path | None = None,
) -> None:
    """Raise a `UserError` where what a checkpoint would hold is not finite (`not_finite`), or what one did hold that
    was read. It is the same in all processes."""
    parallel = Replicated.of(module)
    if not (what := parallel.agree(not_finite(parallel, average, optimizer))):
        return
    if read is not None:
        raise UserError(
            f"in {read} {what} NaN or Inf, which earlier versions did save: move that folder away, and the run goes on "
            "from the checkpoint before"
        )
    raise UserError(
        f"after step {step} {what} NaN or Inf: the run stops, and the checkpoint before stays as it is. Train in "
        "another folder with a lower training.learning_rate (or training.precision=fp32)"
    )


@torch.no_grad()
def not_finite(parallel: Replicated, average: Mapping[str, Tensor], optimizer: Mapping[str, Tensor]) -> str | None:
    """The weights, their average, state of the optimizer or buffer that hold NaN or Inf, as "the weights x hold"; of a
    buffer, which may be a mask, NaN alone."""
    module = parallel.module
    weights = dict(module.named_parameters())
    averages = {name: tensor for name, tensor in average.items() if name in weights}
    parts = {"weights": weights, "averaged weights": averages, "moments": optimizer}
    named = {
        f"the {of} {name} hold": parallel.local(tensor)
        for of, tensors in parts.items()
        for name, tensor in tensors.items()
        if tensor.is_floating_point()
    }
    if not sums_finite(list(named.values())):  # or there are finite values whose sum is too large
        for what, tensor in named.items():
            if not torch.isfinite(tensor).all():
                return what
    return next((f"the buffer {name} holds" for name, tensor in module.named_buffers() if tensor.isnan().any()), None)


def sums_finite(tensors: Sequence[Tensor]) -> bool:
    """Whether the sum of each is finite, which it is not where a value is not: read in a tenth of the time of
    `isfinite`, and a device is waited for once."""
    sums: dict[torch.device, list[Tensor]] = {}
    for tensor in tensors:
        sums.setdefault(tensor.device, []).append(tensor.sum().float())
    return all(bool(torch.stack(each).isfinite().all()) for each in sums.values())
