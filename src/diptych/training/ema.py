"""Exponential moving average of the weights: what is validated, sampled from and saved."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


class EMA:
    """A float32 average of each trained parameter; buffers and frozen parameters are the module's own.

    After update number s (from 0): average += (1 - d) (weight - average) with d = decay, or, with `warmup`,
    d = min(decay, (1 + s) / (10 + s)), so that the first random weights are soon forgotten.
    """

    def __init__(self, module: nn.Module, decay: float, warmup: bool = True) -> None:
        self.module, self.decay, self.warmup = module, decay, warmup
        self.parameters = [p for p in module.parameters() if p.requires_grad]
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
        average = {id(p): a for p, a in zip(self.parameters, self.averages, strict=True)}
        state: dict[str, Tensor] = dict(self.module.state_dict(keep_vars=True))  # type: ignore[arg-type]
        return {key: average.get(id(value), value.detach()) for key, value in state.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the averages from what `state_dict` gave."""
        for key, tensor in self.state_dict().items():
            tensor.copy_(state[key])

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Inside the block the module has the averaged weights; afterwards, whatever happens, its own again."""
        originals = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.averages)  # pyright: ignore
        try:
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(self.parameters, originals)  # pyright: ignore
