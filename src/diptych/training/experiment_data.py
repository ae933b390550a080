"""The data that a recipe trains on, with captions as its model reads them: images, or what was precomputed of them."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from diptych.core.disk import values_of
from diptych.core.errors import NotFound, UserError
from diptych.core.hashing import mix
from diptych.core.progress import waiting
from diptych.core.terminal import print_err
from diptych.data.caption_text import Fit
from diptych.data.dataset import ImageDataset, open_dataset
from diptych.data.filters import filters_said
from diptych.data.quarantine import silent
from diptych.data.stream import ImageBatches
from diptych.encoders.cache import CachedTexts
from diptych.encoders.class_configs import ClassConfig
from diptych.encoders.configs import FrozenConfig, FrozenTextConfig, JointTransformerConfig, TextConfig, build_encoder
from diptych.training.distributed import own_device
from diptych.training.precompute import EmbeddedTexts
from diptych.training.precomputed import Examples, Kept, PrecomputedLatents, precomputed_splits, spaced
from diptych.training.prefetch import BatchAt
from diptych.training.read_text import Embedding, PrecomputedTexts, ahead, embedded_ahead, read_online
from diptych.training.system import TrainingData

if TYPE_CHECKING:
    from diptych.training.experiment_config import Recipe

QUARANTINE = "quarantine.jsonl"
LOOKED_UP = 1000
"""Examples whose captions are looked up in a store of texts before the first step."""


def open_data(recipe: Recipe, record: Path) -> TrainingData:
    """The data of a recipe: precomputed where its system names a folder of such, else images; record: the file that
    lists the images that are left out."""
    store = recipe.system.store
    if store is not None:
        return PrecomputedData(recipe, store)
    training = recipe.training
    device, splits = own_device(training.device), open_splits(recipe, record)
    return ImageData(splits, device, training.random, training.batch_size)


def split_seed(seed: int, split: str) -> int:
    """The seed of a split's stream in a run with this seed."""
    return seed if split == "train" else mix(seed, 3)


class ImageData:
    """Images with captions, decoded when a batch is made. A `TrainingData`."""

    def __init__(
        self,
        splits: dict[str, ImageDataset],
        device: torch.device | None = None,
        random: str = "generator",
        batch_size: int = 1,
    ) -> None:
        """device: where captions are embedded, by default on the CPU. random: `TrainingConfig.random`. batch_size: of
        all processes together."""
        self.splits, self.device, self.random = splits, device or torch.device("cpu"), random
        self.batch_size = batch_size

    @property
    def images(self) -> ImageDataset:
        return self.splits["train"]

    def captions(self, *splits: str, cut: bool = False, examples: int | None = None) -> list[str]:
        return all_captions(*(self.splits[split] for split in splits or self.splits), examples=examples)

    def encoded_by(self, autoencoder: nn.Module, kept: Kept = "latents", shape: tuple[int, ...] | None = None) -> None:
        """Nothing is encoded yet."""

    def embedded(self, config: TextConfig | ClassConfig | None, online: bool = False) -> Any:
        return read_online(lambda: build_encoder(config))

    def read_text(self, config: FrozenConfig, when: Embedding, prompts: Sequence[str] = (), *splits: str) -> Any:
        if ahead(when, sum(map(len, self.splits.values()))):
            return embedded_ahead(config, [*self.captions(*splits), *prompts], self.device)
        return read_online(lambda: config.build(device=self.device))

    def stored_text(self, config: FrozenConfig, folder: Path, prompts: Sequence[str] = ()) -> Any:
        text = PrecomputedTexts(config, folder, prompts, self.device)
        text.read(self.captions(examples=LOOKED_UP))  # a few of each split: where the data are others it is said now
        return text

    def fit(self, fit: Callable[[], Fit | None]) -> None:
        fit_all(fit(), *self.splits.values())

    def batches(self, seed: int) -> dict[str, BatchAt]:
        return {
            split: ImageBatches(dataset, split_seed(seed, split), self.random, self.batch_size)
            for split, dataset in self.splits.items()
        }


