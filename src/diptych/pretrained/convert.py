"""Stable Diffusion from one layout into another: ours, a folder of diffusers, a single file in CompVis's names.

Tensors go from file to file, one network at a time and as they are stored: what goes there and back is the same to the
bit. What a layout cannot hold is refused, or reported where images do not change.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.core.disk import Written, real, replacing, write_text
from diptych.core.errors import UserError, pick
from diptych.encoders.clip import clip_network, copy_tokenizer
from diptych.encoders.configs import ClipTextConfig
from diptych.models.latent_diffusion import LatentConfig
from diptych.networks.autoencoder import Autoencoder, AutoencoderConfig
from diptych.networks.unet import UNet, UNetConfig
from diptych.pretrained.key_map import Layout, Piece, pieces, published
from diptych.pretrained.source import Options, Source, read_object
from diptych.pretrained.stable_diffusion import diffusers_folder as sd_folder
from diptych.pretrained.stable_diffusion import single_file as sd_file
from diptych.pretrained.stable_diffusion.components import Parts
from diptych.pretrained.stable_diffusion.config_json import autoencoder_json, unet_json
from diptych.pretrained.stable_diffusion.infer_shapes import unet_of_shapes
from diptych.pretrained.stable_diffusion.scheduler_config import sampling_fields, scheduler_json
from diptych.pretrained.stable_diffusion.state_dict_keys import (
    autoencoder_names,
    compvis_autoencoder,
    compvis_unet,
    diffusers_autoencoder,
    diffusers_unet,
    unet_names,
)
from diptych.pretrained.stable_diffusion.text_encoder import (
    CLIP,
    PREFIX,
    clip_layout,
    open_clip_layout,
    shape_json,
    shape_of_json,
    text_config,
    text_of_folder,
)
from diptych.weights.files import load_metadata
from diptych.weights.lazy import LazyCheckpoint, fill, shapes_only
from diptych.weights.model_folder import DIFFUSERS, LATENT, MARK
from diptych.weights.save import save_safetensors, save_weights

LAYOUTS = ("diptych", "diffusers", "single-file")
DTYPES = ("stored", "float32", "float16", "bfloat16")
SHARD_BYTES = 2**32
"""Of a file of ours; those of diffusers are whole."""
SCHEDULER = "scheduler_config.json"
PIPELINES = {0: "StableDiffusionPipeline", 5: "StableDiffusionInpaintPipeline"}
"""By the channels that are concatenated to the latent."""
UNET_FIELDS = (
    *("kind", "in_channels", "concat_channels", "out_channels", "channels", "multipliers", "blocks"),
    *("attention_levels", "depth", "heads", "head_width", "context_width", "linear_projection", "norm_groups"),
    "dropout",
)
AUTOENCODER_FIELDS = (
    *("image_channels", "latent_channels", "channels", "multipliers", "blocks", "attention", "norm_groups"),
)
"""Fields that the published layouts can say; the others must be as they are by default."""


def convert(
    source: Path,
    target: Path,
    to: str | None = None,
    dtype: str = "stored",
    options: Options | None = None,
    overwrite: bool = False,
) -> list[str]:
    """Write the Stable Diffusion in `source` as `target`, whole or not at all.

    Args:
        source: a model folder of ours, a folder of diffusers, or a single file.
        target: a folder, or a file whose name ends in .safetensors.
        to: the layout, of `LAYOUTS`. Without, a name that ends in .safetensors is a single file, and a folder is ours
            if `source` is published, and of diffusers if it is ours.
        dtype: of the floating tensors, of `DTYPES`.
        options: as for opening `source`; its dtype has no say here.
        overwrite: replace a `target` that was written by this function, or is a latent model of diptych.

    Returns what is not in `target`, a line each. Raises a `UserError` for a source that is damaged or no Stable
    Diffusion, for what the layout has no place for, and for a target that exists (with `overwrite`: one that diptych
    did not write).
    """
    options = options or Options()
    cast_to = None if pick("dtype", dtype, DTYPES) == "stored" else getattr(torch, dtype)
    ours = source.is_dir() and not (source / "model_index.json").is_file()
    single = target.suffix == ".safetensors"
    to = pick("layout", to or ("single-file" if single else "diffusers" if ours else "diptych"), LAYOUTS)
    if (to == "single-file") != single:
        raise UserError(f"{target}: a single file's name ends in .safetensors, and a folder's does not; --to is {to}")
    if real(source) == real(target) or real(target) in real(source).parents:
        raise UserError(f"{target} holds what is to be converted: write to another place")
    kind = written_at(target, overwrite)
    parts = read_parts(source, options, tokenizer=to != "single-file")
    require_whole(parts, str(source))
    with replacing(target, kind) as partial:
        {"diptych": write_ours, "diffusers": write_folder, "single-file": write_file}[to](parts, partial, cast_to)
    return [*parts.lost, *unstated(parts, to)]


def written_at(target: Path, overwrite: bool) -> Written | None:
    """What of ours is there, or may be written there: a kind of folder, none for a file."""
    single = target.suffix == ".safetensors"
    if os.path.lexists(target) and not overwrite and not (target.is_dir() and not any(target.iterdir())):
        raise UserError(f"{target} exists: write to another place, or replace it with --overwrite")
    if not single:
        kind = DIFFUSERS if (target / "model_index.json").is_file() else LATENT
        kind.require(target)
        return kind
    if target.is_dir():
        raise UserError(f"{target} is a folder: name a file, or a folder whose name does not end in .safetensors")
    if os.path.lexists(target):
        try:
            ours = sd_file.HEADER in load_metadata(target)
        except UserError:
            ours = False
        if not ours:
            raise UserError(f"{target} was not written by diptych: delete it, or write to another place")
    return None


def read_parts(source: Path, options: Options, tokenizer: bool = True) -> Parts:
    """What a folder or file of any of the layouts holds. Raises a `UserError` for another kind of model."""
    if source.is_dir() and not (source / "model_index.json").is_file():
        options.without_effect((), f"{source}, a model of ours")
        return diptych_parts(source)
    found = Source(source, options)
    for family, read in (
        (sd_folder, lambda: sd_folder.parts(found)),
        (sd_file, lambda: sd_file.parts(found, tokenizer)),
    ):
        if family.fits(found):
            takes = [name for name in family.FAMILY.takes if tokenizer or name != "tokenizer"]
            options.without_effect(tuple(takes), f"{source} ({family.FAMILY.name}) in this layout")
            return read()
    raise UserError(f"{source} is no Stable Diffusion 1.x or 2.x, which is all that is converted")


def diptych_parts(folder: Path) -> Parts:
    """What a latent model's folder of ours holds. A `UserError` names what published layouts have no place for."""
    path = folder / "config.json"
    values = read_object(path)
    if values.get("kind") != "latent":
        raise UserError(f"{folder} holds a model of kind {values.get('kind')!r}; only latent models are converted")
    scale = values.pop("scale", None)
    config = LatentConfig.from_dict(values)
    if not isinstance(scale, (int, float)) or not scale > 0:
        raise UserError(f"{path}: scale must be a positive number, not {scale!r}")
    unet, autoencoder = published_configs(config, str(path))
    text = Path(config.text.path) if isinstance(config.text, ClipTextConfig) and config.text.path else folder / "text"
    shape = shape_of_json(text / "config.json")
    scheduler = folder / "scheduler" / SCHEDULER
    return Parts(
        config=dataclasses.replace(config, text=text_config(shape)),
        scale=scale,
        unet=pieces(same(unet_names(unet)), LazyCheckpoint.open(folder / "unet")),
        autoencoder=pieces(same(autoencoder_names(autoencoder)), LazyCheckpoint.open(folder / "autoencoder")),
        text=text_of_folder(LazyCheckpoint.open(text), shape),
        shape=shape,
        tokenizer=text,
        scheduler=read_object(scheduler) if scheduler.is_file() else None,
    )


