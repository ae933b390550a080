"""A process is killed, or a disk full or failing, while a sharded checkpoint is written: the one before it
stays, each process says what happened, and the same command goes on to the same model."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint import filesystem
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from diptych.training import run_checkpoint as checkpoint
from diptych.training.sharded_checkpoint import ShardedSaves
from tests.training.processes import processes
from tests.training.test_sharding import same
from tests.training.toy_blocks import many, run

STEP = 4
"""The checkpoint of this step is the second."""


def die(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail_to_sync(descriptor: int, sync: Callable[[int], None] = os.fsync) -> None:
    """Of checkpoints, which a thread writes; the main one writes other files meanwhile."""
    if threading.current_thread() is threading.main_thread():
        return sync(descriptor)
    raise OSError(errno.EIO, os.strerror(errno.EIO))


class FullFile(io.FileIO):
    """Of which a little can be written."""

    def write(self, data: Any) -> int:
        super().write(data[:100])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextlib.contextmanager
def full_disk(_: Any, path: Path | str, mode: str) -> Iterator[io.FileIO]:
    with FullFile(path, mode) as file:
        yield file


FAULTS = {
    "killed-writing": (HuggingFaceStorageWriter, "write_data", die),
    "killed-hashing": (checkpoint, "sizes_and_hashes", die),
    "full": (filesystem.FileSystem, "create_stream", full_disk),
    "failing": (os, "fsync", fail_to_sync),
}
SAID = {"full": "disk is full", "failing": os.strerror(errno.EIO)}


def meet(patch: pytest.MonkeyPatch, fault: str) -> None:
    """Let this process meet a fault, from the moment when its thread begins to write the checkpoint of `STEP`."""
    write = ShardedSaves.write

    def writing(saves: ShardedSaves, folder: Path, step: int, *rest: Any) -> None:
        if step == STEP:
            patch.setattr(*FAULTS[fault])
        write(saves, folder, step, *rest)

    patch.setattr(ShardedSaves, "write", writing)


def fall(folder: str, faults: list[tuple[str, int]], environment: dict[str, str]) -> None:
    """Runs with a fault in one process each, of which every process notes what it says."""
    os.environ.update(environment)
    torch.set_num_threads(1)
    rank = int(environment["RANK"])
    if len(faults) > 1:
        dist.init_process_group("gloo")
    for fault, where in faults:
        with pytest.MonkeyPatch.context() as patch:
            if rank == where:
                meet(patch, fault)
            said = run(Path(folder, f"{fault}-{where}"), shard="fsdp")
        Path(folder, f"{fault}-{where}.{rank}.txt").write_text(str(said))
    if len(faults) > 1:
        dist.destroy_process_group()


@pytest.mark.slow
def test_faults_while_a_checkpoint_is_written(tmp_path: Path) -> None:
    assert run(tmp_path / "alone") is None
    kills = [("killed-writing", 0), ("killed-writing", 1), ("killed-hashing", 0), ("killed-hashing", 1)]
    for fault, where in kills:
        codes = processes(2, fall, str(tmp_path), [(fault, where)])
        assert codes[where] == -signal.SIGKILL and codes[1 - where] == 0, codes
        said = (tmp_path / f"{fault}-{where}.{1 - where}.txt").read_text()
        assert "another process of the run has stopped" in said and "\n" not in said
    disks = [(fault, where) for fault in SAID for where in (0, 1)]
    assert processes(2, fall, str(tmp_path), disks) == [0, 0]
    for fault, where in disks:
        for rank in (0, 1):
            said = (tmp_path / f"{fault}-{where}.{rank}.txt").read_text()
            assert SAID[fault] in said and "\n" not in said, (fault, where, rank, said)
        left = [path.name for path in (tmp_path / f"{fault}-{where}" / "checkpoints").iterdir()]
        assert left == ["step-00000002"], (fault, where, left)
    folders = [tmp_path / f"{fault}-{where}" for fault, where in (*kills, *disks)]
    for folder in folders:
        found = checkpoint.latest(folder / "checkpoints")
        assert found is not None and found.step == 2, folder
    assert processes(2, many, [(str(folder), {"shard": "fsdp"}, None) for folder in folders]) == [0, 0]
    for folder in folders:
        same(folder, tmp_path / "alone")
        assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-00000004", "step-00000006"]
