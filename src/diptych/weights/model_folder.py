"""Files of model folders: recognise a folder that diptych wrote before it is replaced."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diptych.core.disk import Written, make_folder, values_of
from diptych.core.errors import UserError

WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")
TEXT = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TEXT += ("vocab.json", "merges.txt", "vocab.txt", "spiece.model", "classes.json")
"""Config and tokenizer files of a text encoder."""
MARK = "_diptych"
"""A key of a diffusers folder's model_index.json that we write: pipelines pass over keys that begin so."""
INDEX = (
    *("_class_name", "_diffusers_version", "unet", "vae", "text_encoder", "tokenizer", "scheduler"),
    *("safety_checker", "feature_extractor", "requires_safety_checker"),
)
"""The keys that we wrote before there was `MARK`, in the order in which we alone do: diffusers sorts them."""


def within(folder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}" for name in names)


def _kind(folder: Path) -> Any:
    return values_of(folder / "config.json").get("kind")


PARTS = (
    *("config.json", "training.json", *WEIGHTS),
    *(glob for part in ("unet", "autoencoder", "transformer", "network", "decoder") for glob in within(part, *WEIGHTS)),
    *within("text", *WEIGHTS, *TEXT),
    *within("scheduler", "scheduler_config.json"),
    "pytorch_lora_weights.safetensors",
    *within("tiny_decoder", "config.json", *within("decoder", *WEIGHTS)),
)
"""Files of a finished model of any kind but a cascade."""
TRAINED = Written("a trained model", PARTS, lambda folder: True)  # of a run: the folder that it lies in is the sign
LATENT = Written("a latent model of diptych", PARTS, lambda folder: _kind(folder) == "latent")
CASCADE = Written(
    "a cascade of diptych",
    ("config.json", *within("stage-*", "config.json", *within("network", *WEIGHTS), *within("text", *WEIGHTS, *TEXT))),
    lambda folder: _kind(folder) == "cascade",
    beside=True,
)


KINDS = ("latent", "latent-lora", "stage", "cascade", "autoregressive", "autoencoder", "tiny-decoder", "guide", "judge")
"""Values of `kind` in the config.json of a model folder."""


def model_place(folder: Path | str) -> Path:
    """Make a folder to save a model to. Raises a `UserError`, before anything is written, where it holds files of such
    names that are of no model of diptych's; other files may stand in it, and stay."""
    folder = Path(folder)
    make_folder(folder)
    if _kind(folder) not in KINDS:
        for glob in PARTS:
            for path in sorted(folder.glob(glob)):
                raise UserError(f"{path} is there already, and is of no model of diptych's: name another folder")
    return folder


def _ours(folder: Path) -> bool:
    index = values_of(folder / "model_index.json")
    return MARK in index or tuple(index) == INDEX


DIFFUSERS = Written(
    "a diffusers folder that diptych wrote",
    (
        "model_index.json",
        *within("unet", "config.json", "diffusion_pytorch_model.safetensors"),
        *within("vae", "config.json", "diffusion_pytorch_model.safetensors"),
        *within("text_encoder", "config.json", "model.safetensors"),
        *within("tokenizer", *TEXT),
        *within("scheduler", "scheduler_config.json"),
    ),
    _ours,
)
