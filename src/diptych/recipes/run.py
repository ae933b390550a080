"""Carrying a recipe out: from its values to data, a trainable model and a run folder."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diptych.cascade import Cascade, CascadeConfig
from diptych.cascade import assemble as run_assemble
from diptych.conditioning.cache import CachedTexts, text_cache
from diptych.conditioning.embedding import network_of
from diptych.conditioning.text import (
    JointTransformer,
    JointTransformerConfig,
    T5Config,
    build_text_encoder,
    text_network,
    train_tokenizer,
)
from diptych.data.dataset import DataConfig, PictureDataset, open_dataset
from diptych.data.hashing import mix
from diptych.data.stream import SampleStream, make_batch
from diptych.devices import find_device
from diptych.errors import NothingThere, UserError
from diptych.evaluation.judge import Judge, JudgeConfig
from diptych.evaluation.judge_training import ContrastConfig, JudgeTrainable
from diptych.latent import LatentConfig, LatentDiffusion
from diptych.networks.autoencoder import Autoencoder, AutoencoderConfig
from diptych.networks.unet import UNet
from diptych.opening import find, is_published, model_folder, read_config, read_options
from diptych.published import open_published
from diptych.published.source import Options
from diptych.recipes import LatentTraining, Recipe, StageTraining, all_recipes, get
from diptych.stage import Stage
from diptych.stage_config import StageConfig, build_network, read_stage
from diptych.training.diffusion import DiffusionTask
from diptych.training.first_stage import FirstStage, FirstStageConfig, load_autoencoder
from diptych.training.loop import Trainable
from diptych.training.loop import train as run_loop
from diptych.training.precompute import EmbeddedTexts, PrecomputedLatents, precomputed_splits, read_precomputed
from diptych.training.precompute import precompute as run_precompute
from diptych.weights.checkpoint import shapes_only

BatchAt = Callable[[list[int]], dict[str, Any]]


def train(recipe: Recipe, folder: Path) -> Path:
    """Train, or go on with, the run in `folder`; returns the folder of the finished model."""
    torch.manual_seed(recipe.training.seed)  # of the first weights
    seeds = {"train": recipe.training.seed, "held-out": mix(recipe.training.seed, 3)}
    system = recipe.system
    if isinstance(system, LatentTraining) and system.precomputed is not None:
        store, autoencoder = Path(system.precomputed), first_stage(system)
        names = ["train", *(name for name in precomputed_splits(store) if name == "held-out")]
        splits = {name: PrecomputedLatents(store, name, seeds[name], autoencoder) for name in names}
        wanted = (2 * system.model.autoencoder.latent_channels, *[system.model.latent_size] * 2)
        if (found := tuple(splits["train"].moments.shape[1:])) != wanted:
            raise UserError(
                f"{store} holds latents of shape {found}, not {wanted}: make it again with `diptych precompute`"
            )
        return _run(recipe, folder, latent_task(system, autoencoder, store), splits["train"], splits.get("held-out"))
    dataset, validation = open_dataset(recipe.data), held_out(recipe.data)
    return _run(
        recipe,
        folder,
        build(recipe, dataset, *([] if validation is None else [validation])),
        batches(dataset, seeds["train"]),
        None if validation is None else batches(validation, seeds["held-out"]),
    )


def _run(recipe: Recipe, folder: Path, task: Trainable, batch_at: BatchAt, validation_at: BatchAt | None) -> Path:
    return run_loop(task, batch_at, recipe.training, folder, validation_at, resolved=recipe.to_dict())


def build(recipe: Recipe, dataset: PictureDataset, *others: PictureDataset) -> Trainable:
    """The model of a recipe as the training loop sees it, reading `dataset`, and in validation the others."""
    system = recipe.system
    if isinstance(system, FirstStageConfig):
        return FirstStage(system)
    if isinstance(system, LatentTraining):
        return latent_task(system, first_stage(system), captions=lambda: all_captions(dataset))
    if isinstance(system, StageTraining):
        words = system.model.text is not None
        return stage_task(system, [text for one in (dataset, *others) for text in all_captions(one)] if words else [])
    return JudgeTrainable(system, dataset)


def stage_task(system: StageTraining, captions: list[str]) -> DiffusionTask:
    """A stage whose captions and sample prompts are embedded before the first step, or were by an earlier run; then the
    encoder goes.
    """
    texts = None
    if system.model.text is not None:
        texts = CachedTexts(system.model.text, text_cache())
        texts.read([*captions, *system.diffusion.prompts])
        texts.unload()
    return DiffusionTask(Stage(system.model, texts), system.diffusion)


def batches(dataset: PictureDataset, seed: int) -> BatchAt:
    """What the loop asks for: the batch of a list of stream positions."""
    stream = SampleStream(len(dataset), seed)
    return lambda positions: make_batch(dataset, stream, positions)


def held_out(config: DataConfig) -> PictureDataset | None:
    """The held-out split of some training data, or none where it has none."""
    try:
        return open_dataset(dataclasses.replace(config, split="held-out"))
    except NothingThere:
        return None


def first_stage(system: LatentTraining) -> Autoencoder:
    """The trained autoencoder that a latent model stands on."""
    folder = model_folder(system.autoencoder)
    values = read_config(folder)
    field = {"latent": "autoencoder", "autoencoder": "network"}.get(values["kind"])
    if field is None or field not in values:
        raise UserError(f"{folder} holds no autoencoder: set system.autoencoder to the run that trained one")
    if AutoencoderConfig.from_dict(values[field]) != system.model.autoencoder:
        raise UserError(f"the autoencoder in {folder} has another shape than the recipe's model.autoencoder")
    return load_autoencoder(system.model.autoencoder, folder)


def latent_task(
    system: LatentTraining,
    autoencoder: Autoencoder,
    store: Path | None = None,
    captions: Callable[[], list[str]] = list,
) -> DiffusionTask:
    """The latent model over its first stage; its text encoder answers from `store` where captions were embedded."""
    text = system.model.text
    if isinstance(text, JointTransformerConfig) and text.tokenizer is None:
        words = read_precomputed(store / "examples-train.json")["captions"] if store else None
        words = sorted({caption for row in words for caption in row}) if words else captions()
        encoder: Any = JointTransformer(text, train_tokenizer(words, text.network.vocabulary))
    else:
        encoder = build_text_encoder(text)
        if store is not None and (store / "text.safetensors").is_file():
            encoder = EmbeddedTexts.load(encoder, store)
    return DiffusionTask(LatentDiffusion(system.model, autoencoder, encoder), system.diffusion)


def all_captions(dataset: PictureDataset) -> list[str]:
    """Every caption of a dataset once, sorted."""
    return sorted({caption for index in range(len(dataset)) for caption in dataset.meta(index)["captions"]})


def precompute(recipe: Recipe, out: Path) -> Path:
    """Latents and, for a frozen text encoder, embeddings of the recipe's data, in a folder for `system.precomputed`."""
    system = recipe.system
    if not isinstance(system, LatentTraining):
        raise UserError("only recipes of latent models have something to precompute")
    datasets = {"train": open_dataset(recipe.data)}
    if (validation := held_out(recipe.data)) is not None:
        datasets["held-out"] = validation
    frozen = not isinstance(system.model.text, JointTransformerConfig)
    encoder: Any = build_text_encoder(system.model.text) if frozen else None
    device = find_device(recipe.training.device)
    return run_precompute(datasets, first_stage(system), encoder, out, device)


