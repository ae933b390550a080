"""The kinds of models in folders of ours: what config.json's "kind" says, and the classes behind it, imported late."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from diptych.core.errors import UserError


class ModelKind(NamedTuple):
    """The classes of a kind of model, each as "module:Class"."""

    config: str
    """The class of its config, which has `networks()`."""
    field: str | None = None
    """The field of config.json that holds this config; none where all of config.json is it."""
    model: str | None = None
    """The class of a model that generates images, with `load(values, folder)`; none for any other."""
    first_stage: str | None = None
    """The field of config.json with the config of its autoencoder, whose weights lie in autoencoder/; none without."""

    def config_of(self, values: Mapping[str, Any]) -> Any:
        """The config in the values of a config.json."""
        cls = imported(self.config)
        if self.field is not None:
            return cls.from_dict(values.get(self.field, {}))
        return cls.from_dict({key: value for key, value in values.items() if key != "kind" or hasattr(cls, "kind")})


MODEL_KINDS = {
    "latent": ModelKind(
        "diptych.models.latent_config:LatentConfig",
        model="diptych.models.latent_diffusion:LatentDiffusion",
        first_stage="autoencoder",
    ),
    "latent-lora": ModelKind(
        "diptych.pretrained.adapted_model:AdaptedConfig", model="diptych.pretrained.adapted_model:AdaptedModel"
    ),
    "stage": ModelKind(
        "diptych.models.pixel_config:PixelDiffusionConfig", model="diptych.models.pixel_diffusion:PixelDiffusion"
    ),
    "cascade": ModelKind("diptych.models.cascade:CascadeConfig", model="diptych.models.cascade:Cascade"),
    "autoregressive": ModelKind(
        "diptych.models.autoregressive_config:AutoregressiveConfig",
        model="diptych.models.autoregressive:Autoregressive",
        first_stage="autoencoder",
    ),
    "autoencoder": ModelKind("diptych.networks.autoencoder:AutoencoderConfig", "network", first_stage="network"),
    "tiny-decoder": ModelKind("diptych.networks.tiny_decoder:TinyDecoderConfig", "network"),
    "guide": ModelKind("diptych.models.noisy_guide:NoisyGuideConfig"),
    "judge": ModelKind("diptych.models.judge:JudgeConfig"),
}


def model_kind(kind: Any, folder: Path) -> ModelKind:
    """The entry of a kind; a `UserError` for one that there is not."""
    if kind not in MODEL_KINDS:
        raise UserError(f"{folder} holds an unknown kind of model: {kind!r}")
    return MODEL_KINDS[kind]


def imported(place: str) -> Any:
    """The class at "module:Class"."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)
