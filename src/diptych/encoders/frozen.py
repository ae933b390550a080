"""Base of the frozen text encoders, and reading them from folders as transformers saves them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from diptych.core.config import Config, read_json
from diptych.core.errors import UserError
from diptych.core.values import short_repr
from diptych.encoders.base import TextEmbedding
from diptych.encoders.tokenizers import first_line, require_no_code, tokenize
from diptych.weights.lazy import DRAWN, LazyCheckpoint, fill, require_shapes, weight_files

READ = ("config.json", "tokenizer.json", "spiece.model", "vocab.json", "merges.txt", "vocab.txt")
"""Small files of a folder that its embeddings depend on."""
PATHS = ("path", "tokenizer")
"""Fields of a config with paths."""
FEW = 16
"""Prompts that are read one by one, so that not even the last bit depends on those beside it."""
LENGTHS = 8
"""Tokens by which `encode_at_once` pads."""


class FrozenText:
    """A frozen transformer behind its tokenizer; nothing of it is trained or saved with a model.

    It answers in float32 from wherever `model` lies, with zeros as padding, and is not touched by autocast.
    """

    online = False
    """Whether it is read in the steps of a training run. A GPU then takes a batch in one pass, padded, in the precision
    of the run's autocast. The CPU would compute the padding at full price: there, nothing changes."""

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

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """What to wrap the network in: no autocast, or that of the training run around it."""
        if self.online and self.device.type != "cpu":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, enabled=False)

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> TextEmbedding:
        if self.online and self.device.type != "cpu":
            return self.encode_at_once(prompts)
        ids, mask = tokenize(self.tokenizer, prompts, self.max_tokens, self.device)
        sequence = torch.zeros(*ids.shape, self.width, device=self.device)
        lengths = mask.sum(1)
        groups = torch.arange(len(prompts)) if len(prompts) <= FEW else lengths.cpu()
        for group in groups.unique():  # none is padded: what it gives does not depend on the others
            some = groups == group
            if not (length := int(lengths[some][0])):
                continue
            with self.precision():
                hidden = self.model(input_ids=ids[some, :length], attention_mask=mask[some, :length].long())
            sequence[some, :length] = hidden.last_hidden_state.float()
        return TextEmbedding.from_sequence(sequence, mask)

    @torch.no_grad()
    def encode_at_once(self, prompts: list[str]) -> TextEmbedding:
        """As `encode` but for rounding, in one pass: padded to the longest of them, in steps of `LENGTHS` tokens so
        that few shapes occur. The device is never waited for."""
        ids, mask = tokenize(self.tokenizer, prompts, self.max_tokens, self.device)
        behind = (0, min(-ids.shape[1] % LENGTHS, self.max_tokens - ids.shape[1]))
        ids, mask = F.pad(ids, behind), F.pad(mask, behind)
        dtype = next(self.model.parameters()).dtype
        # Ready as attention adds it, (B, 1, 1, L): of another mask transformers asks whether it masks at all.
        added = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
        with self.precision():
            hidden = self.model(input_ids=ids, attention_mask=added[:, None, None]).last_hidden_state
        return TextEmbedding.from_sequence(hidden.float().masked_fill(~mask[..., None], 0.0), mask)


def pretrained_config(kind, folder: Path, width: int | None = None):
    """The config of class `kind` in a folder, as transformers has it: of its config.json, what a text model is built
    from.

    A `UserError` where there is none, it is no JSON, it is of another kind of model, of another width than asked, of
    sizes that no text model has, or asks for code.
    """
    path = folder / "config.json"
    values = read_json(path, *[f"{path} is missing, or not the config of a text model"] * 2)
    if not isinstance(values, dict):
        raise UserError(f"{path} is missing, or not the config of a text model")
    require_no_code(values, path)
    text_values = values.get("text_config") or values  # a whole CLIP nests its text half
    if not isinstance(text_values, dict):
        raise UserError(f"{path}: text_config must be an object, not {short_repr(text_values)}")
    shape = text_shape(kind, text_values, path)
    if width not in (None, shape.hidden_size):
        raise UserError(f"the model in {folder} is {shape.hidden_size} wide, but text.width is {width}")
    return shape


