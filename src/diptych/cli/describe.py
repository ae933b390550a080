"""The config of a recipe or model, and how many parameters its networks have."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diptych.core.errors import UserError
from diptych.core.terminal import console, print_out
from diptych.encoders.base import network_of
from diptych.encoders.configs import LearnedConfig, T5Config
from diptych.models.cascade import Cascade, CascadeConfig
from diptych.models.kinds import model_kind
from diptych.models.pixel_config import PixelDiffusionConfig, read_stage
from diptych.models.pixel_diffusion import PixelDiffusion
from diptych.networks.autoencoder import Autoencoder
from diptych.networks.noisy_classifier import NoisyClassifier
from diptych.pretrained.families import open_published
from diptych.pretrained.load import is_published, located, read_config
from diptych.pretrained.source import Options
from diptych.recipes import all_recipes, get
from diptych.training.experiment import counts
from diptych.weights.lazy import shapes_only


def describe(name: str | Path, **opening: Any) -> dict[str, Any]:
    """A recipe or model (by name, or where it lies): its config and the exact parameter counts of its networks, built
    on the meta device. `opening` is as in `diptych.load`."""
    refused = [option for option, value in opening.items() if value not in (None, False, "float32")]
    if isinstance(name, str) and name in all_recipes():
        if refused:
            raise UserError(f"{refused[0]} is for models, and {name} is a recipe")
        recipe = get(name)
        system, config = recipe.system, recipe.to_dict()
    else:
        if "dtype" in refused:
            raise UserError("dtype has no effect on how many parameters there are: leave it out")
        path, options = located(name, **opening)
        if is_published(path):
            return {"name": str(name), **published_counts(path, options)}
        system, config = saved(path)
    with torch.device("meta"):
        networks = cascade_networks(system) if isinstance(system, list) else system.networks()
    return {"name": str(name), **counts(networks), "config": config}


def published_counts(path: Path, options: Options) -> dict[str, Any]:
    """What `describe` tells of a published model; of its weights, only the shapes are read."""
    with shapes_only():
        system = open_published(path, options)
    stages = [system.stage(n) for n in range(len(system.configs))] if isinstance(system, Cascade) else [system]
    networks: dict[str, nn.Module] = {}
    for stage in stages:
        if isinstance(stage, (Autoencoder, NoisyClassifier)):
            networks["autoencoder" if isinstance(stage, Autoencoder) else "classifier"] = stage
            continue
        if isinstance(stage, PixelDiffusion):
            networks[f"stage {stage.config.name}" if len(stages) > 1 else "network"] = stage.network
            if isinstance(stage.config.text, T5Config) and stage.config.text.path is not None:  # left where it lies
                with torch.device("meta"):
                    networks["text"] = stage.config.text.build_network()
            continue
        networks |= {"unet": stage.unet, "autoencoder": stage.autoencoder}
        text = stage.text if isinstance(stage.text, nn.Module) else network_of(stage.text)
        if text is not None:
            networks["text"] = text
    configs = [stage.config.to_dict() for stage in stages]
    return {**counts(networks), "config": configs[0] if len(configs) == 1 else {"stages": configs}}


def saved(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The config of a model folder, read and as values; for a cascade, those of its stages."""
    config = {key: value for key, value in read_config(folder).items() if key != "scale"}
    if config["kind"] == "cascade":
        stages = [read_stage(folder / name) for name in CascadeConfig.from_dict(config).stages]
        return stages, {**config, "stages": [stage.to_dict() for stage in stages]}
    values = config
    text = config.get("text")
    if isinstance(text, dict) and text.get("path", "") is None and (folder / "text" / "config.json").is_file():
        values = {**config, "text": {**text, "path": str(folder / "text")}}  # it lies with its model
    return model_kind(config["kind"], folder).config_of(values), config


def cascade_networks(stages: Sequence[PixelDiffusionConfig]) -> dict[str, nn.Module]:
    """Each network of a cascade, frozen text encoders that stages share once, to be counted on the meta device."""
    encoders = [stage.encoder for stage in stages if stage.encoder is not None]
    texts = [text for n, text in enumerate(encoders) if isinstance(text, LearnedConfig) or text not in encoders[:n]]
    names = ["text", *(f"text {number}" for number in range(2, len(texts) + 1))]
    return {
        **{f"stage {stage.name}": stage.network.build() for stage in stages},
        **{name: text.build_network() for name, text in zip(names, texts, strict=False)},
    }


def print_networks(described: dict[str, Any]) -> None:
    """The parameters of each network, as a table."""
    from rich.table import Table

    table = Table("network", "parameters")
    table.columns[1].justify = "right"
    for name, parameters in described["networks"].items():
        table.add_row(name, f"{parameters:,}")
    if len(described["networks"]) > 1:
        table.add_section()
        table.add_row("total", f"{described['total']:,}")
    print_out(described["name"])
    console().print(table)
