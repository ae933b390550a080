"""The file of a model's training prompts, by which `generate` warns of a prompt that is far from all of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.core.errors import UserError
from diptych.data.dataset import DataConfig, Split, open_dataset
from diptych.encoders.cache import CachedTexts, text_cache
from diptych.encoders.configs import FrozenConfig
from diptych.encoders.prompt_domain import PromptDomain
from diptych.pretrained.load import load
from diptych.weights.identity import FAMILIAR

BATCH = 256
LEAST = 0.5
"""Likeness below which `generate` warns: the best by `benchmarks/familiar.py` for the emoji captions."""


def write_familiar(data: str, models: Sequence[Path], least: float = LEAST) -> list[Path]:
    """Write the file of models that were trained on this data with one frozen text encoder.

    Raises a `UserError` where a folder is no model, or has a text encoder that was trained along.
    """
    encoders = {encoder_of(folder) for folder in models}
    if len(encoders) != 1:
        raise UserError("these models have different text encoders: name one at a time")
    (config,) = encoders
    reader = CachedTexts(config, text_cache())
    prompts = wordings(data, "train")
    domain = PromptDomain.of(prompts, pooled(reader, prompts), reader.fingerprint, least)
    for folder in models:
        domain.save(folder)
    return [folder / FAMILIAR for folder in models]


def wordings(data: str, split: Split) -> list[str]:
    """The first two captions of each example, each once: of a drawing, what names it, alone and with its style."""
    dataset, captions = open_dataset(DataConfig(path=data, split=split)), dict[str, None]()
    for index in range(len(dataset)):
        meta = dataset.meta(index)
        captions |= dict.fromkeys(meta["captions"][:2])
    return list(captions)


def pooled(reader: CachedTexts, prompts: Sequence[str]) -> Tensor:
    """Embeddings (N, width) of prompts."""
    reader.read(list(prompts))
    return torch.cat(
        [reader.encode(list(prompts[start : start + 256])).pooled for start in range(0, len(prompts), 256)]
    )


def reader_of(folder: Path) -> CachedTexts:
    """The text encoder of a model; embeddings are stored in the cache of texts."""
    return CachedTexts(encoder_of(folder), text_cache())


def encoder_of(folder: Path) -> Any:
    """The config of a model's frozen text encoder."""
    model: Any = load(folder, "cpu")
    configs = getattr(model, "configs", None) or [model.config]  # of a cascade, one for each stage
    texts = {config.text for config in configs if config.text is not None}
    if len(texts) != 1 or not isinstance(text := texts.pop(), FrozenConfig):
        raise UserError(f"the model in {folder} has no frozen text encoder, or several")
    return text
