"""First stages on disk: autoencoders, and the tiny decoders that stand in for their decoders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from diptych.core.config import read_json
from diptych.core.disk import write_text
from diptych.core.errors import UserError
from diptych.core.values import short_repr
from diptych.networks.autoencoder import Autoencoder, AutoencoderConfig
from diptych.networks.tiny_decoder import TinyDecoder, TinyDecoderConfig
from diptych.weights.fingerprint import fingerprint
from diptych.weights.lazy import load_module, on_meta
from diptych.weights.save import save_weights


def save_autoencoder(module: Autoencoder, folder: Path, dtype: str = "float32") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(module.state_dict(), folder / "autoencoder", dtype=getattr(torch, dtype))


def load_autoencoder(config: AutoencoderConfig, folder: Path) -> Autoencoder:
    """Build an autoencoder and fill it from `folder`/autoencoder; raises a `UserError` that names what does not fit."""
    with on_meta():
        module = Autoencoder(config)
    load_module(module, folder / "autoencoder")
    return module.eval()


KIND = "tiny-decoder"


def save_tiny_decoder(module: TinyDecoder, folder: Path, values: Mapping[str, Any] | None = None) -> None:
    """Write a folder that `load_tiny_decoder` opens.

    values: what config.json holds, such as how it was trained; the module's own config is its "network" if none is
      given, and `save_dtype`, bfloat16 if none, the type of the stored kernels.
    """
    values = {"kind": KIND, "network": module.config.to_dict(), **(values or {})}
    folder.mkdir(parents=True, exist_ok=True)
    dtype = getattr(torch, values.get("save_dtype", "bfloat16"))
    save_weights(module.state_dict(), folder / "decoder", dtype=dtype)
    write_text(folder / "config.json", json.dumps(values, indent=2) + "\n")


def load_tiny_decoder(source: Path | str) -> TinyDecoder:
    """The tiny decoder in a run folder or model folder. Raises a `UserError` that names what is wrong there."""
    folder = Path(source)
    folder = folder / "model" if (folder / "model" / "config.json").is_file() else folder
    missing = f"no tiny decoder in {folder}: name the run or model folder of one (`diptych train emoji-tiny-decoder`)"
    values = read_json(folder / "config.json", missing=missing)
    if not isinstance(values, dict) or values.get("kind") != KIND:
        raise UserError(f"{folder} holds another kind of model, not a tiny decoder")
    config = TinyDecoderConfig.from_dict(values.get("network", {}))
    with on_meta():
        module = TinyDecoder(config)
    load_module(module, folder / "decoder")
    return module.eval()


TINY = "tiny"
"""The tiny decoder in the model's own folder."""


def choose_tiny_decoder(
    chosen: TinyDecoder | Path | str, autoencoder: Autoencoder, shipped: TinyDecoder | None
) -> TinyDecoder:
    """The tiny decoder that is meant: itself, the model's `shipped` ("tiny"), or that in a folder.

    Raises a `UserError` where there is none, or one of another first stage.
    """
    if isinstance(chosen, TinyDecoder):
        decoder = chosen
    elif not isinstance(chosen, (str, Path)):
        raise UserError(f"decoder must be tiny, a folder or an opened tiny decoder, not {short_repr(chosen)}")
    elif str(chosen) == TINY:
        if shipped is None:
            raise UserError("no tiny decoder came with this model: name the folder of one")
        decoder = shipped
    else:
        decoder = load_tiny_decoder(chosen)
    require_fits(decoder, autoencoder)
    return decoder


def require_fits(decoder: TinyDecoder, autoencoder: Autoencoder) -> None:
    """Raise a `UserError` unless the decoder was trained after this autoencoder, as far as can be checked: weights that
    are not float32 have another fingerprint, and only the shapes of latents are compared.
    """
    ours, theirs = decoder.config, autoencoder.config
    same = (ours.latent_channels, ours.factor) == (theirs.latent_channels, theirs.factor)
    if same and ours.teacher is not None and next(autoencoder.parameters()).dtype == torch.float32:
        same = fingerprint(autoencoder) == ours.teacher
    if not same:
        raise UserError("this tiny decoder was trained after another first stage than the model's: train one after it")
