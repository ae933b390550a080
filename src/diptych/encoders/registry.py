"""Text encoders behind one small interface: prompts in, token embeddings out. This is the door to all of them.

`MiniLM`, `Bert`, `ClipText` and `T5` are frozen and pretrained; `JointTransformer`, and `LayoutTransformer` of layouts
written as text, learn with the U-Net. All refuse what they cannot read whole: a prompt that is too long is an error,
never cut in silence.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from diptych.core.seeding import drawn_apart
from diptych.encoders.base import TextEmbedding
from diptych.encoders.bert import Bert, BertTextConfig, MiniLM, MiniLMConfig, minilm_folder
from diptych.encoders.classes import ClassConfig, ClassLabels
from diptych.encoders.clip import ClipText, ClipTextConfig
from diptych.encoders.frozen import FrozenText, folder_fingerprint, frozen, pretrained_config
from diptych.encoders.joint import JointTransformer, JointTransformerConfig, train_tokenizer
from diptych.encoders.layout import LayoutConfig, LayoutTransformer
from diptych.encoders.t5 import T5, T5Config, t5_shape
from diptych.encoders.tokenizers import load_tokenizer, token_ids, tokenize

__all__ = [
    "Bert",
    "BertTextConfig",
    "ClipText",
    "ClipTextConfig",
    "FrozenConfig",
    "FrozenText",
    "JointTransformer",
    "JointTransformerConfig",
    "LayoutConfig",
    "LayoutTransformer",
    "Learned",
    "LearnedConfig",
    "MiniLM",
    "MiniLMConfig",
    "T5Config",
    "T5",
    "TextConfig",
    "TextEmbedding",
    "TextEncoder",
    "build_reader",
    "build_text_encoder",
    "config_fingerprint",
    "frozen",
    "load_tokenizer",
    "minilm_folder",
    "pretrained_config",
    "t5_shape",
    "text_network",
    "token_ids",
    "tokenize",
    "train_tokenizer",
]

FrozenConfig = MiniLMConfig | BertTextConfig | ClipTextConfig | T5Config
LearnedConfig = JointTransformerConfig | LayoutConfig
"""Of what is trained along."""
TextConfig = FrozenConfig | LearnedConfig
Learned = JointTransformer | LayoutTransformer


class TextEncoder(Protocol):
    """What a system asks of a text encoder."""

    width: int
    max_tokens: int

    def encode(self, prompts: list[str]) -> TextEmbedding: ...


def build_reader(
    config: TextConfig | ClassConfig | None, folder: Path | None = None, device: str | torch.device = "cpu"
) -> FrozenText | Learned | ClassLabels | None:
    """What reads a model's prompts: a text encoder, classes, or nothing. `folder` holds tokenizer and weights of one
    that was trained along, or of a CLIP whose config names no other place."""
    return None if config is None else _built(config, folder, device)


def build_text_encoder(
    config: TextConfig, folder: Path | None = None, device: str | torch.device = "cpu"
) -> FrozenText | Learned:
    """As `build_reader`, where there are words."""
    return _built(config, folder, device)


def _built(config: Any, folder: Path | None, device: str | torch.device) -> Any:
    """Of a frozen encoder all weights are read: what is drawn while it is built must not change what is drawn later,
    as it is not built at all where its answers are known."""
    with drawn_apart(0, "frozen") if isinstance(config, FrozenConfig) else contextlib.nullcontext():
        return config.reader(folder, device)


def config_fingerprint(config: FrozenConfig) -> str:
    """The `fingerprint` of the encoder that a config describes, without building it."""
    return folder_fingerprint(config, config.located())


def text_network(config: TextConfig) -> nn.Module:
    """The network of an encoder with the shapes of its folder, and without its weights: to be counted.

    Without a folder it is the published one: CLIP ViT-L/14, or the T5 v1.1 of that width. Build it on the meta device.
    """
    return config.counted()
