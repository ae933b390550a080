"""Stable Diffusion's CLIP text encoder in published files: names, shapes, and where its tokenizer is.

Our names are those of transformers without the "text_model." that most files put before them. 1.x in a single file has
the same names; 2.x has OpenCLIP's, with query, key and value in one tensor, and one layer more than it reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.core.errors import UserError
from diptych.encoders.configs import ClipTextConfig
from diptych.encoders.frozen import pretrained_config
from diptych.encoders.tokenizers import saved_tokenizer
from diptych.pretrained.key_map import Layout, Piece, pieces
from diptych.pretrained.source import Options, read_object
from diptych.pretrained.stable_diffusion.state_dict_keys import names
from diptych.weights.hub import cached_snapshot
from diptych.weights.lazy import LazyCheckpoint

if TYPE_CHECKING:
    from transformers import CLIPTextConfig

PREFIX = "text_model."
CLIP = "cond_stage_model.transformer."
"""Prefix of the names of transformers in a single file of 1.x."""
OPEN_CLIP = "cond_stage_model.model."
"""Prefix of those of OpenCLIP in one of 2.x."""
UNREAD = ("text_projection", "logit_scale", "attn_mask")
"""Of OpenCLIP, what only its other half needs."""
LAYERS = 24
"""Of the OpenCLIP in 2.x, which reads all but the last."""

EMBEDDINGS = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")

TOKENIZERS = {
    1: (
        ("openai/clip-vit-large-patch14", ""),
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", "tokenizer"),
        ("CompVis/stable-diffusion-v1-4", "tokenizer"),
    ),
    2: (("stabilityai/stable-diffusion-2", "tokenizer"), ("stabilityai/stable-diffusion-2-1", "tokenizer")),
}
"""Models of the hub that have the tokenizer of 1.x and 2.x, and the folders in which it lies."""


def text_names(shape: CLIPTextConfig) -> list[str]:
    """Our names of the tensors of a CLIP text model."""
    from transformers import CLIPTextModel

    return [name.removeprefix(PREFIX) for name in names(lambda: CLIPTextModel(shape))]


def clip_layout(shape: CLIPTextConfig, prefix: str = PREFIX) -> Layout:
    """The names of transformers, `prefix` before each."""
    return {name: Piece(prefix + name) for name in text_names(shape)}


def open_clip_layout(shape: CLIPTextConfig, prefix: str = OPEN_CLIP) -> Layout:
    """The names of OpenCLIP, `prefix` before each."""
    layout = {}
    for name in text_names(shape):
        if name in EMBEDDINGS:
            layout[name] = Piece(prefix + EMBEDDINGS[name])
            continue
        _, _, number, rest = name.split(".", 3)
        part, _, kind = rest.rpartition(".")
        block = f"{prefix}transformer.resblocks.{number}"
        if part in PROJECTIONS:
            layout[name] = Piece(f"{block}.attn.in_proj_{kind}", PROJECTIONS.index(part), len(PROJECTIONS))
        else:
            layout[name] = Piece(f"{block}.{LAYER[part]}.{kind}")
    return layout


def text_of_folder(checkpoint: LazyCheckpoint, shape: CLIPTextConfig) -> LazyCheckpoint:
    """The tensors of a folder as transformers saves it, which may lack the prefix, by our names."""
    prefix = PREFIX if any(key.startswith(PREFIX) for key in checkpoint) else ""
    tensors = checkpoint.only(key for key in checkpoint if not key.endswith("position_ids"))
    return pieces(clip_layout(shape, prefix), tensors)


def text_of_file(checkpoint: LazyCheckpoint, shape: CLIPTextConfig) -> LazyCheckpoint:
    """The tensors of a CompVis file by our names; `checkpoint` are those of its text encoder alone."""
    if is_open_clip(checkpoint):
        layers = shape.num_hidden_layers
        beyond = f"{OPEN_CLIP}transformer.resblocks.{layers}."
        unread = [OPEN_CLIP + name for name in UNREAD]
        keys = (key for key in checkpoint if key not in unread and not key.startswith(beyond))
        return pieces(open_clip_layout(shape), checkpoint.only(keys))
    keys = (key for key in checkpoint if not key.endswith("position_ids"))
    return pieces(clip_layout(shape, clip_prefix(checkpoint)), checkpoint.only(keys))


def is_open_clip(tensors: Mapping[str, Any]) -> bool:
    return any(key.startswith(OPEN_CLIP) for key in tensors)


def clip_prefix(tensors: Mapping[str, Any]) -> str:
    """Of 1.x in a single file; some of the newest lack "text_model."."""
    return CLIP + (PREFIX if any(key.startswith(CLIP + PREFIX) for key in tensors) else "")


def shape_of_file(checkpoint: LazyCheckpoint) -> CLIPTextConfig:
    """The shape of a CompVis file's text encoder. Its heads are 64 wide, as in every CLIP that is used so.

    Raises a `UserError` for a key that is missing.
    """
    from transformers import CLIPTextConfig

    newer = is_open_clip(checkpoint)
    prefix = OPEN_CLIP if newer else clip_prefix(checkpoint)
    places = EMBEDDINGS if newer else {name: name for name in EMBEDDINGS}
    block = "transformer.resblocks" if newer else "encoder.layers"
    first = f"{block}.0.{'mlp.c_fc' if newer else 'mlp.fc1'}.weight"

    def shape(key: str) -> tuple[int, ...]:
        if len(checkpoint.shapes.get(prefix + key, ())) != 2:
            raise UserError(f"{checkpoint.source}: key {prefix + key!r} is missing, or of an unexpected shape")
        return checkpoint.shapes[prefix + key]

    vocabulary, width = shape(places["embeddings.token_embedding.weight"])
    numbers = {m[1] for key in checkpoint if (m := re.match(rf"{re.escape(prefix + block)}\.(\d+)\.", key))}
    layers = len(numbers)
    if newer and (layers == LAYERS or OPEN_CLIP + "text_projection" in checkpoint):
        layers -= 1  # whole, as it was trained; Stable Diffusion 2.x reads the last layer but one
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=shape(first)[0],
        num_hidden_layers=layers,
        num_attention_heads=max(width // 64, 1),
        max_position_embeddings=shape(places["embeddings.position_embedding.weight"])[0],
        hidden_act="gelu" if newer else "quick_gelu",
        projection_dim=width,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=0 if newer else vocabulary - 1,
        architectures=["CLIPTextModel"],
    )


def shape_of_json(path: Path) -> CLIPTextConfig:
    """The text model's shape in a config.json. Raises a `UserError` for one of another kind of model."""
    from transformers import CLIPTextConfig

    read_object(path)  # says whether it is there, and JSON
    return pretrained_config(CLIPTextConfig, path.parent)


