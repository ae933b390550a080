"""`diptych info MODEL --memory`: what sampling takes of a GPU's memory, as tables or as values."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from diptych.cli.describe import saved
from diptych.core.errors import UserError
from diptych.core.terminal import console, print_out
from diptych.encoders.base import network_of
from diptych.engines.sampling_memory import DECODER, SIZES, PartMemory, Sampling, Way, counted, model_passes, ways
from diptych.models.cascade import Cascade
from diptych.pretrained.adapted_model import AdaptedConfig, latent_config
from diptych.pretrained.families import open_published
from diptych.pretrained.load import is_published, located
from diptych.recipes import all_recipes, get
from diptych.weights.lazy import shapes_only

KINDS = {"stored": "as stored", "int8": "int8 or float8"}
"""Both types of 8 bits take the same memory."""


def memory_of(name: str, sampling: Sampling, **opening: Any) -> dict[str, Any]:
    """Weights and activations of a model's parts, and the peak of each way to run it."""
    stages = list(configs_and_networks(name, **opening))
    first = stages[0][0]
    if sampling.size is not None and len(stages) > 1:
        raise UserError("a cascade's stages have their own sizes: leave --size out")
    if sampling.size is not None and any(side % getattr(first, "multiple", 1) for side in sampling.size):
        raise UserError(f"--size takes multiples of {first.multiple} for this model")
    factor = getattr(getattr(first, "autoencoder", None), "factor", None)
    if sampling.tile is not None and (factor is None or sampling.tile % factor):
        raise UserError("--tile is for latent models" if factor is None else f"--tile takes multiples of {factor} here")
    found: dict[str, list[PartMemory]] = {}
    for kind in KINDS:
        parts = [counted(run, kind) for config, networks in stages for run in model_passes(config, networks, sampling)]
        found[kind] = list({part.name: part for part in parts}.values())  # a text encoder of all stages, once
    tables = {kind: list(ways([part for part in parts if runs(part, sampling)])) for kind, parts in found.items()}
    return {"name": name, "sampling": sampling, "parts": found, "ways": tables}


def runs(part: PartMemory, sampling: Sampling) -> bool:
    """Whether a part counts: of the ways to decode, one image at a time, or tiles where these are asked for."""
    if not part.name.startswith(DECODER):
        return True
    return part.name == (DECODER if sampling.tile is None else f"{DECODER}, tiles of {sampling.tile} px")


def configs_and_networks(name: str, **opening: Any) -> Iterator[tuple[Any, dict[str, nn.Module]]]:
    """The config and the networks, on the meta device, of each stage of a recipe or model."""
    if name in all_recipes():
        config: Any = getattr(get(name).system, "model", None)
        yield from [own(config, name)]
        return
    path, options = located(name, **opening)
    if is_published(path):
        with shapes_only():
            system: Any = open_published(path, options)
        stages = [system.stage(n) for n in range(len(system.configs))] if isinstance(system, Cascade) else [system]
        for stage in stages:
            yield stage.config, published(stage, name)
        return
    config, _ = saved(path)
    config = latent_config(str(path)) if isinstance(config, AdaptedConfig) else config
    yield from (own(one, name) for one in (config if isinstance(config, list) else [config]))


def own(config: Any, name: str) -> tuple[Any, dict[str, nn.Module]]:
    """A config of ours, and its networks."""
    if not hasattr(config, "text") or not hasattr(config, "networks") or not hasattr(config, "guidable"):
        raise UserError(f"{name} generates no images: --memory is for models that do")
    with torch.device("meta"):
        return config, config.networks()


def published(stage: Any, name: str) -> dict[str, nn.Module]:
    """The networks of a published model whose shapes were read."""
    if not hasattr(stage, "generate"):
        raise UserError(f"{name} generates no images: --memory is for models that do")
    parts = {part: getattr(stage, part, None) for part in ("unet", "network", "transformer", "autoencoder")}
    networks = {part: module for part, module in parts.items() if isinstance(module, nn.Module)}
    text = stage.joint_text or network_of(stage._frozen["text"])
    if text is None and stage.config.encoder is not None:
        with torch.device("meta"):
            text = stage.config.encoder.build_network()
    return networks if text is None else {**networks, "text": text}


def print_memory(found: dict[str, Any]) -> None:
    """The tables."""
    from rich.table import Table

    sampling: Sampling = found["sampling"]
    images = "one image" if sampling.batch == 1 else f"{sampling.batch} images at a time"
    size = "" if sampling.size is None else " of {} x {} px".format(*sampling.size)
    print_out(f"{found['name']}: {images}{size} in {str(sampling.dtype)[6:]}, counted; GiB")
    table = Table("part", "weights", "in 8 bits", "largest block", "activations")
    for whole, rounded in zip(found["parts"]["stored"], found["parts"]["int8"], strict=True):
        cells = (whole.weights, rounded.weights, whole.largest, whole.activations)
        table.add_row(whole.name, *(gib(cell) for cell in cells))
    other = Table("way", "weights", "peak", "needed", "while it runs", *(f"{size} GB" for size in SIZES))
    for kind, rows in found["ways"].items():
        for row in rows:
            fits = ("yes" if row.fits(size) else "-" for size in SIZES)
            other.add_row(row.name, KINDS[kind], gib(row.peak), gib(row.needed), row.part, *fits)
    for columns in (table.columns[1:], other.columns[2:4]):
        for column in columns:
            column.justify = "right"
    console().print(table, other)


def as_values(found: dict[str, Any]) -> dict[str, Any]:
    """The same as JSON has it, in bytes."""
    sampling: Sampling = found["sampling"]

    def part(one: PartMemory) -> dict[str, Any]:
        return {"weights": one.weights, "largest_block": one.largest, "activations": one.activations}

    def way(one: Way) -> dict[str, Any]:
        fits = {str(size): one.fits(size) for size in SIZES}
        return {"way": one.name, "peak": one.peak, "needed": round(one.needed), "part": one.part, "fits_gb": fits}

    return {
        "name": found["name"],
        "batch": sampling.batch,
        "size": None if sampling.size is None else list(sampling.size),
        "dtype": str(sampling.dtype)[6:],
        "parts": {kind: {one.name: part(one) for one in parts} for kind, parts in found["parts"].items()},
        "ways": {kind: [way(one) for one in rows] for kind, rows in found["ways"].items()},
    }


def gib(size: float) -> str:
    return f"{size / 2**30:.2f}"
