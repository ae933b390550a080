"""Modules with frozen parts, such as a text encoder, that are neither trained nor saved with them."""

from __future__ import annotations

from typing import Any

from torch import nn

from diptych.encoders.base import network_of


class HoldsFrozen(nn.Module):
    """Base of modules with frozen parts. Whatever moves the module (`to`, `cuda`, `half`) moves these as well, but they
    are no submodules: they are not in `parameters()`, and not in the state dict.
    """

    _frozen: dict[str, Any]

    def hold_frozen(self, **parts: Any) -> None:
        """Set the frozen parts: networks, or encoders whose network is `model`; None where there is none."""
        self._frozen = parts  # nn.Module registers modules, and not those in a dict

    def _apply(self, fn, recurse: bool = True):
        for part in self._frozen.values():
            module = part if isinstance(part, nn.Module) else network_of(part)
            if module is not None:
                module._apply(fn, recurse)
        return super()._apply(fn, recurse)
