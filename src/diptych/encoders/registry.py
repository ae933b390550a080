"""Old place of the text encoders' names: import them from `encoders.configs` and the encoders' own modules."""
# ruff: noqa: F401

from __future__ import annotations

from typing import Any

from diptych.encoders.base import TextEmbedding, TextEncoder
from diptych.encoders.bert import Bert, MiniLM, minilm_folder
from diptych.encoders.clip import ClipText
from diptych.encoders.configs import (
    BertTextConfig,
    ClipTextConfig,
    FrozenConfig,
    JointTransformerConfig,
    LayoutConfig,
    LearnedConfig,
    MiniLMConfig,
    T5Config,
    TextConfig,
    build_encoder,
)
from diptych.encoders.frozen import FrozenText, load_frozen, pretrained_config
from diptych.encoders.joint import JointTransformer, train_tokenizer
from diptych.encoders.layout import LayoutTransformer
from diptych.encoders.t5 import T5, t5_shape
from diptych.encoders.tokenizers import load_tokenizer, token_ids, tokenize


def build_text_encoder(config: Any, *args: Any, **options: Any) -> Any:
    return config.build(*args, **options)


def config_fingerprint(config: Any) -> str:
    return config.fingerprint()


def text_network(config: Any) -> Any:
    return config.build_network()
