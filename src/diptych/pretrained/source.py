"""What a published model is read from: a folder or one file, and how the user wants it read."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from diptych.core.config import read_json
from diptych.core.errors import UserError
from diptych.core.values import short_repr
from diptych.weights.lazy import LazyCheckpoint


@dataclass(frozen=True, kw_only=True)
class Options:
    """How the user wants a published model read. `allow_pickle` is a leave, which need not be made use of; any other
    that is given must have an effect."""

    allow_pickle: bool = False
    """Read .ckpt, .pt and .bin files too: their tensors and plain values, never code."""
    tokenizer: Path | None = None
    """A folder with the tokenizer of a single file, which has none."""
    dtype: torch.dtype | None = torch.float32
    """The floating type of the networks in memory; none: as stored."""
    ema: bool = False
    """Of a CompVis file that holds both, the averaged weights; those that were trained otherwise, as diffusers."""
    prediction: Literal["eps", "v"] | None = None
    """What the U-Net of a single file predicts, which the file need not say; none: as `sd_file.prediction_of` finds."""

    def without_effect(self, takes: tuple[str, ...], what: str) -> None:
        """Raise a `UserError` that names the first option that is given and is not among those that `what` takes."""
        for name in ("tokenizer", "ema", "prediction"):
            if getattr(self, name) and name not in takes:
                raise UserError(f"{name} has no effect on {what}: leave it out")


class Source:
    """A folder in the layout of diffusers or transformers, or one file of weights. Nothing is read before it is asked
    for, except a folder's model_index.json."""

    path: Path
    options: Options
    folder: bool
    """A folder, not a file."""
    index: dict[str, Any] | None
    """model_index.json of a diffusers folder: which class each of its parts is of."""

    def __init__(self, path: Path, options: Options | None = None) -> None:
        self.path, self.options = Path(path), options or Options()
        self.folder = self.path.is_dir()
        index = self.path / "model_index.json"
        self.index = read_object(index) if self.folder and index.is_file() else None

    @functools.cached_property
    def checkpoint(self) -> LazyCheckpoint:
        """The tensors of a single file, those of a nested "state_dict" where there is one.

        Raises a `UserError` for a folder, a damaged file, or a pickle that the user has not allowed.
        """
        if self.folder:
            raise UserError(f"{self.path} is a folder, not a single file of weights")
        return LazyCheckpoint.open(self.path, allow_pickle=self.options.allow_pickle)

    def part(self, name: str, file: str = "diffusion_pytorch_model") -> LazyCheckpoint:
        """The weights in the sub-folder `name` ("" is the folder itself): whole or in shards, plain or a variant."""
        return LazyCheckpoint.open(self.path / name, file, self.options.allow_pickle)

    def config(self, name: str, file: str = "config.json") -> dict[str, Any]:
        """A JSON file of the sub-folder `name` ("" is the folder itself)."""
        return read_object(self.path / name / file)

    def scheduler(self, name: str = "scheduler") -> dict[str, Any]:
        """The scheduler_config.json of the sub-folder `name`. A `UserError` for a value that none can have."""
        file = "scheduler_config.json"
        values, where = self.config(name, file), self.path / name / file
        for field, value in values.items():
            largest = SCHEDULER_NUMBERS.get(field)
            number = type(value) is int if type(largest) is int else type(value) in (int, float)
            if value is not None and largest and not (number and 0 <= value <= largest):
                kind = "whole number" if type(largest) is int else "number"
                raise UserError(f"{where}: {field} must be a {kind} from 0 to {largest:,}, not {short_repr(value)}")
            if value is not None and field in SCHEDULER_WORDS and not isinstance(value, str):
                raise UserError(f"{where}: {field} must be a text, not {short_repr(value)}")
        if values.get("num_train_timesteps") == 0:
            raise UserError(f"{where}: num_train_timesteps must be at least 1, not 0")
        return values


SCHEDULER_NUMBERS: dict[str, int | float] = {
    "num_train_timesteps": 100_000,
    "steps_offset": 100_000,
    "beta_start": 1.0,
    "beta_end": 1.0,
    "dynamic_thresholding_ratio": 1.0,
    "sample_max_value": 1e6,
    "clip_sample_range": 1e6,
}
"""Fields of diffusers' schedulers that are numbers, and more than any of them is; whole ones are whole."""
SCHEDULER_WORDS = {
    "_class_name",
    "beta_schedule",
    "prediction_type",
    "timestep_spacing",
    "algorithm_type",
    "variance_type",
}


class Family(NamedTuple):
    """One kind of published model."""

    name: str
    fits: Callable[[Source], bool]
    """Whether a source is of this family, by class names, keys and shapes."""
    read: Callable[[Source], Any]
    """The system in it: a `LatentDiffusion`, `Stage` or `Cascade`."""
    first_stage: Callable[[Source], Any] | None = None
    """The autoencoder in it alone, the rest left unread; none for a family that has no autoencoders."""
    takes: tuple[str, ...] = ("tokenizer", "ema", "prediction")
    """Of `Options`, those that have an effect on it beside `allow_pickle` and `dtype`."""


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises a `UserError` where there is none."""
    values = read_json(path, missing=f"there is no file {path}")
    if not isinstance(values, dict):
        raise UserError(f"{path} does not hold a JSON object; get or make it again")
    return values
