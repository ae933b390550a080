"""The data that a recipe reads: opened once for training and validation, with captions as its model reads them."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import Any

from diptych.core.errors import NothingThere
from diptych.core.terminal import say
from diptych.data.dataset import Fit, PictureDataset, open_dataset
from diptych.data.quarantine import silent
from diptych.data.stream import SampleStream, make_batch
from diptych.encoders.configs import ClassConfig, JointTransformerConfig, MiniLMConfig
from diptych.encoders.joint import JointTransformer, train_tokenizer
from diptych.training.experiment_config import AutoregressiveTraining, LatentTraining, Recipe, StageTraining
from diptych.training.precompute import PrecomputedLatents, read_precomputed
from diptych.training.prefetch import BatchAt
from diptych.training.tasks.contrastive import ContrastConfig
from diptych.training.tasks.guide_training import GuideTraining

QUARANTINE = "quarantine.jsonl"


def prompt_reader(system: Any) -> Any:
    """The config of what reads a system's captions: a text encoder, classes, layouts; none where none are read."""
    if isinstance(system, (LatentTraining, AutoregressiveTraining, StageTraining)):
        return system.model.text
    if isinstance(system, GuideTraining):
        return system.text if system.classes is None else system.classes
    return MiniLMConfig() if isinstance(system, ContrastConfig) else None


def reads_captions(system: Any) -> bool:
    """Whether a system reads captions: first stages, unconditional models and those that only enlarge do not."""
    return prompt_reader(system) is not None


def caption_fit(system: Any) -> Fit | None:
    """What gives as much of a caption as a system reads, without its weights; none where that is learned from the
    captions themselves (a tokenizer, the names of classes), or none are read."""
    reader = prompt_reader(system)
    if isinstance(reader, JointTransformerConfig):
        return None if reader.tokenizer is None else JointTransformer(reader).fit
    if isinstance(reader, ClassConfig) and reader.names_from_captions and not reader.names:
        return None
    return None if reader is None else reader.fitting()


def open_splits(recipe: Recipe, record: Path) -> dict[str, PictureDataset]:
    """The training data of a recipe and, where it has one, the held-out split, as "train" and "held-out".

    record: the file that lists what is left out. Says in one line what there is, and what is left out of it. Every
    process reads the data; the first alone speaks and keeps the record of the opening.
    """
    main = os.environ.get("RANK", "0") == "0"
    with silent(not main):
        train = open_dataset(recipe.data, captions=reads_captions(recipe.system), record=record)
        splits = {"train": train, **held_out(train)}
    fit_all(caption_fit(recipe.system), *splits.values())
    if main:
        say(described(splits))
        if recipe.data.held_out and "held-out" not in splits:
            say(
                f"data.held_out={recipe.data.held_out:g} sets none of these {len(train)} apart: nothing is validated; "
                "raise it, or give some examples the split held-out"
            )
    else:
        train.quarantine.forget()
    return splits


def open_all(recipe: Recipe, settings: dict[str, Any]) -> PictureDataset:
    """All the data that a recipe reads, as its model reads it, with `settings` of its data, to be checked."""
    data = dataclasses.replace(recipe.data, **settings)
    dataset = open_dataset(data, captions=reads_captions(recipe.system))
    fit, reader = caption_fit(recipe.system), prompt_reader(recipe.system)
    if fit is None and isinstance(reader, JointTransformerConfig):
        fit = JointTransformer(reader, train_tokenizer(all_captions(dataset), reader.network.vocabulary)).fit
    fit_all(fit, dataset)
    return dataset


def held_out(train: PictureDataset) -> dict[str, PictureDataset]:
    """The held-out split of training data as "held-out", or nothing where there is none."""
    try:
        return {"held-out": train.split("held-out")}
    except NothingThere:
        return {}


def described(splits: dict[str, PictureDataset]) -> str:
    """How many examples there are, and how many are known to be left out and for what reason."""
    train = splits["train"]
    counts = f"{len(train):,} examples to train on, {len(splits.get('held-out', ())):,} held out"
    left = train.left_out
    if not left:
        return f"{train.config.path}: {counts}"
    _, name, why = left[0]
    others = f" and {len(left) - 1:,} more" if len(left) > 1 else ""
    return (
        f"{train.config.path}: {counts}, {len(left):,} left out ({name}: {why}{others}; `diptych data check` lists all)"
    )


def fit_all(fit: Fit | None, *datasets: PictureDataset) -> None:
    """Let the captions of data be read as `fit` has them; none leaves them as they are."""
    for dataset in datasets:
        dataset.fit = fit or dataset.fit


def learned_fit(task: Any) -> Fit | None:
    """As `caption_fit`, of a task whose text encoder has a tokenizer, or classes, that were learned from captions."""
    return getattr(getattr(getattr(task, "system", None), "text", None), "fit", None)


def fit_stored(stored: PrecomputedLatents, fit: Fit | None, long_captions: str) -> None:
    """Let precomputed examples be read as a model reads their captions, and say what that changes."""
    changed = {} if fit is None else stored.fit_captions(fit, long_captions)
    if changed:
        key, why = next(iter(changed.items()))
        say(f"{len(changed):,} captions are not read whole: {key}: {why}" + (" ..." if len(changed) > 1 else ""))


def fitted_store(
    recipe: Recipe, store: Path, splits: dict[str, PrecomputedLatents], task: Any = None
) -> dict[str, BatchAt]:
    """Precomputed splits with captions as the model reads them; those that were embedded are so already."""
    if not (store / "text.safetensors").is_file():
        fit = caption_fit(recipe.system) or learned_fit(task)
        for split in splits.values():
            fit_stored(split, fit, recipe.data.long_captions)
    return dict(splits)


def stored_captions(store: Path, *splits: str) -> list[str]:
    """Every caption of these splits of precomputed data, by default of the training data, once, sorted."""
    rows = [read_precomputed(store / f"examples-{split}.json")["captions"] for split in splits or ("train",)]
    return sorted({caption for captions in rows for row in captions for caption in row})


def batches(dataset: PictureDataset, seed: int) -> BatchAt:
    """What the loop asks for: the batch of a list of stream positions."""
    stream = SampleStream(len(dataset), seed)

    def batch_at(positions: list[int]) -> dict[str, Any]:
        dataset.quarantine.flush()  # what was left out at the opening, now that there is a folder
        return make_batch(dataset, stream, positions)

    return batch_at


def flip_of(recipe: Recipe, split: str) -> float:
    """With what probability the pictures of a split are mirrored: those of validation are not."""
    return recipe.data.flip if split == "train" else 0.0


def all_captions(*datasets: PictureDataset) -> list[str]:
    """Every caption of some datasets once, sorted."""
    return sorted({caption for dataset in datasets for caption in dataset.all_captions()})
