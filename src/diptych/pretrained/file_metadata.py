"""What is stated of a single file: in its header, by keys that say no more than yes, and in a file beside it.

NAME.yaml is CompVis' config, as models are passed on with it; NAME.json is that too, or has the words of diffusers'
schedulers. Two that state different things are a `UserError` that names both; nothing that bears on images is passed
over in silence.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from diptych.core.errors import UserError
from diptych.core.values import short_repr
from diptych.pretrained.source import Source
from diptych.weights.files import load_metadata

PREDICTIONS: dict[str, Literal["eps", "v"]] = {
    "epsilon": "eps",
    "eps": "eps",
    "v": "v",
    "v_prediction": "v",
    "v-prediction": "v",
}
"""The words of headers and configs -> ours."""
LARGEST = 2**18
"""Bytes of a config beside a file."""
TERMINAL = re.compile(r"z(ero)?_?t?(erminal)?_?snr|rescale_betas(_zero_snr)?|zero_snr", re.IGNORECASE)
SCHEDULE = {
    "linear_start": "beta_start",
    "linear_end": "beta_end",
    "timesteps": "num_train_timesteps",
    "beta_start": "beta_start",
    "beta_end": "beta_end",
    "num_train_timesteps": "num_train_timesteps",
}
"""Words of CompVis and diffusers -> fields of diffusers' schedulers."""
WITHOUT_EFFECT = {
    *("first_stage_key", "cond_stage_key", "image_size", "channels", "cond_stage_trainable", "conditioning_key"),
    *("monitor", "log_every_t", "num_timesteps_cond", "use_ema", "first_stage_config", "finetune_keys", "ckpt_path"),
    *("personalization_config", "ucg_training", "scheduler_config", "ignore_keys", "base_learning_rate", "loss_type"),
    *("l_simple_weight", "original_elbo_weight", "learn_logvar", "logvar_init", "scale_by_std", "v_posterior"),
    *("cond_stage_forward", "concat_mode", "concat_keys", "masked_image_key", "clip_denoised", "load_only_unet"),
    *("make_it_fit", "unfreeze_model", "embedder_type", "optimizer_config", "lr_g_factor", "log_all_grad_norm"),
    *("reset_ema", "reset_num_ema_updates", "keep_num_ema_updates", "hybrid_key", "weight_decay", "disable_unet_ema"),
    *("parameterization", "unet_config", "cond_stage_config", "scale_factor", "given_betas", "beta_schedule"),
}
"""Of CompVis' params, what is for training alone, shows in the file, or is read below."""
UNET_SHAPES = ("in_channels", "out_channels", "model_channels", "context_dim", "num_heads", "num_head_channels")


class Statement(NamedTuple):
    """A value, and what states it."""

    value: Any
    where: str


@dataclass
class FileMetadata:
    """All that is stated of a file."""

    predictions: list[Statement] = field(default_factory=list)
    terminal: str | None = None
    """What says that the betas are rescaled to zero terminal SNR; none where nothing does."""
    schedule: dict[str, Statement] = field(default_factory=dict)
    """By the fields of diffusers' schedulers."""
    scale: Statement | None = None
    """By what latents are multiplied."""
    unet: dict[str, Statement] = field(default_factory=dict)
    """Of the U-Net's params, those of `UNET_SHAPES`."""

    def prediction(self) -> Literal["eps", "v"] | None:
        """What the network predicts; none where nothing says it. A `UserError` names two that differ."""
        for other in self.predictions[1:]:
            if other.value != self.predictions[0].value:
                first = self.predictions[0]
                raise UserError(
                    f"{first.where} states that {first.value} is predicted, and {other.where} that {other.value} is: "
                    "say which by --prediction eps or v (prediction=)"
                )
        return self.predictions[0].value if self.predictions else None


def read_file_metadata(source: Source) -> FileMetadata:
    """What is stated of a single file. Raises a `UserError` for what cannot be followed, and where it is stated."""
    statements = FileMetadata()
    name = str(source.path)
    header = metadata(source)
    if word := header.get("modelspec.prediction_type"):
        statements.predictions.append(prediction(word, f"modelspec.prediction_type in the header of {name}"))
    if header.get("modelspec.architecture") == "stable-diffusion-v2-768-v":
        statements.predictions.append(Statement("v", f"modelspec.architecture in the header of {name}"))
    if "v_pred" in source.checkpoint:
        statements.predictions.append(Statement("v", f"the key v_pred of {name}"))
    if "ztsnr" in source.checkpoint:
        statements.terminal = f"the key ztsnr of {name}"
    for ending in (".yaml", ".yml", ".json"):
        path = source.path.with_suffix(ending)
        if path.is_file() and path != source.path:
            values = read_yaml(path) if ending != ".json" else read_small(path, json.loads, "JSON")
            statements = merge_config(statements, values, str(path))
    return statements


def metadata(source: Source) -> dict[str, str]:
    """The text in a safetensors file's header; a pickle has none."""
    with source.path.open("rb") as file:
        safe = file.read(9)[8:] == b"{"
    return load_metadata(source.path) if safe else {}


