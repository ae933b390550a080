"""The form of a model: which options it takes, with their bounds, choices and defaults, from where they are stated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from diptych.core.option_fields import Option, options_of
from diptych.core.values import Choice, Flag, ImageFile, Integer, Number, PerStage, Size, Value
from diptych.models.autoregressive import Autoregressive, AutoregressiveRequest
from diptych.models.cascade import Cascade
from diptych.models.latent_diffusion import LatentDiffusion
from diptych.models.option_registry import MODELS
from diptych.models.options import Threshold
from diptych.models.pixel_diffusion import PixelDiffusion
from diptych.models.pixel_request import CascadeRequest, PixelRequest
from diptych.models.request import LatentRequest

KINDS: dict[type, tuple[str, Any]] = {
    LatentDiffusion: ("latent", LatentRequest),
    PixelDiffusion: ("pixel", PixelRequest),
    Cascade: ("cascade", CascadeRequest),
    Autoregressive: ("autoregressive", AutoregressiveRequest),
}
"""Class of a model -> the name of its kind, and what reads its options."""
ELSEWHERE = ("seeds", "negative", "callback", "noise", "guides", "decoder", "keep_stages", "one_at_a_time")
"""Options that are fields of their own in a request, or that no client sets."""
TYPES: dict[type[Value], str] = {
    Integer: "integer",
    Number: "number",
    Flag: "boolean",
    Choice: "choice",
    Size: "size",
    Threshold: "text",
}


def kind_of(model: Any) -> str:
    """ "latent", "pixel", "cascade" or "autoregressive"."""
    return KINDS[type(model)][0]


def option_class(model: Any) -> type:
    """The options that its `generate` takes."""
    return MODELS[kind_of(model)]


def read_request(model: Any, prompts: Any, options: Mapping[str, Any]) -> Any:
    """What `generate` makes of its options, before any work; a `UserError` where they do not fit."""
    subject = model.config if isinstance(model, PixelDiffusion) else model
    return KINDS[type(model)][1].read(subject, prompts, options)


def options_offered(model: Any) -> dict[str, Option]:
    """The options that a client may set, images left out."""
    options = options_of(option_class(model))
    return {
        name: option
        for name, option in options.items()
        if name not in ELSEWHERE and not isinstance(option.value, ImageFile)
    }


def configs_of(model: Any) -> list[Any]:
    """The configs of the stages of a cascade, or the one of any other model."""
    return list(getattr(model, "configs", None) or [model.config])


def low_sizes(model: Any) -> list[int]:
    """Sides of the images that a model was trained to enlarge, in each of its stages that do so."""
    stages = getattr(model, "configs", None) or [model]
    return [stage.low_size for stage in stages if getattr(stage, "low_size", None) is not None]


def describe_model(model: Any) -> dict[str, Any]:
    """What a page needs to draw the form of a model."""
    configs, kind = configs_of(model), kind_of(model)
    first = configs[0]
    images = {name for name, option in options_of(option_class(model)).items() if isinstance(option.value, ImageFile)}
    enlarges = low_sizes(model)
    text = getattr(first, "text", None)
    multiple = getattr(first, "multiple", None)
    return {
        "kind": kind,
        "size": [configs[-1].size] * 2,
        "multiple": multiple or getattr(getattr(first, "autoencoder", None), "factor", 1),
        "stages": [{"name": getattr(one, "name", "") or str(one.size), "size": one.size} for one in configs],
        "features": {
            "image": "image" in images,
            "mask": "mask" in images and getattr(model, "repaints", True) is not None,
            "low_res": bool(enlarges) and "low_res" in images,
            "negative": getattr(first, "guidable", True) and text is not None,
            "layout": getattr(text, "kind", None) == "layout",
            "prompt": text is not None,
        },
        "low_sizes": enlarges,
        "classes": list(model.classes),
        "layout_names": list(model.text.classes) if getattr(text, "kind", None) == "layout" else [],
        "tokens": getattr(getattr(model, "text", None), "max_tokens", None),
        "options": [describe_option(option, configs) for option in options_offered(model).values()],
    }


def describe_option(option: Option, configs: list[Any]) -> dict[str, Any]:
    """An option as JSON; `default` is a list with one for each stage where a cascade takes it so."""
    value = option.value.value if isinstance(option.value, PerStage) else option.value
    row: dict[str, Any] = {"name": option.name, "type": TYPES.get(type(value), "text"), "help": option.help}
    row |= {"group": option.group, "per_stage": option.per_stage, "needs": list(option.needs), "unset": option.unset}
    if isinstance(value, Choice):
        row["choices"] = list(value.choices)
    if isinstance(value, (Integer, Number)):
        row |= {"min": bound(value.low), "max": bound(value.high), "above": getattr(value, "above", False)}
    own = [as_json(getattr(config, option.name, option.default)) for config in configs]
    row["default"] = own if option.per_stage else [config.size for config in configs][-1:] * 2
    if option.name != "size" and not option.per_stage:
        row["default"] = own[0]
    return row


def bound(value: float) -> float | None:
    return value if math.isfinite(value) else None


def as_json(value: Any) -> Any:
    """A default of a config: numbers and texts as they are, anything else as its text."""
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
