"""The base of what a recipe can train: configs that name data and networks and build their task."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

from torch import nn

from diptych.core.config import Config
from diptych.core.errors import UserError
from diptych.core.seeding import drawn_apart
from diptych.data.caption_text import Fit
from diptych.data.dataset import DataConfig, ImageDataset
from diptych.encoders.class_configs import ClassConfig
from diptych.encoders.configs import FrozenConfig, TextConfig
from diptych.networks.autoencoder import Autoencoder
from diptych.training.precompute import Kept
from diptych.training.prefetch import BatchAt
from diptych.training.read_text import Embedding
from diptych.training.trainable import Trainable
from diptych.training.trajectories import Teacher

Shape = tuple[int, ...]


class TrainingData(Protocol):
    """The data of a recipe, as images (`ImageData`) or precomputed (`PrecomputedData`)."""

    @property
    def images(self) -> ImageDataset:
        """The training split as images. A `UserError` where data are precomputed."""
        ...

    def captions(self, *splits: str, cut: bool = False, examples: int | None = None) -> list[str]:
        """Every caption of these splits, by default of all, once, sorted, in memory. cut: as the model reads them, also
        of precomputed data, whose captions are otherwise as they are stored. examples: of at most so many of each
        split, evenly spaced."""
        ...

    def encoded_by(self, autoencoder: nn.Module, kept: Kept = "latents", shape: tuple[int, ...] | None = None) -> None:
        """State which first stage, or teacher, is in use. A `UserError` where data were precomputed with another, or
        have another shape."""
        ...

    def embedded(self, config: TextConfig | ClassConfig | None, online: bool = False) -> Any:
        """The frozen text encoder of a config, to be read in the steps of training, or its stored embeddings where
        captions are precomputed and are not to be read online all the same."""
        ...

    def read_text(self, config: FrozenConfig, when: Embedding, prompts: Sequence[str] = (), *splits: str) -> Any:
        """The frozen text encoder of a config on the device of the run, to be read in its steps, or the embeddings of
        all captions of these splits, by default of all, and of these prompts. auto: those that are precomputed, if it
        made them; else by the number of examples."""
        ...

    def stored_text(self, config: FrozenConfig, folder: Path, prompts: Sequence[str] = ()) -> Any:
        """The embeddings of the captions that `diptych precompute` wrote into a folder, and of these prompts. A
        `UserError` where another encoder made them, or captions are not there."""
        ...

    def fit(self, fit: Callable[[], Fit | None]) -> None:
        """Cut captions as what `fit()` gives does; none changes nothing. Not called where captions are embedded."""
        ...

    def batches(self, seed: int) -> dict[str, BatchAt]:
        """The batches of each split, "train" and perhaps "held-out", by stream positions."""
        ...


class Precomputing(NamedTuple):
    """What `diptych precompute` runs."""

    autoencoder: Autoencoder | Teacher | None
    """Or the teacher whose trajectories are kept; none where the text encoder's embeddings are all that is kept."""
    text: Any
    """The frozen text encoder; none where captions are not embedded."""
    kept: Kept = "latents"
    count: int = 0
    """Of trajectories."""


class TrainingSystem(Config):
    """Base of the configs of what can be trained: subclasses say what differs from these defaults."""

    @property
    def text_config(self) -> Any:
        """The config of what reads captions (a text encoder, classes, layouts); none where none are read."""
        return None

    @property
    def precomputable(self) -> bool:
        """Whether `diptych precompute` has something to do."""
        return False

    @property
    def images_precomputable(self) -> bool:
        """Whether it does something with images; else captions alone are embedded."""
        return self.precomputable

    @property
    def texts_precomputable(self) -> bool:
        """Whether it embeds captions."""
        return self.precomputable and isinstance(self.text_config, FrozenConfig)

    @property
    def store(self) -> Path | None:
        """The folder of precomputed latents or codes that is trained on, if one is named."""
        folder = getattr(self, "precomputed", None)
        return None if folder is None else Path(folder)

    def networks(self) -> dict[str, nn.Module]:
        """Each network by its name, to be counted: call it on the meta device."""
        raise NotImplementedError

    def check_data(self, data: DataConfig) -> None:
        """Raise a `UserError` where images of this data do not fit the networks."""

    @property
    def bucket_multiple(self) -> int | None:
        """What the sides of images of any shape must be a multiple of; none where images must be square."""
        return None

    def caption_fit(self) -> Fit | None:
        """What cuts a caption to what is read of it, without loading weights. None where that is learned from captions
        (a tokenizer, the names of classes), or none are read."""
        return None if self.text_config is None else self.text_config.fitting()

    def with_class_names(self, captions: Callable[[], list[str]]) -> Self:
        """The same with the training captions as names of its classes, where `names_from_captions` asks for them."""
        return self

    def precomputing(self) -> Precomputing:
        """The models that `diptych precompute` runs, opened."""
        raise UserError(
            "only recipes over latents or codes, or with a frozen text encoder, have something to precompute"
        )

    def build(self, data: TrainingData, seed: int, resuming: bool = False) -> Trainable:
        """The task that the loop trains.

        First weights follow from `seed` alone. resuming: all weights come from a checkpoint, so that none are read
        from the model of `init_from`.
        """
        raise NotImplementedError


def first_weights(seed: int, of: str = "") -> contextlib.AbstractContextManager[None]:
    """Within, random weights follow from the run's seed (and `of`) alone, whatever was built before."""
    return drawn_apart(seed, f"first weights{of}")


OF_TEXT = " of the text encoder"


def require_side(data: DataConfig, field: str, side: int) -> None:
    """Raise a `UserError` unless training images have the side that a field of the system says."""
    if data.side != side:
        ours = "data.size" if data.crop is None else "data.crop"
        raise UserError(f"Recipe: {ours} ({data.side}) and {field} ({side}) must be the same: set both")


def require_multiple(data: DataConfig, multiple: int) -> None:
    """Raise a `UserError` unless the side of training images is such a multiple."""
    if data.side % multiple:
        field = "data.size" if data.crop is None else "data.crop"
        raise UserError(f"Recipe: {field} must be a multiple of {multiple}, not {data.side}")


def require_buckets(system: TrainingSystem, data: DataConfig) -> None:
    """Raise a `UserError` unless what is trained takes images in the buckets of the data."""
    multiple = system.bucket_multiple
    if not data.bucket_step:
        return
    if multiple is None or system.store is not None:
        what = "precomputed data is" if system.store is not None else f"images for {type(system).__name__} are"
        raise UserError(f"Recipe: data.bucket_step must be 0: {what} square")
    if data.bucket_step % multiple:
        raise UserError(f"Recipe: data.bucket_step must be a multiple of {multiple}, not {data.bucket_step}")