class PrecomputedData:
    """Latents or codes, and perhaps embeddings of captions, that `diptych precompute` wrote. A `TrainingData`."""

    def __init__(self, recipe: Recipe, store: Path) -> None:
        self.store, self.config, self.seed = store, recipe.data, recipe.training.seed
        self.random = recipe.training.random
        self.device = own_device(recipe.training.device)
        self.stated, self.text = values_of(store / "config.json"), recipe.system.text_config
        self.has_texts = (store / "text.safetensors").is_file() or "texts" in self.stated
        self.splits: dict[str, PrecomputedLatents] = {}
        self._fit: Fit | None = None

    @property
    def images(self) -> ImageDataset:
        raise UserError(f"{self.store} holds precomputed data, and this needs images: set system.precomputed=none")

    def captions(self, *splits: str, cut: bool = False, examples: int | None = None) -> list[str]:
        if cut:
            self._cut_captions()
            return sorted({one for split in splits or self.splits for one in self.splits[split].all_captions(examples)})
        kept: Kept = "latents" if any(self.store.glob("latents-*.safetensors")) else "codes"
        stored = [Examples(self.store, split, kept) for split in splits or precomputed_splits(self.store)]
        rows = (rows.captions(row) for rows in stored for row in spaced(range(len(rows)), examples))
        return sorted({caption for row in rows for caption in row})

    def encoded_by(self, autoencoder: nn.Module, kept: Kept = "latents", shape: tuple[int, ...] | None = None) -> None:
        for split in ("train", *(name for name in precomputed_splits(self.store) if name == "held-out")):
            flip = self.config.flip if split == "train" else 0.0  # images of validation are not mirrored
            self.splits[split] = PrecomputedLatents(
                self.store, split, split_seed(self.seed, split), autoencoder, kept, flip, self.random
            )
        stored = self.splits["train"].shape
        if shape is not None and stored != shape:
            raise UserError(
                f"{self.store} holds {kept} of shape {stored}, not {shape}: make it again with `diptych precompute`"
            )

    def embedded(self, config: TextConfig | ClassConfig | None, online: bool = False) -> Any:
        if self.has_texts and isinstance(config, FrozenTextConfig) and not online:
            # the encoder is built for other prompts alone
            texts = EmbeddedTexts.load(CachedTexts(config), self.store)  # type: ignore[arg-type]
            texts.keep_on(self.device)
            return texts
        return read_online(lambda: build_encoder(config))

    def read_text(self, config: FrozenConfig, when: Embedding, prompts: Sequence[str] = (), *splits: str) -> Any:
        if when == "auto" and self.stated.get("texts", {}).get("encoder") == config.fingerprint():
            return self.embedded(config)
        if ahead(when, sum(len(split.places) for split in self.splits.values())):
            return embedded_ahead(config, [*self.captions(*splits, cut=True), *prompts], self.device)
        return read_online(lambda: config.build(device=self.device))

    def stored_text(self, config: FrozenConfig, folder: Path, prompts: Sequence[str] = ()) -> Any:
        return PrecomputedTexts(config, folder, prompts, self.device)

    def fit(self, fit: Callable[[], Fit | None]) -> None:
        """The first that is not none counts; captions are kept as the encoder reads them that read them then."""
        if self._fit is None and not self.fitted:
            self._fit = fit()

    @functools.cached_property
    def fitted(self) -> bool:
        """Whether the captions in the folder are cut to what is read of them. To go through all of them takes hours
        where there are a hundred million."""
        if not isinstance(self.text, FrozenTextConfig):
            return self.has_texts
        cut_for = self.stated.get("captions") or self.stated.get("texts", {}).get("encoder")
        return self.has_texts if cut_for is None else cut_for == self.text.fingerprint()

    def batches(self, seed: int) -> dict[str, BatchAt]:
        self._cut_captions()
        return dict(self.splits)

    def _cut_captions(self) -> None:
        """Cut the captions that are too long, or leave their examples out, and say so."""
        if self._fit is None:
            return
        for split in self.splits.values():
            if changed := split.fit_captions(self._fit, self.config.long_captions):
                key, why = next(iter(changed.items()))
                more = " ..." if len(changed) > 1 else ""
                print_err(f"{len(changed):,} captions are not read whole: {key}: {why}{more}")
        self._fit = None


