"""Checkpoints of sharded runs: each process writes its rows while training goes on, and any number of processes reads.

PyTorch's distributed checkpoints (DCP) plan who writes and who reads what; files are safetensors, one for each part and
process, whose headers say where their rows belong. What makes a checkpoint whole is that of `run_checkpoint`: a folder
of another name, synced, hashed, read back, and renamed by the main process after all processes have written.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor

from diptych.core.disk import disk_errors, replacing
from diptych.core.errors import UserError
from diptych.training import run_checkpoint as checkpoint
from diptych.training.background_saves import BackgroundSaves, Parts
from diptych.training.distributed import Team

T = TypeVar("T")


class ShardedSaves(BackgroundSaves):
    """Writes checkpoints of a sharded run, in a thread of each process. To be called in all processes."""

    def __init__(self, team: Team, mesh: DeviceMesh) -> None:
        """mesh: that of the sharded tensors."""
        super().__init__(team)
        self.group = cast(dist.ProcessGroup, dist.new_group(backend="gloo"))  # training communicates meanwhile
        self.mesh = mesh
        if team.device.type != "cpu":
            self.mesh = init_device_mesh("cpu", tuple(mesh.shape), mesh_dim_names=mesh.mesh_dim_names)

    def save(self, folder: Path, step: int, parts: Parts, state: Mapping[str, Any], keep: int = 2) -> None:
        self.wait()
        copies = {part: {n: self.staged(f"{part}/{n}", t) for n, t in parts[part].items()} for part in parts}
        self.begin(step, lambda: self.write(folder, step, copies, state, keep))

    def check(self, together: bool) -> None:
        if together and any(self.team.gather(self.error is not None)):
            self.wait()  # an error is all threads', but not in the same step

    def staged(self, key: str, tensor: Tensor) -> Tensor:
        """A copy on the CPU, of a sharded tensor this process's rows."""
        if not isinstance(tensor, DTensor):
            return self.copied(key, tensor)
        local = self.copied(key, cast(DTensor, tensor.detach()).to_local())
        return DTensor.from_local(
            local, self.mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
        )

    def write(self, folder: Path, step: int, parts: Parts, state: Mapping[str, Any], keep: int) -> None:
        target, main = folder / f"step-{step:08d}", self.team.main
        tensors = {f"{part}/{name}": tensor for part in parts for name, tensor in parts[part].items()}
        files = {f"{part}/{name}": number for number, part in enumerate(parts, start=1) for name in parts[part]}
        with contextlib.ExitStack() as stack:

            def begin() -> Path | None:
                if not main or checkpoint.fault(target) is None:  # a whole one of this step is never put at risk
                    return None
                partial = stack.enter_context(replacing(target, checkpoint.CHECKPOINT))
                partial.mkdir()
                return partial

            partial = self.together(begin)[0]
            if partial is not None:
                writer = HuggingFaceStorageWriter(str(partial), files, save_distributed=True)
                with disk_errors(target):
                    try:
                        save(tensors, storage_writer=writer, process_group=self.group)
                    except CheckpointException as failed:  # in all processes
                        raise next(iter(failed.failures.values()))[0] from failed
                mine = f"shard-{dist.get_rank(self.group) + 1:05d}-"
                written = self.together(lambda: checkpoint.sizes_and_hashes(partial, f"{mine}*"))

                def finish() -> None:
                    if not main:
                        return
                    (partial / checkpoint.STATE).write_text(json.dumps({**state, "step": step}, indent=2) + "\n")
                    entries = {name: entry for each in written for name, entry in each.items()}
                    entries |= checkpoint.sizes_and_hashes(partial, checkpoint.STATE)
                    checkpoint.seal(partial, target, entries)
                    stack.close()  # renames

                self.together(finish)
            self.together(lambda: checkpoint.prune(folder, target, keep) if main else None)

    def together(self, action: Callable[[], T]) -> list[T]:
        """What `action` gives in each process. Where it failed in one, the error is raised in all."""
        try:
            mine = (action(), None)
        except Exception as error:
            mine = (None, str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}")
        every: list[Any] = [None] * self.team.size
        dist.all_gather_object(every, mine, group=self.group)
        if problems := [problem for _, problem in every if problem is not None]:
            raise UserError(problems[0])
        return [value for value, _ in every]