def published_configs(config: LatentConfig, where: str) -> tuple[UNetConfig, AutoencoderConfig]:
    """The configs of both networks, once all in `config` has a place in published layouts."""
    if not isinstance(config.text, ClipTextConfig):
        kind = getattr(config.text, "kind", None)
        raise UserError(f"{where}: published Stable Diffusion has no place for a text encoder of kind {kind!r}")
    if not isinstance(config.unet, UNetConfig):
        raise UserError(f"{where}: published Stable Diffusion has no place for a U-Net of kind {config.unet.kind!r}")
    for network, fields in ((config.unet, UNET_FIELDS), (config.autoencoder, AUTOENCODER_FIELDS)):
        for field in dataclasses.fields(network):
            value = getattr(network, field.name)
            if field.name not in fields and value != field.default:
                what = f"{type(network).__name__}.{field.name} = {value!r}"
                raise UserError(f"{where}: published Stable Diffusion has no place for {what}")
    if config.unet.context_width is None:
        raise UserError(f"{where}: published Stable Diffusion has no place for a U-Net without context_width")
    scheduler_json(config)
    return config.unet, config.autoencoder


def require_whole(parts: Parts, source: str) -> None:
    """Raise a `UserError` unless every tensor is there, and of its shape."""
    with shapes_only(), torch.device("meta"):
        assert isinstance(parts.config.unet, UNetConfig)
        fill(UNet(parts.config.unet), parts.unet, parts.unet.source)
        fill(Autoencoder(parts.config.autoencoder), parts.autoencoder, parts.autoencoder.source)
        clip_network(parts.shape, parts.text, parts.text.source)


def write_ours(parts: Parts, folder: Path, dtype: torch.dtype | None) -> None:
    """A folder that `diptych.load` opens, text encoder and tokenizer within."""
    assert parts.tokenizer is not None
    for name, tensors in (("unet", parts.unet), ("autoencoder", parts.autoencoder)):
        save_weights(dict(cast(tensors, dtype)), folder / name, shard_bytes=SHARD_BYTES)
    text = {PREFIX + key: tensor for key, tensor in cast(parts.text, dtype)}
    save_weights(text, folder / "text", shard_bytes=SHARD_BYTES)
    write_json(shape_json(parts.shape), folder / "text" / "config.json")
    copy_tokenizer(parts.tokenizer, folder / "text")
    if parts.scheduler is not None:
        write_json(parts.scheduler, folder / "scheduler" / SCHEDULER)
    write_json({**parts.config.to_dict(), "scale": parts.scale}, folder / "config.json")


