"""Modules with frozen parts, such as a text encoder, that are neither trained nor saved with them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from diptych.encoders.base import network_of
from diptych.models.result import OneLineRepr

if TYPE_CHECKING:
    from diptych.networks.autoencoder import Autoencoder


ENCODED_AT_ONCE = 32
"""Images that the first stage encodes at a time: its activations are the largest of all."""


class FrozenModules(nn.Module):
    """Base of modules with frozen parts. Whatever moves the module (`to`, `cuda`, `half`) moves these as well, but they
    are no submodules: they are not in `parameters()`, and not in the state dict.
    """

    _frozen: dict[str, Any]

    def set_frozen(self, **parts: Any) -> None:
        """Set the frozen parts: networks, or encoders whose network is `model`; None where there is none."""
        self._frozen = parts  # nn.Module registers modules, and not those in a dict

    def _apply(self, fn, recurse: bool = True):
        for part in self._frozen.values():
            module = part if isinstance(part, nn.Module) else network_of(part)
            if module is not None:
                module._apply(fn, recurse)
        return super()._apply(fn, recurse)


class OverFirstStage(OneLineRepr, FrozenModules):
    """Base of models whose network works on the latents or codes of an autoencoder.

    The autoencoder and a frozen text encoder are not in its state dict; a text encoder that is trained with the network
    is, as `joint_text`.
    """

    def set_parts(self, autoencoder: Autoencoder, text: Any, **frozen: nn.Module | None) -> None:
        """Set autoencoder, text encoder and other frozen parts. To be called after the network is set, as the state
        dict has the parts in this order."""
        self.joint_text: Any = text if isinstance(text, nn.Module) else None
        text = None if self.joint_text is not None else text
        self.set_frozen(autoencoder=autoencoder.eval().requires_grad_(False), text=text, **frozen)

    @property
    def autoencoder(self) -> Autoencoder:
        return self._frozen["autoencoder"]

    @property
    def text(self):
        return self._frozen["text"] if self.joint_text is None else self.joint_text

    def kept_captions(self, batch: dict[str, Any], dropped: Tensor) -> list[str]:
        """The captions of a batch; those that dropped (B,) bool marks are replaced by the empty one."""
        return ["" if drop else text for text, drop in zip(batch["caption"], dropped.tolist(), strict=True)]
