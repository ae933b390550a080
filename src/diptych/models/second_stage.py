"""What every model over a trained first stage has: its frozen parts, and captions of which some are left out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from diptych.encoders.base import network_of
from diptych.models.request import OneLineRepr
from diptych.networks.autoencoder import Autoencoder

ENCODED_AT_ONCE = 32
"""Pictures that the first stage sees at a time: its activations are the largest of all."""


class OverFirstStage(OneLineRepr, nn.Module):
    """Base of the systems whose network works on what an autoencoder makes of pictures.

    The autoencoder, the text encoder and what else is frozen stand beside the module: they are neither trained nor
    saved with it, and move with it. A text encoder that is trained along is a part of it, `joint_text`.
    """

    _frozen: tuple[Any, ...]

    def stand_on(self, autoencoder: Autoencoder, text: Any, *beside: nn.Module | None) -> None:
        """Take the frozen parts. Called once, behind the network: parts are registered in this order."""
        self.joint_text: Any = text if isinstance(text, nn.Module) else None
        # Held in a tuple, so that they are no submodules.
        self._frozen = (autoencoder.eval().requires_grad_(False), text, *beside)

    @property
    def autoencoder(self) -> Autoencoder:
        return self._frozen[0]

    @property
    def text(self):
        return self._frozen[1]

    def _apply(self, fn, recurse: bool = True):
        """Whatever moves the system (`to`, `cuda`, `cpu`) moves its frozen parts along."""
        autoencoder, text, *beside = self._frozen
        for module in (autoencoder, *beside, network_of(text)):
            if module is not None:
                module._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def kept_captions(self, batch: dict[str, Any], dropped: Tensor) -> list[str]:
        """The captions of a batch; those that dropped (B,) bool marks are replaced by the empty one."""
        return ["" if drop else text for text, drop in zip(batch["caption"], dropped.tolist(), strict=True)]
