"""When a frozen text encoder reads the captions of training: all of them before the first step, or in each step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

from diptych.encoders.cache import CachedTexts, text_cache
from diptych.encoders.configs import FrozenConfig
from diptych.encoders.frozen import FrozenText

Embedding = Literal["auto", "ahead", "online"]
FEW = 50_000
"""With at most so many examples, `auto` embeds their captions ahead."""


def ahead(when: Embedding, examples: int) -> bool:
    """Whether the captions of so many examples are embedded before the first step."""
    return when == "ahead" or (when == "auto" and examples <= FEW)


def embedded_ahead(config: FrozenConfig, captions: Sequence[str], device: torch.device) -> CachedTexts:
    """The encoder with these captions in memory and on the device, embedded there or by an earlier run, in half
    precision; the network itself is unloaded."""
    text = CachedTexts(config, text_cache())
    text.model.to(device)
    text.read(list(captions))
    text.unload()
    text.keep_on(device, [*captions, ""])
    return text


def read_online(build: Callable[[], Any]) -> Any:
    """What `build` gives, to be read in the steps of training."""
    encoder = build()
    if isinstance(encoder, FrozenText):
        encoder.online = True
    return encoder
