"""Text encoders behind one small interface: prompts in, token embeddings out. This is the door to all of them.

`MiniLM`, `Bert`, `ClipText` and `T5` are frozen and pretrained; `JointTransformer`, and `LayoutTransformer` of layouts
written as text, learn with the U-Net. All refuse what they cannot read whole: a prompt that is too long is an error,
never cut in silence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import nn

from diptych.conditioning.bert import Bert, BertTextConfig, MiniLM, MiniLMConfig, bert_folder, minilm_folder
from diptych.conditioning.classes import ClassConfig, ClassLabels
from diptych.conditioning.clip import ClipText, ClipTextConfig
from diptych.conditioning.embedding import TextEmbedding
from diptych.conditioning.frozen import FrozenText, folder_fingerprint, frozen, named_folder, pretrained_config
from diptych.conditioning.joint import JointTransformer, JointTransformerConfig, train_tokenizer
from diptych.conditioning.layout import LayoutConfig, LayoutTransformer, read_classes
from diptych.conditioning.t5 import T5, T5_SHAPES, T5Config, t5_shape
from diptych.conditioning.tokens import load_tokenizer, token_ids, tokenize
from diptych.errors import UserError
from diptych.networks.transformer import TextTransformer
from diptych.weights.files import load_into, load_weights

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
    "encoder_folder",
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


def build_text_encoder(
    config: TextConfig, folder: Path | None = None, device: str | torch.device = "cpu"
) -> FrozenText | Learned:
    """The encoder that a config describes; `folder` holds tokenizer and weights of one that was trained along, or of
    a CLIP whose config names no other place."""
    if isinstance(config, JointTransformerConfig):
        if folder is None:
            return JointTransformer(config).to(device)
        encoder = JointTransformer(config, load_tokenizer(folder / "tokenizer.json"))
        load_into(encoder, load_weights(folder), str(folder))
        return encoder.to(device)
    if isinstance(config, LayoutConfig):
        reader = LayoutTransformer(config, () if folder is None or config.classes else read_classes(folder))
        if folder is not None:
            load_into(reader, load_weights(folder), str(folder))
        return reader.to(device)
    if isinstance(config, MiniLMConfig):
        return MiniLM(config, device)
    if isinstance(config, BertTextConfig):
        return Bert(config, device)
    return ClipText(config, device, folder) if isinstance(config, ClipTextConfig) else T5(config, device)


def build_reader(
    config: TextConfig | ClassConfig | None, folder: Path | None = None, device: str | torch.device = "cpu"
) -> FrozenText | Learned | ClassLabels | None:
    """What reads a model's prompts: a text encoder, classes, or nothing."""
    if config is None:
        return None
    return ClassLabels(config) if isinstance(config, ClassConfig) else build_text_encoder(config, folder, device)


def encoder_folder(config: FrozenConfig) -> Path:
    """Where the files of a frozen encoder lie. A `UserError` where there are none."""
    if isinstance(config, (MiniLMConfig, BertTextConfig)):
        return bert_folder(config)
    return named_folder(config.path, "CLIP text model" if isinstance(config, ClipTextConfig) else "T5")


def config_fingerprint(config: FrozenConfig) -> str:
    """The `fingerprint` of the encoder that a config describes, without building it."""
    return folder_fingerprint(config, encoder_folder(config))


def text_network(config: TextConfig) -> nn.Module:
    """The network of an encoder with the shapes of its folder, and without its weights: to be counted.

    Without a folder it is the published one: CLIP ViT-L/14, or the T5 v1.1 of that width. Build it on the meta device.
    """
    from transformers import BertConfig, BertModel, CLIPTextConfig, CLIPTextModel, T5EncoderModel
    from transformers import T5Config as Shape

    if isinstance(config, LearnedConfig):
        return TextTransformer(config.network)
    if isinstance(config, (MiniLMConfig, BertTextConfig)):
        return BertModel(pretrained_config(BertConfig, bert_folder(config), config.width), add_pooling_layer=False)
    if isinstance(config, ClipTextConfig):
        large = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
        stored = config.path is not None
        return CLIPTextModel(
            pretrained_config(CLIPTextConfig, encoder_folder(config), config.width) if stored else large
        )
    if config.path is not None:
        return T5EncoderModel(pretrained_config(Shape, encoder_folder(config), config.width))
    sizes = {width: size for size, (width, *_) in T5_SHAPES.items()}
    if config.width not in sizes:
        raise UserError(
            f"no published T5 v1.1 is {config.width} wide: set text.path, or one of {', '.join(map(str, sizes))}"
        )
    return T5EncoderModel(t5_shape(sizes[config.width]))