def prediction(word: Any, where: str) -> Statement:
    if not isinstance(word, str) or word not in PREDICTIONS:
        names = ", ".join(PREDICTIONS)
        raise UserError(f"{where} is {short_repr(word)}, which diptych has not for such a file: it knows {names}")
    return Statement(PREDICTIONS[word], where)


def read_small(path: Path, parse: Callable[[str], Any], what: str) -> Any:
    """A config beside a file. A `UserError` where it is not readable, or larger than any config."""
    if path.stat().st_size > LARGEST:
        raise UserError(f"{path} has more than {LARGEST:,} bytes, and is no config of the file beside it: move it away")
    try:
        return parse(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path}, beside the file of weights, is not readable {what}: {type(error).__name__}") from None


def read_yaml(path: Path) -> Any:
    """Plain values alone; tags that make objects are refused by the reader, and merged keys by us."""
    import yaml

    def parse(text: str) -> Any:
        if "<<" in text:  # merged keys may double at every line
            raise ValueError("merged keys")
        try:
            return yaml.load(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except yaml.YAMLError as error:
            raise ValueError(str(error)) from None

    return read_small(path, parse, "YAML")


def merge_config(statements: FileMetadata, values: Any, where: str) -> FileMetadata:
    """What a config beside the file adds to what is found already."""
    if not isinstance(values, Mapping):
        return statements
    model = values.get("model")
    if isinstance(model, Mapping) and "params" in model:
        return compvis(statements, model["params"], f"model.params in {where}")
    if any(word in values for word in ("parameterization", "linear_start", "unet_config")):
        return compvis(statements, values, where)
    for word in ("prediction_type", "prediction"):
        if values.get(word) is not None:
            statements.predictions.append(prediction(values[word], f"{word} in {where}"))
    return schedule(statements, values, where)


def compvis(statements: FileMetadata, params: Any, where: str) -> FileMetadata:
    """CompVis' params of a whole model."""
    if not isinstance(params, Mapping):
        raise UserError(f"{where} is no object but {short_repr(params)}")
    for word, value in params.items():
        ignored = word in WITHOUT_EFFECT or word in SCHEDULE or TERMINAL.fullmatch(str(word))
        if not ignored and value not in (None, False):
            raise UserError(
                f"{where}: diptych does not know what {short_repr(word)} = {short_repr(value)} means for images"
            )
    if params.get("parameterization") is not None:
        statements.predictions.append(prediction(params["parameterization"], f"parameterization in {where}"))
    for word, usual in (("beta_schedule", "linear"), ("given_betas", None)):
        if params.get(word) not in (usual, None):
            raise UserError(f"{where}: diptych has no {word} = {short_repr(params[word])} for such a file")
    text = params.get("cond_stage_config")
    if isinstance(text, Mapping) and isinstance(inner := text.get("params"), Mapping):
        usual = "penultimate" if "OpenCLIP" in str(text.get("target")) else "last"
        if inner.get("layer") not in (usual, None) or inner.get("layer_idx") is not None:
            layer = inner.get("layer_idx", inner.get("layer"))
            raise UserError(
                f"{where}: the text encoder is read at layer {short_repr(layer)}, and diptych reads the {usual} one"
            )
    unet = params.get("unet_config")
    if isinstance(unet, Mapping) and isinstance(shapes := unet.get("params"), Mapping):
        sizes = {word: shapes[word] for word in UNET_SHAPES if shapes.get(word) not in (None, -1)}
        for word, value in sizes.items():
            if type(value) is not int or not 0 < value < 2**20:
                raise UserError(f"{where}: unet_config.params.{word} must be a whole number, not {short_repr(value)}")
        statements.unet.update({word: Statement(value, f"unet_config in {where}") for word, value in sizes.items()})
    if params.get("scale_factor") is not None:
        scale = number(params["scale_factor"], f"scale_factor in {where}", 1e30)
        statements.scale = Statement(scale, f"scale_factor in {where}")
    return schedule(statements, params, where)


def schedule(statements: FileMetadata, values: Mapping[str, Any], where: str) -> FileMetadata:
    """How betas are spaced, in the words of CompVis or of diffusers."""
    for word, value in values.items():
        if TERMINAL.fullmatch(str(word)) and value not in (None, False, 0):
            statements.terminal = f"{word} in {where}"
        if word in SCHEDULE and value is not None:
            read = number(value, f"{word} in {where}", 1e6)
            statements.schedule[SCHEDULE[word]] = Statement(read, f"{word} in {where}")
    if values.get("beta_schedule") not in ("linear", "scaled_linear", None):  # as CompVis and diffusers call it
        raise UserError(
            f"{where}: diptych has no beta_schedule = {short_repr(values['beta_schedule'])} for a single file"
        )
    return statements


def number(value: Any, where: str, largest: float) -> float | int:
    """A positive number; YAML has 1e-4 as text."""
    if isinstance(value, str) and re.fullmatch(r"[\d.]+(e[-+]?\d+)?", value):
        value = float(value) if value.count(".") < 2 else value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < largest or math.isnan(value):
        raise UserError(f"{where} must be a positive number, not {short_repr(value)}")
    return value
