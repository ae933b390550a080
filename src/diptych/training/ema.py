"""Exponential moving average of the weights: what is validated, sampled from and saved."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from diptych.training.parallel import Replicated


class EMA:
    """A float32 average of each trained parameter; buffers and frozen parameters are the module's own.

    After update number s (from 0): average += (1 - d) (weight - average) with d = decay, or, with `warmup`,
    d = min(decay, (1 + s) / (10 + s)), so that the first random weights are soon forgotten.
    """

    def __init__(self, module: nn.Module | Replicated, decay: float, warmup: bool = True) -> None:
        self.parallel, self.decay, self.warmup = Replicated.of(module), decay, warmup
        self.parameters = list(self.parallel.trained.values())
        self.averages = [p.detach().float().clone() for p in self.parameters]

    def decay_at(self, update: int) -> float:
        return min(self.decay, (1 + update) / (10 + update)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, update: int) -> None:
        """Move the averages towards the weights; `update` counts from 0."""
        weights = [p.detach().float() for p in self.parameters]
        torch._foreach_lerp_(self.averages, weights, 1 - self.decay_at(update))  # pyright: ignore

    def state_dict(self) -> dict[str, Tensor]:
        """The module's state dict with the averages in place of the trained parameters."""
        return self.parallel.state(self.averages)

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the averages from what `state_dict` gave."""
        for key, tensor in self.state_dict().items():
            self.parallel.fill(tensor, state[key])

    def swapped_in(self, saving: bool = False) -> contextlib.AbstractContextManager[None]:
        """Inside the block the module has the averaged weights; afterwards, whatever happens, its own again. saving: as
        of `Replicated.holding`."""
        return self.parallel.holding(self.averages, saving)
