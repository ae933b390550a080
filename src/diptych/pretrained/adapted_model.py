"""Model folders that hold a LoRA and how to sample with it, over a base model that lies elsewhere."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from diptych.core.config import Config
from diptych.core.disk import write_text
from diptych.core.errors import UserError
from diptych.diffusion.samplers import SAMPLERS
from diptych.diffusion.times import TimesConfig
from diptych.models.latent_diffusion import LatentConfig, LatentDiffusion
from diptych.networks.lora import LowRank
from diptych.pretrained.load import find, is_published, open_model, read_config
from diptych.pretrained.lora_files import NAMES_IN_FOLDER, LoRA, LowRankPair
from diptych.weights.fingerprint import fingerprint

FILE = f"{NAMES_IN_FOLDER[0]}.safetensors"
"""The LoRA in the folder, under diffusers' name, so that the folder is one for `--lora` as well."""


@dataclass(frozen=True, kw_only=True)
class AdaptedConfig(Config):
    """The config.json of a LoRA with its base model and defaults of sampling."""

    kind: Literal["latent-lora"] = "latent-lora"
    """Which system this is."""
    base: str = "latent"
    """The latent model that it changes, as `diptych.load` takes it; of the hub, what is in the cache."""
    base_weights: str | None = None
    """Hash of some of that model's weights, or none to take any model of its shape."""
    steps: int = 4
    """Default number of sampling steps."""
    guidance: float = 1.0
    """Default weight of classifier-free guidance; 1 is none."""
    sampler: str = "lcm"
    """Default sampler."""
    times: TimesConfig = TimesConfig()
    """How the times of sampling are laid out."""

    def check(self) -> None:
        self.require(self.steps >= 1, "steps", "be at least 1")
        self.require(self.sampler in SAMPLERS, "sampler", f"be one of {', '.join(SAMPLERS)}")

    def fits(self, model: LatentDiffusion) -> bool:
        """Whether a model has the weights that the LoRA was trained for, or any will do."""
        return self.base_weights in (None, base_fingerprint(model))

    def networks(self) -> dict[str, nn.Module]:
        """Those of the base model: call it on the meta device."""
        return latent_config(self.base).networks()

    def adapted(self, config: LatentConfig) -> LatentConfig:
        """The base model's config with these defaults of sampling."""
        return few_step_config(config, self.steps, self.sampler, self.times, self.guidance)


def few_step_config(
    config: LatentConfig, steps: int, sampler: str, times: TimesConfig, guidance: float = 1.0
) -> LatentConfig:
    """A latent model's config with other defaults of sampling."""
    return dataclasses.replace(
        config,
        steps=steps,
        guidance=guidance,
        interval=(0.0, 1.0),
        sampler=sampler,
        times=times,
        published_scheduler=None,
        unsupported_samplers=(),
    )


class AdaptedModel:
    """What opens and writes such folders; the model itself is a `LatentDiffusion`."""

    @classmethod
    def load(cls, values: dict[str, Any], folder: Path) -> LatentDiffusion:
        """The base model with the LoRA in its weights, ready to generate. A `UserError` names what does not fit."""
        config = read_adapted(values, folder)
        model = open_base(config.base, folder)
        if not config.fits(model):
            raise UserError(f"{folder} was trained for other weights than those of {config.base} here")
        with torch.no_grad():
            for layer, change in LoRA.open(folder).changes(model).items():
                layer.weight.add_(change.delta().to(layer.weight))
        model.config = config.adapted(model.config)
        return model

    @staticmethod
    def save(
        folder: Path, base: LatentDiffusion, changes: Mapping[str, LowRank], config: AdaptedConfig, dtype: str
    ) -> None:
        """Write a folder. changes: by names of the layers of the base model's U-Net, as diffusers has them. dtype: of
        their matrices."""
        kind = getattr(torch, dtype)
        pairs = {
            f"unet.{name}": LowRankPair(name, change.down.to(kind), change.up.to(kind), change.alpha)
            for name, change in changes.items()
        }
        LoRA(pairs, str(folder)).save(folder / FILE, base)
        write_text(folder / "config.json", json.dumps(config.to_dict(), indent=2) + "\n")


def read_adapted(values: Mapping[str, Any], folder: Path) -> AdaptedConfig:
    """The config in the values of a folder's config.json."""
    try:
        return AdaptedConfig.from_dict(dict(values))
    except UserError as error:
        raise UserError(f"{folder / 'config.json'}: {error}") from None


def open_base(base: str, folder: Path) -> LatentDiffusion:
    """The base model of a folder."""
    model = open_model(base_place(base, folder), offline=True)
    if not isinstance(model, LatentDiffusion):
        raise UserError(f"{folder / 'config.json'}: its base {base} is no latent model")
    return model


def base_place(base: str, folder: Path) -> str | Path:
    """Where the base model of a folder is: its name, a path as it was typed or from the folder, or an id of the hub."""
    beside = folder / base
    return beside if beside.exists() and not Path(base).exists() else base


def base_fingerprint(model: LatentDiffusion) -> str:
    """A hash of the U-Net's first and last layer, which trainings of any kind move: quicker than one of all."""
    return fingerprint(model.unet.conv_in, model.unet.conv_out)


@functools.lru_cache(maxsize=8)
def latent_config(source: str) -> LatentConfig:
    """The config of a latent model, without its weights where it is in a folder of ours. A `UserError` for others."""
    path = find(source)
    if is_published(path):
        model = open_model(source)
        if isinstance(model, LatentDiffusion):
            return model.config
    else:
        values = read_config(path)
        if values["kind"] == "latent-lora":
            adapted = read_adapted(values, path)
            return adapted.adapted(latent_config(str(base_place(adapted.base, path))))
        if values["kind"] == "latent":
            return LatentConfig.from_dict({key: value for key, value in values.items() if key != "scale"})
    raise UserError(f"{source} is no latent model: it can be no teacher")