def write_folder(parts: Parts, folder: Path, dtype: torch.dtype | None) -> None:
    """A folder that diffusers opens as a StableDiffusionPipeline, or as one for inpainting."""
    config = parts.config
    assert parts.tokenizer is not None and isinstance(config.unet, UNetConfig)
    factor, autoencoder = config.autoencoder.factor, config.autoencoder
    scheduler = scheduler_of(parts)
    networks: Iterable[tuple[str, str, Layout, LazyCheckpoint, dict[str, Any]]] = (
        ("unet", NAME, diffusers_unet(config.unet), parts.unet, unet_json(config.unet, config.size // factor)),
        (
            *("vae", NAME, diffusers_autoencoder(autoencoder), parts.autoencoder),
            autoencoder_json(autoencoder, parts.scale, config.size),
        ),
        ("text_encoder", "model", clip_layout(parts.shape), parts.text, shape_json(parts.shape)),
    )
    for name, file, layout, tensors, values in networks:
        save_safetensors(published(layout, dict(cast(tensors, dtype))), folder / name / f"{file}.safetensors")
        write_json(values, folder / name / "config.json")
    copy_tokenizer(parts.tokenizer, folder / "tokenizer")
    write_json(scheduler, folder / "scheduler" / SCHEDULER)
    index = {
        "_class_name": PIPELINES.get(config.unet.concat_channels, PIPELINES[0]),
        "_diffusers_version": "0.42.1",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "safety_checker": [None, None],
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        MARK: "convert",
    }
    write_json(index, folder / "model_index.json")


NAME = "diffusion_pytorch_model"


def write_file(parts: Parts, path: Path, dtype: torch.dtype | None) -> None:
    """A single file in CompVis's names; what they have no place for stands in its header."""
    config = parts.config
    assert isinstance(config.unet, UNetConfig)
    tensors: dict[str, Tensor] = {}
    for layout, ours in (
        (compvis_unet(config.unet), parts.unet),
        (compvis_autoencoder(config.autoencoder), parts.autoencoder),
        (text_layout(parts), parts.text),
    ):
        tensors |= published(layout, dict(cast(ours, dtype)))
    header = {"config": config.to_dict(), "scale": parts.scale, "text": shape_json(parts.shape)}
    fields = {
        sd_file.HEADER: json.dumps({**header, "scheduler": parts.scheduler}),
        "modelspec.prediction_type": {"eps": "epsilon", "v": "v"}.get(config.prediction, config.prediction),
    }
    save_safetensors(tensors, path, fields)


def text_layout(parts: Parts) -> Layout:
    """1.x has the names of transformers and a CLIP with the quick gelu; 2.x those of OpenCLIP, and its plain gelu."""
    layouts = {"quick_gelu": lambda shape: clip_layout(shape, CLIP + PREFIX), "gelu": open_clip_layout}
    if parts.shape.hidden_act not in layouts:
        raise UserError(f"single files have no place for a text encoder with hidden_act {parts.shape.hidden_act!r}")
    return layouts[parts.shape.hidden_act](parts.shape)


def unstated(parts: Parts, to: str) -> Iterator[str]:
    """What a single file does not say to other programs."""
    if to != "single-file":
        return
    yield "the files of its tokenizer, for which a single file has no place"
    config = parts.config
    assert isinstance(config.unet, UNetConfig)
    layout = compvis_unet(config.unet)
    guess = unet_of_shapes({layout[name].key: shape for name, shape in parts.unet.shapes.items()}, "")
    taken = dataclasses.replace(guess, dropout=config.unet.dropout)
    wrong = [f.name for f in dataclasses.fields(taken) if getattr(taken, f.name) != getattr(config.unet, f.name)]
    if wrong:
        yield f"for other programs, what shapes do not show of its U-Net: {', '.join(wrong)}"


def scheduler_of(parts: Parts) -> dict[str, Any]:
    """The scheduler_config.json that the model came with, while it says what our config says; or else a new one."""
    if parts.scheduler is not None:
        fields = sampling_fields(parts.scheduler, SCHEDULER)
        if all(getattr(parts.config, field) == value for field, value in fields.items()):
            return parts.scheduler
    if reason := dict(parts.config.unsupported_samplers).get(""):
        raise UserError(f"the scheduler that this model came with cannot be written: {reason}")
    return scheduler_json(parts.config)


def cast(tensors: Mapping[str, Tensor], dtype: torch.dtype | None) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        yield name, tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def same(names: Iterable[str]) -> Layout:
    """The layout of our own files."""
    return {name: Piece(name) for name in names}


def write_json(values: Mapping[str, Any], path: Path) -> None:
    write_text(path, json.dumps(values, indent=2) + "\n")