def text_shape(kind, values: dict[str, Any], where: Path | str):
    """The config of class `kind`, as transformers has it, with those of these values that a text model is built from.

    The others are left out: what says how it is trained or saved, and what has transformers fetch or run more, such as
    attention from the hub. Raises a `UserError` that names the field which is of the wrong type or beyond all bounds.
    """
    require_no_code(values, where)
    model = values.get("model_type") or kind.model_type
    if model != kind.model_type:
        raise UserError(f"{where} is of a model of type {short_repr(model)}, not {kind.model_type!r}")
    for field, usual in FIXED.items():
        if values.get(field) not in (*usual, None):
            raise UserError(f"{where}: {field} = {short_repr(values[field])} is of a model that diptych does not read")
    stated = {field: value for field, value in values.items() if value is not None}
    for field, largest in SIZES.items():
        value = stated.get(field, 1)
        if type(value) is not int or not 1 <= value <= largest:
            raise UserError(f"{where}: {field} must be a whole number from 1 to {largest:,}, not {short_repr(value)}")
    for field in NUMBERS:
        value = stated.get(field, 0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1000:
            raise UserError(f"{where}: {field} must be a number, not {short_repr(value)}")
    for field in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if type(stated.get(field, 0)) is not int or not 0 <= stated.get(field, 0) <= SIZES["vocab_size"]:
            raise UserError(f"{where}: {field} must be the number of a token, not {short_repr(stated[field])}")
    try:
        return kind.from_dict({field: stated[field] for field in (*SIZES, *NUMBERS, *COPIED) if field in stated})
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    except Exception as error:  # of many kinds: transformers checks values in its own way
        raise UserError(f"{where} is not the config of a text model: {first_line(error)}") from None


WIDTHS = ("hidden_size", "intermediate_size", "projection_dim", "d_model", "d_kv", "d_ff")
SIZES = {
    **dict.fromkeys(WIDTHS, 2**17),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "num_decoder_layers"), 512),
    **dict.fromkeys(("num_attention_heads", "num_heads", "type_vocab_size"), 2**12),
    **dict.fromkeys(("max_position_embeddings", "relative_attention_num_buckets"), 2**20),
    "vocab_size": 2**22,
    "relative_attention_max_distance": 2**20,
    "image_size": 2**14,
    "patch_size": 2**12,
    "num_channels": 2**8,
}
"""Fields that are sizes, each with more than any text model, or any CLIP, has."""
NUMBERS = (
    *("layer_norm_eps", "layer_norm_epsilon", "attention_dropout", "dropout_rate", "hidden_dropout_prob"),
    *("attention_probs_dropout_prob", "classifier_dropout", "initializer_range", "initializer_factor"),
)
COPIED = (
    *("hidden_act", "feed_forward_proj", "pad_token_id", "bos_token_id", "eos_token_id", "is_encoder_decoder"),
    *("tie_word_embeddings", "architectures"),
)
"""Other fields that a text model is built from, or saved with."""
FIXED = {
    "is_decoder": (False,),
    "add_cross_attention": (False,),
    "position_embedding_type": ("absolute",),
    "pruned_heads": ({},),
}
"""Fields that change the network, and their only supported values."""


def load_frozen(
    build: Callable[[], nn.Module], folder: Path, dtype: torch.dtype = torch.float32, tied: Sequence[str] = ()
) -> nn.Module:
    """A model with transformers' names, filled from a folder and frozen. Every weight must be there, whole and finite.

    What the file holds besides (a pooler, a decoder, CLIP's vision half) is left alone. Of the keys `tied`, which name
    one tensor, one is enough. Tensors are read one by one and take the place of the model's own; it is built in memory
    only once the files are known to have its shapes.
    """
    (file, _), *_ = weight_files(folder)
    if file.suffix != ".safetensors" or not file.is_file():
        raise UserError(
            f"there is no file {folder / 'model.safetensors'}, whole or in shards; "
            "pickles such as pytorch_model.bin are never opened: convert them to safetensors"
        )
    checkpoint = LazyCheckpoint.open(folder)
    stored = {canonical_key(key): key for key in checkpoint}
    for key in tied:
        stored.update({other: stored[key] for other in tied if key in stored and other not in stored})
    model = build_on_meta(build, folder)
    state = model.state_dict()
    keys = {name: stored[canonical_key(name)] for name in state if canonical_key(name) in stored}
    read = {name: functools.partial(checkpoint.__getitem__, key) for name, key in keys.items()}
    shapes = {name: checkpoint.shapes[key] for name, key in keys.items()}
    tensors = LazyCheckpoint(read, shapes, checkpoint.source)
    require_shapes(state, tensors, checkpoint.source, "the text model")
    if any(name not in state for name, _ in model.named_buffers()):  # tables that no file holds
        with Unallocated():
            model = build()
    fill(model, tensors, checkpoint.source, dtype)
    return model.eval().requires_grad_(False)


class Unallocated(TorchFunctionMode):
    """Within, weights have no memory: they are about to be replaced, an XXL twice would not fit, and to draw first ones
    takes longer than to read those of a file. Layers make weights by `torch.empty`; tables that no file holds, such as
    positions, are made of values. Nothing is drawn: without memory there is nothing to fill, and `normal_` would import
    torch._dynamo to find that out.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in DRAWN:
            weight = kwargs["tensor"] if "tensor" in kwargs else args[0]
            if weight.is_meta:
                return weight
        return func(*args, **{**kwargs, **({"device": "meta"} if func is torch.empty else {})})


def build_on_meta(build: Callable[[], nn.Module], folder: Path | str) -> nn.Module:
    """A model on the meta device. A `UserError` for a config that none can be built from."""
    try:
        with torch.device("meta"), Unallocated():
            return build()
    except Exception as error:  # of many kinds: transformers checks values in its own way
        raise UserError(f"{folder}: no text model can be built from its config.json: {first_line(error)}") from None


def canonical_key(key: str) -> str:
    """A weight's name without what only some releases have: the name of its half, and the old names of a norm's two."""
    key = key.removeprefix("text_model.").removeprefix("bert.")
    return key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def folder_fingerprint(config: Config, folder: Path) -> str:
    """Sixteen hex digits that identify an encoder's embeddings, without building it.

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