def shape_json(shape: CLIPTextConfig) -> dict[str, Any]:
    """What transformers writes of such a text model."""
    values = json.loads(shape.to_json_string(use_diff=True))
    return {**values, "architectures": ["CLIPTextModel"]}


def text_config(shape: CLIPTextConfig) -> ClipTextConfig:
    """Our config of a text encoder that lies with its model."""
    return ClipTextConfig(width=shape.hidden_size, max_tokens=shape.max_position_embeddings)


def tokenizer_of_file(options: Options, version: int) -> Path:
    """The folder of a tokenizer for a single file of version 1 or 2: the user's, or one in the hub's cache.

    Raises a `UserError` where there is neither, and for a tokenizer of 1.x where one of 2.x is needed: its padding is
    another, and the padding is read along.
    """
    if options.tokenizer is not None:
        inner = options.tokenizer / "tokenizer"
        folder = inner if inner.is_dir() else options.tokenizer
    else:
        places = ((cached_snapshot(name, None), inner) for name, inner in TOKENIZERS[version])
        folders = (place / inner for place, inner in places if place is not None)
        folder = next((place for place in folders if has_tokenizer(place)), None)
    if folder is None:
        name, inner = TOKENIZERS[version][0]
        raise UserError(
            "a single file has no tokenizer, and the hub's cache has none that fits: give its folder by --tokenizer "
            f"FOLDER (tokenizer=), such as that of {name}{'/' + inner if inner else ''}"
        )
    _, pad = saved_tokenizer(folder, "tokenizer.json", "vocab.json")
    if version == 2 and pad != 0:
        raise UserError(
            f'the tokenizer in {folder} is not of Stable Diffusion 2.x, which pads with "!", number 0, and not with '
            f"number {pad}: give the folder tokenizer/ of {TOKENIZERS[2][0][0]}"
        )
    return folder


def has_tokenizer(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))
