"""Several processes, one training run: torchrun starts them, each takes a slice of every batch, gradients are summed.

The loop divides the loss by the images of the whole batch, so the sum over processes is exactly the gradient of one
process with the whole batch, however unevenly the batch splits. Any `Trainable.loss` works; nothing is wrapped.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

from diptych.core.devices import find_device
from diptych.core.errors import UserError
from diptych.training.training_config import EXAMPLES, TrainingConfig

PATIENCE = timedelta(minutes=30)
"""How long processes wait for each other."""


@dataclass(frozen=True)
class Team:
    """This process among the processes of a run. With size 1 nothing here communicates."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def share(self, positions: Sequence[int]) -> list[int]:
        """This process's contiguous slice; sizes differ by at most one."""
        n = len(positions)
        return list(positions[self.rank * n // self.size : (self.rank + 1) * n // self.size])

    def parts(self, step: int, config: TrainingConfig) -> list[list[int]]:
        """This process's positions of a step's batch, in as many parts as there are accumulated."""
        size, parts = config.batch_size, config.accumulation
        mine = self.share(range(step * size, (step + 1) * size))
        split = [mine[i * len(mine) // parts : (i + 1) * len(mine) // parts] for i in range(parts)]
        return [part for part in split if part]

    def seed(self, seed: int, moment: int | str) -> None:
        """Seed PyTorch's own generators (dropout) from the run's seed, the moment and the process."""
        digest = hashlib.blake2b(f"{seed}/{moment}/{self.rank}".encode(), digest_size=7).digest()
        number = int.from_bytes(digest)
        torch.default_generator.manual_seed(number)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(number)  # torch.manual_seed prepares all devices, each time

    def clip_gradients(self, parameters: Sequence[nn.Parameter], most: float) -> Tensor:
        """The norm () of all `.grad` together, before they are scaled down to `most`. It may be NaN or infinite."""
        return nn.utils.clip_grad_norm_(parameters, most)

    def sum(self, values: dict[str, float]) -> dict[str, float]:
        """Sum numbers over the processes, key by key; a process that lacks a key counts as zero."""
        rows = self.gather(values)
        keys = list(dict.fromkeys(key for row in rows for key in row))
        return {key: sum(row.get(key, 0.0) for row in rows) for key in keys}

    def gather(self, value: Any) -> list[Any]:
        """The value of each process, in rank order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Sum tensors over the processes, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Overwrite tensors with those of the main process."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.detach(), src=0)

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


def require_same_data(team: Team, facts: Mapping[str, Any]) -> None:
    """Raise a `UserError`, in all processes, unless all have the same data: each reads its own copy, perhaps."""
    rows = team.gather((facts.get(EXAMPLES), socket.gethostname()))
    for rank, (found, host) in enumerate(rows):
        if found != rows[0][0]:
            other, first = (one["count"] if one else 0 for one in (found, rows[0][0]))
            raise UserError(
                f"process {rank} on {host} finds other data than process 0 on {rows[0][1]} ({other:,} examples, and "
                f"{first:,}): give all machines the same"
            )


def own_device(name: str = "auto") -> torch.device:
    """As `find_device`; of several CUDA devices the one of this process, which torchrun numbers."""
    chosen = find_device(name)
    if chosen.type == "cuda" and chosen.index is None:
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return chosen


def own_store(store: Store, rank: int, size: int, seconds: float) -> Store:
    """The part of a store that the processes started together share, and none of those before them.

    torchrun may keep the store when it starts all processes again: in it are the addresses of those that are gone, and
    who reads these before they are overwritten finds nobody there, or waits for ever. So the main process draws a name
    for this start, and gives it to whoever asks by a name that is its own.
    """
    if rank:
        asking = uuid.uuid4().hex
        store.set(f"asking/{rank}", asking)
        name = store.get(f"name-for/{asking}").decode()  # waits
        store.set(f"{name}/has/{rank}", "")
        return PrefixStore(name, store)
    name, without, until = uuid.uuid4().hex, set(range(1, size)), time.monotonic() + seconds
    while without:
        if time.monotonic() > until:
            raise UserError(f"of {size} processes these did not begin: {', '.join(map(str, sorted(without)))}")
        for other in list(without):
            if store.check([f"asking/{other}"]):  # it may be of an earlier start, and another one after it
                store.set(f"name-for/{store.get(f'asking/{other}').decode()}", name)
            if store.check([f"{name}/has/{other}"]):
                without.remove(other)
        time.sleep(0.01)
    return PrefixStore(name, store)


def join(rank: int, size: int, backend: str) -> None:
    """Begin to communicate with the other processes that torchrun started. A `UserError` where one is gone."""
    try:
        if kept_by_torchrun():
            store = own_store(_store(False), rank, size, PATIENCE.total_seconds())
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
        else:
            dist.init_process_group(backend, timeout=PATIENCE)
    except RuntimeError as error:  # of which those of sockets and stores are some
        raise UserError(_alone(rank, size, error)) from error


def kept_by_torchrun() -> bool:
    """Whether torchrun keeps the store, or else the first process does."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def _store(master: bool) -> TCPStore:
    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT", "")
    if not address or not port.isdecimal():
        raise UserError("WORLD_SIZE is set without MASTER_ADDR and MASTER_PORT: start all processes by torchrun")
    return TCPStore(address, int(port), is_master=master, wait_for_workers=False, timeout=PATIENCE)


def _alone(rank: int, size: int, error: RuntimeError) -> str:
    said = str(error).strip().splitlines()[0]
    return f"process {rank} of {size} finds the others of the run no longer, or not yet: {said}"


class Shares:
    """The processes that torchrun started, each with a share of one work, which the first goes on from when all is
    done. They compute nothing together: no collective runs, whose time would end however long a share takes."""

    def __init__(self, rank: int, size: int) -> None:
        """Raises a `UserError` where the others are not found."""
        self.rank, self.size = rank, size
        if size > 1:
            try:
                store = _store(master=not rank and not kept_by_torchrun())
                self._store = own_store(store, rank, size, PATIENCE.total_seconds())
            except RuntimeError as error:
                raise UserError(_alone(rank, size, error)) from error

    def done(self, progress: Callable[[], Any], patience: float = PATIENCE.total_seconds(), pause: float = 1.0) -> bool:
        """Say that this share is done. Returns, in the first process, once all are, whether it is the first.

        progress: a value that changes as long as others work.

        Raises a `UserError` where it has not changed for `patience` seconds. A process that ends by a mistake ends the
        others through torchrun, this one among them.
        """
        if self.size == 1:
            return True
        try:
            self._store.set(f"done/{self.rank}", "")
            seen, since, without = progress(), time.monotonic(), set(range(1, self.size))
            while self.rank == 0 and without:
                without -= {other for other in without if self._store.check([f"done/{other}"])}
                if without:
                    time.sleep(pause)
                    if (now := progress()) != seen:
                        seen, since = now, time.monotonic()
                    elif time.monotonic() - since > patience:
                        raise UserError(
                            f"of {self.size} processes, {', '.join(map(str, sorted(without)))} have done nothing for "
                            f"{patience / 60:g} minutes: give the same command again, which goes on"
                        )
        except RuntimeError as error:
            raise UserError(_alone(self.rank, self.size, error)) from error
        return self.rank == 0


@contextlib.contextmanager
def team(device: str = "auto") -> Iterator[Team]:
    """Join the processes that torchrun started (NCCL on CUDA, gloo on the CPU), or be a team of one."""
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    chosen = own_device(device)
    if chosen.type == "mps":  # which has no float64
        raise UserError("training runs on cpu or cuda: mps is for generating alone")
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if size == 1:
        yield Team(0, 1, chosen)
        return
    started = not dist.is_initialized()
    if started:
        join(rank, size, "nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield Team(rank, size, chosen)
    except BaseException:  # others may wait in NCCL for this process for ever, and so would an orderly end: it aborts
        started = started and chosen.type != "cuda"
        raise
    finally:
        if started:
            dist.destroy_process_group()
