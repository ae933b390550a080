"""Images of the captions of a batch, beside its own: what models that read prompts are evaluated by."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from diptych.core.images import to_images
from diptych.encoders.class_configs import ClassConfig, LayoutConfig
from diptych.training.trainable import Generated


class FromCaptions(Protocol):
    """A model that generates images from prompts."""

    @property
    def config(self) -> Any: ...

    def generate(self, prompts: list[str], *, seeds: list[int]) -> Any: ...


def generated_from_captions(model: FromCaptions, batch: dict[str, Any], seeds: list[int]) -> Generated:
    """Images generated as those of the sample grid are, one for each caption, beside those of the batch, or what the
    first stage decodes of what was precomputed of them."""
    captions, stored = list(batch["caption"]), "picture" not in batch
    real = decoded(model, batch) if stored else batch["picture"]
    made = model.generate(captions, seeds=seeds).images
    return Generated(made, to_images(real), False, captions if in_words(model.config.text) else None, stored)


def decoded(model: Any, batch: dict[str, Any]) -> Tensor:
    """Images (B, 3, H, W) of the precomputed codes of a batch, or of the means of its latents."""
    if "codes" in batch:
        return model.decode(batch["codes"].long())
    return model.decode(model.posterior(batch).mean * model.scale)


def in_words(text: Any) -> bool:
    """Whether captions that an encoder of this config reads are words: not numbers of classes, and not layouts."""
    if isinstance(text, ClassConfig):
        return bool(text.names)
    return text is not None and not isinstance(text, LayoutConfig)