def assemble(sources: Sequence[str], out: Path) -> Path:
    """Trained stages, base first, as one cascade in `out`: run folders, model folders, published models."""
    folders = [find(source) for source in sources]
    for folder in folders:
        if out.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{out} lies in the stage {folder}: choose a folder of its own for the cascade")
    stored = Options(dtype=None)
    published = {path: functools.partial(open_published, path, stored) for path in folders if is_published(path)}
    return run_assemble(folders, out, published)


def describe(name: str | Path, **opening: Any) -> dict[str, Any]:
    """A recipe or model (by name, or where it lies): its config and the exact parameter counts of its networks, built
    on the meta device. `opening` goes to `opening.find` and to `opening.read_options`, as in `diptych.load`.
    """
    if isinstance(name, str) and name in all_recipes():
        recipe = get(name)
        system, config = recipe.system, recipe.to_dict()
    else:
        where = {key: value for key, value in opening.items() if key in ("revision", "offline", "allow_pickle")}
        path = find(name, **where)
        how = {key: value for key, value in opening.items() if key not in ("revision", "offline")}
        if is_published(path):
            return {"name": str(name), **published_counts(path, read_options(**how))}
        system, config = saved(path)
    with torch.device("meta"):
        networks = _networks(system)
    return {"name": str(name), **counts(networks), "config": config}


