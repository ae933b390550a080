"""What frozen text encoders share: a folder as transformers saves it becomes a model that is never trained."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from diptych.conditioning.embedding import TextEmbedding
from diptych.conditioning.tokens import tokenize
from diptych.config import Config
from diptych.errors import UserError
from diptych.weights.checkpoint import Checkpoint, fill, weight_files

READ = ("config.json", "tokenizer.json", "spiece.model", "vocab.json", "merges.txt", "vocab.txt")
"""The small files of a folder that decide what a prompt becomes."""
PATHS = ("path", "tokenizer")
"""Fields of a config that say where its files lie."""


class FrozenText:
    """A frozen transformer behind its tokenizer; nothing of it is trained or saved with a model.

    It answers in float32 from wherever `model` lies, with zeros as padding, and is not touched by autocast.
    """

    def __init__(self, config: Any, folder: Path, model: nn.Module, tokenizer) -> None:
        self.config, self.folder, self.model, self.tokenizer = config, folder, model, tokenizer
        self.width: int = config.width
        self.max_tokens: int = config.max_tokens

    @functools.cached_property
    def fingerprint(self) -> str:
        return folder_fingerprint(self.config, self.folder)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> TextEmbedding:
        ids, mask = tokenize(self.tokenizer, prompts, self.max_tokens, self.device)
        with torch.autocast(self.device.type, enabled=False):
            hidden = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state  # (B, L, width)
        return TextEmbedding.from_sequence(hidden.float().masked_fill(~mask.unsqueeze(-1), 0.0), mask)


def named_folder(path: str | None, what: str) -> Path:
    """The folder that a config names; a `UserError` where it names none or there is none."""
    if path is None or not Path(path).is_dir():
        raise UserError(f"no {what} at {path}: set text.path to the folder of one")
    return Path(path)


def pretrained_config(kind, folder: Path, width: int | None = None):
    """The transformers config of class `kind` in a folder.

    A `UserError` where there is none, it is no JSON, it is of another kind of model, or of another width than asked.
    """
    path = folder / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        values = values.get("text_config", values)  # a whole CLIP nests its text half
        found = values.get("model_type", kind.model_type)
        shape = kind.from_dict(values)
    except Exception:  # of many kinds: transformers checks values in its own way
        raise UserError(f"{path} is missing, or not the config of a text model") from None
    if found != kind.model_type:
        raise UserError(f"{path} is of a model of type {found!r}, not {kind.model_type!r}")
    if width not in (None, shape.hidden_size):
        raise UserError(f"the model in {folder} is {shape.hidden_size} wide, but text.width is {width}")
    return shape


def frozen(model: nn.Module, folder: Path, dtype: torch.dtype = torch.float32, tied: Sequence[str] = ()) -> nn.Module:
    """Fill a transformers model from a folder and freeze it. Every weight must be there, whole and finite.

    What the file holds besides (a pooler, a decoder, CLIP's vision half) is left alone. Of the keys `tied`, which name
    one tensor, one is enough. Tensors are read one by one and take the place of the model's own.
    """
    (file, _), *_ = weight_files(folder)
    if file.suffix != ".safetensors" or not file.is_file():
        raise UserError(
            f"there is no file {folder / 'model.safetensors'}, whole or in shards; "
            "pickles such as pytorch_model.bin are never opened: convert them to safetensors"
        )
    checkpoint = Checkpoint.open(folder)
    stored = {plain_key(key): key for key in checkpoint}
    for key in tied:
        stored.update({other: stored[key] for other in tied if key in stored and other not in stored})
    keys = {name: stored[plain_key(name)] for name in model.state_dict() if plain_key(name) in stored}
    read = {name: functools.partial(checkpoint.__getitem__, key) for name, key in keys.items()}
    shapes = {name: checkpoint.shapes[key] for name, key in keys.items()}
    fill(model, Checkpoint(read, shapes, checkpoint.source), checkpoint.source, dtype)
    return model.eval().requires_grad_(False)


def plain_key(key: str) -> str:
    """A weight's name without what only some releases have: the name of its half, and the old names of a norm's two."""
    key = key.removeprefix("text_model.").removeprefix("bert.")
    return key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def folder_fingerprint(config: Config, folder: Path) -> str:
    """Sixteen hex digits by which embeddings of one encoder are told from another's, without building it.

    A hash over the config (but its paths, and what is not set: a field that came later leaves older embeddings valid),
    the tokenizer, and of every tensor its name, shape, dtype and first row: the whole of an XXL would take minutes, and
    training moves every tensor.
    """
    digest = hashlib.sha256()
    values = {key: value for key, value in config.to_dict().items() if key not in PATHS and value not in (None, False)}
    digest.update(json.dumps(values, sort_keys=True).encode())
    apart = getattr(config, "tokenizer", None)
    for path in (place / name for place in (folder, *([Path(apart)] if apart else [])) for name in READ):
        if path.is_file():
            digest.update(path.name.encode() + path.read_bytes())
    for path in sorted(folder.glob("model*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                for key in sorted(file.keys()):
                    part = file.get_slice(key)
                    row = part[:1] if part.get_shape() else file.get_tensor(key)
                    digest.update(f"{key} {part.get_dtype()} {part.get_shape()}".encode())
                    digest.update(row.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} is a damaged safetensors file ({error}); get or make it again") from error
    return digest.hexdigest()[:16]
