"""A run never goes on, and nothing of it is kept, from numbers that are not finite."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import NoReturn

import torch
from torch import Tensor, nn

from diptych.errors import UserError
from diptych.training.distributed import Team


def refuse(
    step: int, loss: float, norm: float, seen: Sequence[tuple[list, Tensor]], module: nn.Module, team: Team
) -> NoReturn:
    """Stop before the weights are touched, on all processes, and say which examples were in the batch; or, where the
    step before has spoiled the weights, that.

    seen: of each part of the batch, the keys of its examples and their losses (B,).
    """
    require_finite(step, module, {})
    bad = [str(key) for keys, losses in seen for key, x in zip(keys, losses.tolist(), strict=True) if x - x != 0]
    every = [str(key) for keys, _ in seen for key in keys]
    chain = itertools.chain.from_iterable
    keys = list(chain(team.gather(bad))) or list(chain(team.gather(every)))
    listed = ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
    raise UserError(
        f"step {step + 1}: loss {loss} with gradient norm {norm} is not finite; stopped before the weights "
        f"changed. Batch: {listed}. Lower training.learning_rate, or look at these pictures"
    )


@torch.no_grad()
def require_finite(step: int, module: nn.Module, average: Mapping[str, Tensor]) -> None:
    """Raise a `UserError` where weights or their average hold NaN or Inf. They are the same in all processes."""
    names = dict(module.named_parameters())
    averaged = ((name, tensor) for name, tensor in average.items() if name in names)  # a buffer, a mask say, may be inf
    for name, tensor in itertools.chain(names.items(), averaged):
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(
                f"after step {step} the weights {name} hold NaN or Inf: the run stops, and the checkpoint before stays "
                "as it is. Lower training.learning_rate (or training.precision=fp32) and go on from there in a copy"
            )
