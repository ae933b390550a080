"""What a recipe is: a model to train, the data, and how, as values that check each other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from diptych.core.config import Config
from diptych.core.errors import UserError
from diptych.data.dataset import DataConfig
from diptych.encoders.configs import ClassConfig
from diptych.models.autoregressive_config import AutoregressiveConfig
from diptych.models.latent_diffusion import LatentConfig
from diptych.models.pixel_config import PixelDiffusionConfig
from diptych.training.tasks.autoencoding import FirstStageConfig
from diptych.training.tasks.codes import CodesTraining
from diptych.training.tasks.contrastive import ContrastConfig
from diptych.training.tasks.diffusion import DiffusionTraining
from diptych.training.tasks.distillation import DistillationConfig
from diptych.training.tasks.guide_training import GuideTraining
from diptych.training.training_config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class LatentTraining(Config):
    """A latent diffusion model to train, over a first stage that is already trained."""

    renamed: ClassVar[dict[str, str]] = {"initial": "init_from"}

    kind: Literal["latent"] = "latent"
    """Which system this is."""
    model: LatentConfig = LatentConfig()
    """The model."""
    diffusion: DiffusionTraining = DiffusionTraining()
    """Its objective, caption dropout and sample prompts."""
    autoencoder: str = "runs/autoencoder"
    """Run folder or model folder of the trained first stage, or a published one; its network must be
    `model.autoencoder`."""
    precomputed: str | None = None
    """Folder that `diptych precompute` wrote, or none to encode pictures and captions at every step."""
    init_from: str | None = None
    """Latent model whose U-Net training starts from, or none for random weights. What it has no place for is left out;
    what it lacks, such as channels for a mask, starts as if it were not there."""

    def check(self) -> None:
        if self.model.reads is not None and self.precomputed is not None:
            raise UserError("LatentTraining.precomputed must be none: what is concatenated is made from the pictures")
        require_null("diffusion", self.model.text, self.diffusion.caption_dropout)


@dataclass(frozen=True, kw_only=True)
class AutoregressiveTraining(Config):
    """A transformer over the codes of a VQ first stage that is already trained."""

    kind: Literal["autoregressive"] = "autoregressive"
    """Which system this is."""
    model: AutoregressiveConfig = AutoregressiveConfig()
    """The model."""
    codes: CodesTraining = CodesTraining()
    """Its caption dropout and sample prompts."""
    autoencoder: str = "runs/autoencoder"
    """Run folder or model folder of the trained first stage, or a published one; its network must be
    `model.autoencoder`."""
    precomputed: str | None = None
    """Folder that `diptych precompute` wrote, or none to encode pictures and captions at every step."""

    def check(self) -> None:
        require_null("codes", self.model.text, self.codes.caption_dropout)


@dataclass(frozen=True, kw_only=True)
class StageTraining(Config):
    """One stage of a cascade to train, alone: its low-resolution pictures are made from the true ones."""

    renamed: ClassVar[dict[str, str]] = {"initial": "init_from"}

    kind: Literal["stage"] = "stage"
    """Which system this is."""
    model: PixelDiffusionConfig = PixelDiffusionConfig()
    """The stage."""
    diffusion: DiffusionTraining = DiffusionTraining()
    """Its objective, caption dropout and sample prompts."""
    init_from: str | None = None
    """Stage whose network training starts from, and whose text encoder where that is trained along; none for random
    weights. Input channels that it lacks, such as those of a mask, start as if they were not there."""

    def check(self) -> None:
        require_null("diffusion", self.model.text, self.diffusion.caption_dropout)


def require_null(field: str, text: Config | None, dropout: float) -> None:
    """Raise a `UserError` where captions are dropped, and nothing stands for the class that they name."""
    if dropout > 0 and isinstance(text, ClassConfig) and text.null is None:
        raise UserError(
            f"{field}.caption_dropout must be 0, not {dropout:g}: no class stands for none. Or set model.text.null, "
            "and one class more in the network"
        )


@dataclass(frozen=True, kw_only=True)
class Recipe(Config):
    """What is trained, on what, and how."""

    description: str
    """One line for `diptych recipes`."""
    system: (
        FirstStageConfig
        | DistillationConfig
        | LatentTraining
        | AutoregressiveTraining
        | StageTraining
        | GuideTraining
        | ContrastConfig
    )
    """What is trained."""
    data: DataConfig = DataConfig()
    """The training data; validation uses its held-out split."""
    training: TrainingConfig = TrainingConfig()
    """How it is trained."""

    def check(self) -> None:
        system, data = self.system, self.data
        field = "data.size" if data.crop is None else "data.crop"
        wanted, unit = read_side(system), read_unit(system)
        if isinstance(system, StageTraining) and system.model.size not in (data.size, data.side):
            # a crop is of pictures of its size, or of larger ones to that size
            sizes = f"data.size ({data.size}) and system.model.size ({system.model.size})"
            raise UserError(f"Recipe: {sizes} must be the same: set both")
        if wanted is not None and data.side != wanted[1]:
            raise UserError(f"Recipe: {field} ({data.side}) and {wanted[0]} ({wanted[1]}) must be the same: set both")
        if data.side % unit:
            raise UserError(f"Recipe: {field} must be a multiple of {unit}, not {data.side}")
        if data.drawn and getattr(system, "precomputed", None) is not None:
            raise UserError(f"Recipe: {KEEPS_NONE}: set system.precomputed=none")


KEEPS_NONE = "latents are not kept of pictures of which data.crop or data.center_shift draw another part each time"


def read_side(system: Any) -> tuple[str, int] | None:
    """The field of a system that says the side of the pictures that it reads, and what it says; none for any size."""
    if isinstance(system, (LatentTraining, AutoregressiveTraining)):
        return "system.model.size", system.model.size
    if isinstance(system, GuideTraining) and system.guided is None and system.network.size is not None:
        return "system.network.size", system.network.size
    return None


def read_unit(system: Any) -> int:
    """What the sides of the pictures that a system reads are multiples of, where they may be several."""
    if isinstance(system, StageTraining):
        return math.lcm(system.model.multiple, system.model.factor)
    if isinstance(system, (FirstStageConfig, DistillationConfig)):
        return system.network.factor
    if isinstance(system, GuideTraining) and system.guided is None:
        return 2 ** (len(system.network.encoder.multipliers) - 1)
    return 1
