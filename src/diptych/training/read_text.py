"""When a frozen text encoder reads the captions of training: all of them before the first step, in each step, or in an
earlier call of `diptych precompute`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from diptych.core.errors import UserError
from diptych.core.values import short_repr
from diptych.encoders.cache import CachedTexts, StoredTexts, text_cache, text_store
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
    prompts = [*captions, ""]  # a dropped caption is the empty one
    text.read(prompts)
    text.unload()
    text.keep_on(device, prompts)
    return text


class PrecomputedTexts(StoredTexts):
    """A frozen text encoder that training reads from a folder of `diptych precompute`: its captions, memory-mapped, and
    nothing else but the prompts given first, for which alone the encoder is built. Raises a `UserError` for others."""

    def __init__(self, config: FrozenConfig, folder: Path, prompts: Sequence[str], device: torch.device) -> None:
        if not (folder / "config.json").is_file():
            raise UserError(f"no precomputed texts in {folder}: make them with `diptych precompute`")
        encoder = CachedTexts(config, text_cache())
        if (store := text_store(encoder, folder)) is None:
            raise UserError(f"{folder} holds no texts in parts: make them with `diptych precompute`")
        super().__init__(encoder, store)
        self.folder = folder
        encoder.model.to(device)
        if others := self.missing(prompts):
            super().read(others)
            encoder.unload()

    def read(self, prompts: list[str]) -> None:
        if others := self.missing(prompts):
            more = f" and {len(others) - 1:,} more" if len(others) > 1 else ""
            raise UserError(
                f"the caption {short_repr(others[0])}{more} is not in {self.folder}: it was made before the data "
                "changed; the same call of `diptych precompute` embeds what is missing"
            )


def read_online(build: Callable[[], Any]) -> Any:
    """What `build` gives, to be read in the steps of training."""
    encoder = build()
    if isinstance(encoder, FrozenText):
        encoder.online = True
    return encoder
