"""Tiny models of codes with random weights, told words, a class or nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from diptych.encoders.class_configs import ClassConfig
from diptych.encoders.configs import MiniLMConfig, build_encoder
from diptych.models.autoregressive import Autoregressive
from diptych.models.autoregressive_config import AutoregressiveConfig
from diptych.networks.autoencoder import Autoencoder
from diptych.networks.code_transformer import CodeTransformerConfig
from tests.models.latents import AUTOENCODER, JOINT, SIZE, joint, minilm
from tests.networks.reference import randomised

VOCABULARY = 24
VQ = dataclasses.replace(AUTOENCODER, multipliers=(1, 1, 2), codebook=VOCABULARY)
SIDE = SIZE // VQ.factor
SHAPE = CodeTransformerConfig(
    vocabulary=VOCABULARY, length=SIDE**2, width=32, layers=2, heads=4, classes=None, shared_start=False
)
CLASSES = ClassConfig(classes=3, null=3, names=("red", "green", "blue"))


def config(told: str = "words", **changes: Any) -> AutoregressiveConfig:
    values: dict[str, Any] = {"text": None, "transformer": SHAPE}
    if told in ("words", "minilm"):
        text = JOINT if told == "words" else MiniLMConfig()
        values = {"text": text, "transformer": dataclasses.replace(SHAPE, context_width=text.width)}
    elif told == "class":
        values = {"text": CLASSES, "transformer": dataclasses.replace(SHAPE, classes=CLASSES.entries)}
    return AutoregressiveConfig(**{"autoencoder": VQ, "size": SIZE, "guidance": 2.0, **values, **changes})


def first_stage(seed: int = 1) -> Autoencoder:
    return randomised(Autoencoder(VQ), seed)


def system(told: str = "words", **changes: Any) -> Autoregressive:
    """A model with random weights in every layer."""
    settings = config(told, **changes)
    text = joint() if told == "words" else minilm() if told == "minilm" else build_encoder(settings.text)
    model = Autoregressive(settings, first_stage(), text)
    randomised(model.transformer, seed=2)
    return model.eval()


def written(model: Autoregressive, prompts: list[str], **options: Any) -> Tensor:
    """The codes (B, h, w) of the images that `generate` paints."""
    seen: list[Tensor] = []
    model.generate(prompts, callback=lambda row, rows, codes: seen.append(codes), **options)
    return torch.as_tensor(seen[-1])
