"""A BERT with the embeddings of some tokens only, in half precision: a small folder to carry to a machine.

Its `config.json` and tokenizer are those of the whole model. `kept_tokens.json` lists the tokens whose rows
`model.safetensors` has; the rest of the table is filled with zeros when it is read, and a prompt with any other token
is refused.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diptych.core.config import read_json
from diptych.core.errors import UserError
from diptych.encoders.tokenizers import encode_text, load_tokenizer

KEPT = "kept_tokens.json"
COPIED = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")
TABLE = "embeddings.word_embeddings.weight"


def cut_vocabulary(source: Path, out: Path, captions: Iterable[str]) -> int:
    """Write the model of folder `source` to `out` for these captions; returns how many tokens it keeps.

    The special tokens are kept too. Weights are rounded to float16, and read as float32: embeddings are those of the
    whole model in float16. Raises a `UserError` where `source` has no such model or a weight is beyond float16.
    """
    from safetensors.torch import load_file, save_file

    tokenizer = load_tokenizer(source / "tokenizer.json")
    kept = {index for text in ("", *captions) for index in encode_text(tokenizer, text).ids}
    kept |= {index for token, index in tokenizer.get_vocab().items() if token in ("[PAD]", "[UNK]", "[MASK]")}
    rows = sorted(kept)
    weights = {}
    for name, tensor in load_file(source / "model.safetensors").items():
        if name.endswith(TABLE):
            tensor = tensor[rows]
        if tensor.is_floating_point():
            if not tensor.half().isfinite().all():
                raise UserError(f"{source}: {name} has values beyond float16")
            weights[name] = tensor.half().contiguous()
    if not any(name.endswith(TABLE) for name in weights):
        raise UserError(f"{source} has no {TABLE}: it is no BERT")
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / "model.safetensors")
    (out / KEPT).write_text(json.dumps(rows) + "\n")
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    return len(rows)


def kept_tokens(folder: Path) -> list[int] | None:
    """The tokens that the model in a folder has embeddings of; None for all."""
    path = folder / KEPT
    if not path.is_file():
        return None
    rows = read_json(path)
    if not isinstance(rows, list) or not all(type(row) is int and row >= 0 for row in rows):
        raise UserError(f"{path} must be a list of token numbers; make the folder again")
    if rows != sorted(set(rows)) or not rows:
        raise UserError(f"{path} must be in rising order; make the folder again")
    return rows


class CutTokenizer:
    """A tokenizer that refuses the tokens whose embeddings are not there."""

    def __init__(self, tokenizer: Any, kept: list[int], folder: Path) -> None:
        self.whole, self.kept, self.folder = tokenizer, set(kept), folder

    def encode(self, text: str) -> Any:
        encoding = self.whole.encode(text)
        for index, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            if index not in self.kept:
                raise UserError(
                    f"the text encoder in {self.folder} was cut to other captions and cannot read "
                    f"{text[start:stop]!r} in {text[:60]!r}: use the whole one"
                )
        return encoding

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)


def whole_table(network: Any, kept: list[int], vocabulary: int) -> None:
    """Put each row of a BERT's cut table at its token's number, with zeros for the others."""
    table = network.embeddings.word_embeddings.weight
    whole = torch.zeros(vocabulary, table.shape[1], dtype=table.dtype, device=table.device)
    whole[torch.tensor(kept, device=table.device)] = table.detach()
    network.embeddings.word_embeddings = nn.Embedding(vocabulary, table.shape[1], _weight=whole, _freeze=True)
