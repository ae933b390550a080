"""Feature caching: what is deep in a U-Net changes little from step to step (DeepCache: Ma et al. 2023).

The outermost blocks run in every call, all that is beneath them in every N-th. A network has no state for it:
`FeatureCache` lives as long as one sampling.
"""

from __future__ import annotations

import copy
from typing import Any, Protocol, TypeVar

from torch import Tensor, nn

from diptych.networks.deep_cache import CutUNet, cut

D = TypeVar("D", bound="HasNetwork")
PLACE = "halves"
"""The attribute of a network that holds its halves."""


class HasNetwork(Protocol):
    """A denoiser."""

    network: Any


def halves_of(network: nn.Module) -> CutUNet:
    """The halves of a network, made once. Where an engine runs its `forward` (`diptych.engines.replace`), one of the
    same kind runs each of them. A `UserError` for a network that cannot be cut."""
    runner: Any = vars(network).get("forward")
    known = vars(network).get(PLACE)
    if known is None or known[0] is not runner:
        halves = cut(network)
        if hasattr(runner, "again"):
            for method in ("full", "shallow"):
                part = type(runner.part)(halves, method, f"{runner.part.name}, {method} pass")
                vars(halves)[method] = runner.again(part.loose())
        vars(network)[PLACE] = known = runner, halves  # no submodule: the state dict stays what it is
    known[1].training = network.training
    return known[1]


class FeatureCache(nn.Module):
    """A network of which every `interval`-th call is full and the others are shallow, in one sampling.

    A call with another number of rows than the one before, where guidance begins or ends within a sampling, is full.
    Gradients do not reach into what is cached.
    """

    def __init__(self, network: nn.Module, interval: int) -> None:
        super().__init__()
        self.network, self.interval = network, interval
        self.halves = [halves_of(network)]  # in a list: no submodule
        self.deep: Tensor | None = None
        self.since = 0
        """Calls since the last full one, itself among them."""

    def forward(self, x: Tensor, time: Tensor, **cond: Tensor) -> Tensor:
        halves = self.halves[0]
        if self.deep is None or self.since >= self.interval or len(self.deep) != len(x):
            output, deep = halves.unpacked(halves.full(x, time, **cond), x)
            self.deep, self.since = deep.detach(), 1
            return output
        self.since += 1
        return halves.shallow(x, time, self.deep, **cond)


def with_cache(denoiser: D, interval: int) -> D:
    """The same denoiser, and count of calls, with a cache that begins empty."""
    cached = copy.copy(denoiser)
    cached.network = FeatureCache(denoiser.network, interval)
    return cached
