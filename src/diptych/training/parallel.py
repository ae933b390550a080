"""Where weights, gradients, averages and the optimizer's state lie: whole in each process, or a part in each.

Parallelism is applied to any model from outside, here and in `sharding`. The optimizer, the average and checkpoints see
names and plain tensors, whichever it is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from diptych.core.errors import UserError
from diptych.training.adafactor import Rows
from diptych.training.distributed import Team
from diptych.training.gradients import GradientSum
from diptych.training.run_checkpoint import Checkpoint
from diptych.training.training_config import TrainingConfig
from diptych.weights.lazy import load_into

T = TypeVar("T")
ALONE = Team(0, 1, torch.device("cpu"))


class Replicated:
    """All that is trained is whole in each process; gradients are summed over them."""

    def __init__(self, module: nn.Module, team: Team = ALONE) -> None:
        self.module, self.team = module, team
        self.trained: dict[str, nn.Parameter] = {n: p for n, p in module.named_parameters() if p.requires_grad}
        """What the optimizer changes, by the names of the module's parameters."""
        self.gradients = GradientSum(self.summed(), team.device) if team.size > 1 else None

    @classmethod
    def of(cls, module: nn.Module | Replicated) -> Replicated:
        return module if isinstance(module, Replicated) else cls(module)

    def whole(self, name: str) -> Tensor:
        """The parameter of that name as the module has it, whose shape is that of the whole."""
        return self.trained[name]

    def row_groups(self) -> dict[Tensor, Rows]:
        """The parameters in `trained` that are but some rows of the module's."""
        return {}

    def summed(self) -> list[nn.Parameter]:
        """Those in `trained` whose gradients `sum_gradients` sums; those of others are sums after the backward pass."""
        return list(self.trained.values())

    def run(self, loss: Callable[[], T], last: bool = True) -> T:
        """What `loss()` gives, of a part of a step. last: whether it is the step's last, and so its gradients may be
        summed as they are made."""
        if last and self.gradients is not None:
            self.gradients.begin()
        return loss()

    def sum_gradients(self, extras: Tensor) -> Tensor:
        """Sum the gradients in `trained` over the processes, and return the sum of `extras` (N,)."""
        return extras if self.gradients is None else self.gradients.finish(extras)

    def clip_gradients(self, most: float) -> Tensor:
        """The norm () of all gradients together, before they are scaled down to `most`. It may be NaN or infinite."""
        return self.team.clip_gradients(list(self.trained.values()), most)

    def state(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        """The module's state dict with these values in place of `trained`, in the order of that."""
        found = {id(self.whole(name)): self.like(value, name) for name, value in zip(self.trained, values, strict=True)}
        state: dict[str, Tensor] = dict(self.module.state_dict(keep_vars=True))  # type: ignore[arg-type]
        return {key: found.get(id(value), value.detach()) for key, value in state.items()}

    def like(self, value: Tensor, name: str, shape: torch.Size | None = None) -> Tensor:
        """What a process has of a parameter, or of a tensor of `shape` that belongs to it, as a checkpoint has it."""
        return value

    def local(self, value: Tensor) -> Tensor:
        """What this process has of a tensor of the module or of a checkpoint."""
        return value

    def own(self, value: Tensor, name: str) -> Tensor:
        """What this process needs of a tensor of a checkpoint that belongs to the parameter of that name."""
        return value

    def read(self, found: Checkpoint, part: str) -> Mapping[str, Tensor]:
        """The tensors of a part of a checkpoint: whole, or where it is sharded as this is, what this process needs."""
        return found.load(part)

    def load(self, tensors: Mapping[str, Tensor], source: str) -> None:
        """Copy a state dict into the module. A `UserError` where it is another's."""
        load_into(self.module, tensors, source)

    def fill(self, tensor: Tensor, value: Tensor) -> None:
        """Copy into a tensor of the module, or of its average, what this process needs of one of a checkpoint."""
        tensor.copy_(value)

    def agree(self, what: str | None) -> str | None:
        """What some process has found, for all of them to act on; what all find alike is not asked for."""
        return what

    @contextlib.contextmanager
    def holding(self, values: Sequence[Tensor], saving: bool = False) -> Iterator[None]:
        """Within, the module has these values in place of `trained`, in the order of that. To be entered in all
        processes. saving: only the main process needs them, in its memory."""
        parameters = list(self.trained.values())
        originals = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            torch._foreach_copy_(parameters, list(values))  # pyright: ignore
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(parameters, originals)  # pyright: ignore


def shard_group(config: TrainingConfig, team: Team) -> int | None:
    """How many processes hold one copy together; none where each has its own. A `UserError` where the processes of a
    run cannot be grouped so, or would not all have the same number of parts of a batch: they gather weights together,
    part by part."""
    if config.shard == "no" or team.size == 1:
        return None
    if team.size * config.accumulation > config.batch_size:
        raise UserError(
            f"training.shard={config.shard} needs an image for each part of each process: {team.size} processes with "
            f"training.accumulation={config.accumulation}, and training.batch_size is only {config.batch_size}"
        )
    if config.shard == "fsdp":
        return team.size
    local = int(os.environ.get("LOCAL_WORLD_SIZE", team.size))
    group = config.shard_group or local
    if group < 2 or team.size % group:
        stated = f"training.shard_group={group}" if config.shard_group else f"the {group} of this machine"
        raise UserError(
            f"training.shard=hsdp divides the {team.size} processes into groups of equal size, at least 2, that hold a "
            f"copy together, which {stated} does not: set training.shard_group, or training.shard=fsdp"
        )
    return group
