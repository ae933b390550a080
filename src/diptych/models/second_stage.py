"""What every model over a trained first stage has: its frozen parts, and captions of which some are left out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from diptych.models.frozen_parts import HoldsFrozen
from diptych.models.result import OneLineRepr
from diptych.networks.autoencoder import Autoencoder

ENCODED_AT_ONCE = 32
"""Pictures that the first stage sees at a time: its activations are the largest of all."""


class OverFirstStage(OneLineRepr, HoldsFrozen):
    """Base of models whose network works on the latents or codes of an autoencoder.

    The autoencoder and a frozen text encoder are not in its state dict; a text encoder that is trained with the network
    is, as `joint_text`.
    """

    def set_parts(self, autoencoder: Autoencoder, text: Any, **frozen: nn.Module | None) -> None:
        """Set autoencoder, text encoder and other frozen parts. To be called after the network is set, as the state
        dict has the parts in this order."""
        self.joint_text: Any = text if isinstance(text, nn.Module) else None
        text = None if self.joint_text is not None else text
        self.hold_frozen(autoencoder=autoencoder.eval().requires_grad_(False), text=text, **frozen)

    @property
    def autoencoder(self) -> Autoencoder:
        return self._frozen["autoencoder"]

    @property
    def text(self):
        return self._frozen["text"] if self.joint_text is None else self.joint_text

    def kept_captions(self, batch: dict[str, Any], dropped: Tensor) -> list[str]:
        """The captions of a batch; those that dropped (B,) bool marks are replaced by the empty one."""
        return ["" if drop else text for text, drop in zip(batch["caption"], dropped.tolist(), strict=True)]