def published_counts(path: Path, options: Options) -> dict[str, Any]:
    """What `describe` tells of a published model; of its weights, only the shapes are read."""
    with shapes_only():
        system = open_published(path, options)
    stages = [system.stage(n) for n in range(len(system.configs))] if isinstance(system, Cascade) else [system]
    networks: dict[str, nn.Module] = {}
    for stage in stages:
        if isinstance(stage, Stage):
            networks[f"stage {stage.config.name}" if len(stages) > 1 else "network"] = stage.network
            if isinstance(stage.config.text, T5Config) and stage.config.text.path is not None:  # left where it lies
                with torch.device("meta"):
                    networks["text"] = text_network(stage.config.text)
            continue
        networks |= {"unet": stage.unet, "autoencoder": stage.autoencoder}
        text = stage.text if isinstance(stage.text, nn.Module) else network_of(stage.text)
        if text is not None:
            networks["text"] = text
    configs = [stage.config.to_dict() for stage in stages]
    return {**counts(networks), "config": configs[0] if len(configs) == 1 else {"stages": configs}}


def counts(networks: dict[str, nn.Module]) -> dict[str, Any]:
    """The parameters of each network, and of all together."""
    each = {part: sum(p.numel() for p in network.parameters()) for part, network in networks.items()}
    return {"networks": each, "total": sum(each.values())}


def saved(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The config of a model folder, read and as values; for a cascade, those of its stages."""
    config = {key: value for key, value in read_config(folder).items() if key != "scale"}
    if config["kind"] == "cascade":
        stages = [read_stage(folder / name) for name in CascadeConfig.from_dict(config).stages]
        return stages, {**config, "stages": [stage.to_dict() for stage in stages]}
    kinds = {"latent": LatentConfig, "stage": StageConfig, "autoencoder": FirstStageConfig, "judge": JudgeConfig}
    if str(config["kind"]) not in kinds:
        raise UserError(f"{folder} holds an unknown kind of model: {config['kind']!r}")
    values, text = config, config.get("text")
    if isinstance(text, dict) and text.get("path", "") is None and (folder / "text" / "config.json").is_file():
        values = {**config, "text": {**text, "path": str(folder / "text")}}  # it lies with its model
    return kinds[config["kind"]].from_dict(values), config


def _networks(system: Any) -> dict[str, nn.Module]:
    if isinstance(system, (LatentTraining, StageTraining)):
        return _networks(system.model)
    if isinstance(system, StageConfig):
        parts: dict[str, nn.Module] = {"network": build_network(system.network)}
        return parts if system.text is None else {**parts, "text": text_network(system.text)}
    if isinstance(system, list):  # the stages of a cascade
        parts = {f"stage {stage.name}": build_network(stage.network) for stage in system}
        texts = list(dict.fromkeys(stage.text for stage in system if stage.text is not None))
        names = ["text", *(f"text {number}" for number in range(2, len(texts) + 1))]
        return {**parts, **{name: text_network(text) for name, text in zip(names, texts, strict=False)}}
    if isinstance(system, LatentConfig):
        parts = {"unet": UNet(system.unet), "autoencoder": Autoencoder(system.autoencoder)}
        return {**parts, "text": text_network(system.text)}
    if isinstance(system, FirstStageConfig):
        return {"autoencoder": Autoencoder(system.network)}
    return {"judge": Judge(system.judge if isinstance(system, ContrastConfig) else system)}