def open_splits(recipe: Recipe, record: Path) -> dict[str, ImageDataset]:
    """The training data of a recipe and, where it has one, the held-out split, as "train" and "held-out".

    record: the file that lists what is left out. Prints one line with the number of examples, and of those left out.
    Every process opens the data; the first alone prints, and writes the record.
    """
    main = os.environ.get("RANK", "0") == "0"
    with silent(not main):
        train = open_dataset(recipe.data, captions=recipe.system.text_config is not None, record=record)
        splits = {"train": train, **held_out(train)}
    fit_all(recipe.system.caption_fit(), *splits.values())
    if main:
        print_err(described(splits))
        if recipe.data.held_out and "held-out" not in splits:
            print_err(
                f"data.held_out={recipe.data.held_out:g} sets none of these {len(train)} apart: nothing is validated; "
                "raise it, or give some examples the split held-out"
            )
    else:
        train.quarantine.forget()
    return splits


def open_all(recipe: Recipe, settings: dict[str, Any]) -> ImageDataset:
    """All the data of a recipe, with captions as its model reads them and `settings` of its data, to be checked."""
    data = dataclasses.replace(recipe.data, **settings)
    text = recipe.system.text_config
    dataset = open_dataset(data, captions=text is not None)
    with waiting("loading the tokenizer"):
        fit = recipe.system.caption_fit()
    if fit is None and isinstance(text, JointTransformerConfig):
        fit = text.from_captions(lambda split: all_captions(dataset)).fit
    fit_all(fit, dataset)
    return dataset


def held_out(train: ImageDataset) -> dict[str, ImageDataset]:
    """The held-out split of training data as "held-out", or nothing where there is none."""
    try:
        return {"held-out": train.split("held-out")}
    except NotFound:
        return {}


def described(splits: dict[str, ImageDataset]) -> str:
    """How many examples there are, and how many are known to be left out and for what reason."""
    train = splits["train"]
    counts = f"{len(train):,} examples to train on, {len(splits.get('held-out', ())):,} held out"
    if filtered := train.source.selection.filtered:
        counts += f", {filters_said(filtered)}"
    left = train.left_out
    if not left:
        return f"{train.config.path}: {counts}"
    _, name, why = left[0]
    others = f" and {len(left) - 1:,} more" if len(left) > 1 else ""
    return (
        f"{train.config.path}: {counts}, {len(left):,} left out ({name}: {why}{others}; `diptych data check` lists all)"
    )


def fit_all(fit: Fit | None, *datasets: ImageDataset) -> None:
    """Let the captions of data be cut by `fit`; none leaves them as they are."""
    for dataset in datasets:
        dataset.fit = fit or dataset.fit


def learned_fit(task: Any) -> Fit | None:
    """What cuts captions, of a task whose text encoder learned its tokenizer, or classes, from captions."""
    return getattr(getattr(getattr(task, "system", None), "text", None), "fit", None)


def all_captions(*datasets: ImageDataset, examples: int | None = None) -> list[str]:
    """Every caption of some datasets once, sorted; examples: of at most so many of each, evenly spaced, without those
    that are broken."""
    found: set[str] = set()
    for dataset in datasets:
        if examples is None or len(dataset) <= examples:
            found.update(dataset.all_captions())
        else:
            found.update(some_captions(dataset, examples))
    return sorted(found)


def some_captions(dataset: ImageDataset, examples: int) -> Iterator[str]:
    """The captions of so many examples, evenly spaced."""
    for index in spaced(range(len(dataset)), examples):
        with contextlib.suppress(Exception):  # whatever a reader raises; training will meet it and say so
            yield from dataset.meta(index)["captions"]
