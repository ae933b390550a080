"""Running a recipe: from its values to data, a task and a run folder."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from diptych.core.devices import find_device, require_memory
from diptych.core.disk import real
from diptych.core.errors import UserError
from diptych.core.progress import waiting
from diptych.core.seeding import seed_default
from diptych.encoders.configs import FrozenConfig
from diptych.models.cascade import assemble as assemble_cascade
from diptych.pretrained.families import open_published
from diptych.pretrained.load import find, is_published
from diptych.pretrained.source import Options
from diptych.training.distributed import Team, team
from diptych.training.experiment_config import NOT_PRECOMPUTED, Recipe
from diptych.training.experiment_data import QUARANTINE, learned_fit, open_data, open_splits
from diptych.training.precompute import PRECOMPUTED
from diptych.training.precompute import precompute as precompute_data
from diptych.training.precompute_texts import PRECOMPUTED_TEXTS, precompute_texts
from diptych.training.run_checkpoint import has_checkpoint, require_run
from diptych.training.trainer import train as train_task
from diptych.training.training_config import EXAMPLES, as_begun
from diptych.training.trajectories import Teacher, keep_trajectories


def train(recipe: Recipe, folder: str | Path) -> Path:
    """Train, or resume, the run in `folder`; returns the folder of the finished model, or raises a `UserError`."""
    folder, seed = Path(folder), recipe.training.seed
    require_run(folder)
    require_memory(lambda: counts(recipe.system.networks())["networks"], find_device(recipe.training.device))
    seed_default(seed)
    begun = dataclasses.replace(recipe, training=as_begun(recipe.training, folder))  # its order is the run's
    data = open_data(begun, folder / QUARANTINE)
    system = recipe.system.with_class_names(lambda: data.captions("train"))
    recipe = dataclasses.replace(recipe, system=system)
    data.fit(system.caption_fit)
    with waiting("building the model", in_files=False):
        task = system.build(data, seed, resuming=has_checkpoint(folder))
    data.fit(lambda: learned_fit(task))
    splits = data.batches(seed)
    facts = {EXAMPLES: getattr(splits["train"], "identity", {}), **getattr(task, "facts", {})}
    return train_task(task, splits["train"], recipe.training, folder, splits.get("held-out"), recipe, facts)


def precompute(recipe: Recipe, out: Path) -> Path:
    """Latents, codes or a teacher's trajectories and, for a frozen text encoder, embeddings of the recipe's data, in a
    folder for `system.precomputed`; of a pixel model the embeddings alone. Under torchrun all processes share the work.
    Networks run in float32, or in bfloat16 with training.precision=bf16, and `training.workers` decode ahead."""
    system, settings = recipe.system, recipe.training
    if not system.precomputable:
        system.precomputing()
    if system.images_precomputable:
        require_same_images(recipe)
    (PRECOMPUTED if system.images_precomputable else PRECOMPUTED_TEXTS).require(out)
    if Path(recipe.data.path).is_dir() and real(out).is_relative_to(real(Path(recipe.data.path))):
        raise UserError(f"{out} lies in the data, {recipe.data.path}: name a folder outside of it")
    with contextlib.ExitStack() as stack:
        alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
        here = Team(0, 1, find_device(settings.device)) if alone else stack.enter_context(team(settings.device))
        datasets = open_splits(recipe, out.with_name(f"{out.name}.{QUARANTINE}"))
        with waiting("loading the frozen networks", in_files=False):
            autoencoder, text, kept, count = system.precomputing()
        if autoencoder is None:
            return precompute_texts(datasets, text, out, here)
        if isinstance(autoencoder, Teacher):
            return keep_trajectories(datasets, autoencoder, text, out, count, here, settings.precision == "bf16")
        bf16, reader = settings.precision == "bf16", system.text_config
        fitted = reader.fingerprint() if text is None and isinstance(reader, FrozenConfig) else None
        return precompute_data(datasets, autoencoder, text, out, here.device, kept, here, settings, bf16, fitted)


def require_same_images(recipe: Recipe) -> None:
    """Raise a `UserError` unless every image is the same square each time that it is read."""
    if recipe.data.drawn:
        raise UserError(f"{NOT_PRECOMPUTED}: set data.crop=none and data.center_shift=0, or train without precomputing")
    if recipe.data.bucket_step:
        raise UserError("latents are kept of square images: set data.bucket_step=0, or train without precomputing")


def assemble(sources: Sequence[str], out: Path, allow_pickle: bool = False) -> Path:
    """Trained stages, base first, as one cascade in `out`: run folders, model folders, published models."""
    folders = [find(source, allow_pickle=allow_pickle) for source in sources]
    for folder in folders:
        if real(out).is_relative_to(real(folder)):
            raise UserError(f"{out} lies in the stage {folder}: choose a folder of its own for the cascade")
    stored = Options(dtype=None, allow_pickle=allow_pickle)
    published = {path: functools.partial(open_published, path, stored) for path in folders if is_published(path)}
    return assemble_cascade(folders, out, published)


def counts(networks: dict[str, nn.Module]) -> dict[str, Any]:
    """The parameters of each network, and of all together."""
    each = {part: sum(p.numel() for p in network.parameters()) for part, network in networks.items()}
    return {"networks": each, "total": sum(each.values())}
