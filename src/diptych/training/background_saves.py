"""Checkpoints written in a thread, one at a time, from a copy in the host's memory, while training goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.core.devices import free_memory
from diptych.core.terminal import print_err
from diptych.training import run_checkpoint as checkpoint
from diptych.training.distributed import Team

Parts = Mapping[str, Mapping[str, Tensor]]
"""The tensors of each part of a checkpoint, by their names."""
ROOM = 2
"""A copy is made where so many times its size are free: other things want memory too."""


class BackgroundSaves:
    """Writes checkpoints of what the main process has whole."""

    def __init__(self, team: Team) -> None:
        self.team = team
        self.thread: threading.Thread | None = None
        self.error: BaseException | None = None
        self._copies: dict[str, Tensor] = {}  # memory that is had once costs a tenth of the time that new memory does
        self._warned = False

    def save(self, folder: Path, step: int, parts: Parts, state: Mapping[str, Any], keep: int = 2) -> None:
        """Copy the tensors, and begin to write `folder/step-...` as `run_checkpoint.save` does; where the host has no
        memory for a copy, write it at once. What went wrong with the one before is raised here, or in `wait`."""
        self.wait()
        if not self.team.main:
            return
        if self._room_for(parts):
            copies = {part: {n: self.copied(f"{part}/{n}", t) for n, t in parts[part].items()} for part in parts}
            self.begin(step, lambda: self.write(folder, step, copies, state, keep))
        else:
            self.write(folder, step, parts, state, keep)

    def write(self, folder: Path, step: int, parts: Parts, state: Mapping[str, Any], keep: int) -> None:
        """In the thread: write, read back, rename, remove older ones."""
        checkpoint.save(folder, step, parts, state, keep)

    def begin(self, step: int, write: Callable[[], None]) -> None:
        """Let a thread write."""

        def run() -> None:
            try:
                write()
            except (
                BaseException
            ) as error:  # raised in `wait`; that of PyTorch's distributed checkpoints is no Exception
                self.error = error

        self.thread = threading.Thread(target=run, name=f"checkpoint {step}", daemon=True)
        self.thread.start()

    def check(self, together: bool) -> None:
        """Raise what went wrong, where it is known by now. To be called in all processes after each step; together: in
        this one they wait for each other, at the end of a reporting interval."""
        if self.error is not None:
            self.wait()

    def wait(self) -> None:
        """Return when no checkpoint is being written. Raises a `UserError` where one could not be."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    def close(self) -> None:
        """Let what was begun come to its end when the run stops for another reason; if it fails too, a line says so."""
        if self.thread is not None:
            self.thread.join()
        if self.error is not None and self.team.main:
            print_err(f"and the last checkpoint could not be written: {self.error}")

    def copied(self, key: str, tensor: Tensor) -> Tensor:
        """A copy in the memory of the host, which the next one with that key overwrites."""
        kept = self._copies.get(key)
        if kept is None or kept.shape != tensor.shape or kept.dtype != tensor.dtype:
            kept = self._copies[key] = torch.empty(tensor.shape, dtype=tensor.dtype)
        return kept.copy_(tensor.detach())

    def _room_for(self, parts: Parts) -> bool:
        if self._copies or (free := free_memory()) is None:
            return True
        size = sum(tensor.nbytes for part in parts.values() for tensor in part.values())
        if size * ROOM <= free:
            return True
        if not self._warned:
            self._warned = True
            print_err(
                f"training waits while a checkpoint is written: {free / 2**30:.1f} GiB of memory are free, too little "
                f"for a copy of {size / 2**30:.1f} GiB"
            )
        return False
