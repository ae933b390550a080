"""What stops one process of a run, said in one line: a device without memory, and another process that stopped."""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator

from diptych.core.errors import UserError
from diptych.core.memory_use import lacks_memory
from diptych.training.distributed import Team
from diptych.training.training_config import TrainingConfig

LOST = re.compile(r"connection (closed|reset|refused)|broken pipe|remote process exited|socket timeout", re.IGNORECASE)
"""What gloo and NCCL say where another process is gone."""


@contextlib.contextmanager
def named_faults(team: Team, config: TrainingConfig) -> Iterator[None]:
    """Turn a lack of memory into a `UserError` that says where, and what needs less; and of processes that wait for one
    that stopped, what they do then. Checkpoints stay as they are."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # of which torch.OutOfMemoryError is one
        here = f"process {team.rank} of {team.size} on {socket.gethostname()}"
        if lacks_memory(error):
            raise UserError(f"{here} has no memory left on {team.device}: {remedies(team, config)}") from error
        if team.size > 1 and LOST.search(str(error)):
            raise UserError(
                f"{here} ends, since another process of the run has stopped, whose own line says why; the last "
                "checkpoint stays, and the same command goes on from it"
            ) from error
        raise


def remedies(team: Team, config: TrainingConfig) -> str:
    """What needs less memory than these settings."""
    share = -(-config.batch_size // (team.size * config.accumulation))
    less = [f"raise training.accumulation (now {config.accumulation}: {share} images at once)"] if share > 1 else []
    if config.activation_checkpointing == "no":
        less.append("set training.activation_checkpointing=blocks")
    if config.shard == "no":
        less.append("train under torchrun with training.shard=fsdp")
    less.append("lower training.batch_size" if share > 1 else "use smaller images or a smaller network")
    return f"{', or '.join(less)}. The last checkpoint stays, and the same command goes on from it"
