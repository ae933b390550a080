"""What a recipe is: a model to train, the data, and how, as values that check each other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from diptych.core.config import Config
from diptych.core.errors import UserError
from diptych.data.dataset import DataConfig
from diptych.encoders.cache import CachedTexts
from diptych.encoders.class_configs import ClassConfig
from diptych.encoders.configs import FrozenConfig, JointTransformerConfig
from diptych.models.autoregressive import Autoregressive
from diptych.models.autoregressive_config import AutoregressiveConfig
from diptych.models.latent_diffusion import LatentConfig, LatentDiffusion
from diptych.models.pixel_config import PixelDiffusionConfig
from diptych.models.pixel_diffusion import PixelDiffusion
from diptych.training.init_from import init_latent, init_pixel, open_pixel_model
from diptych.training.model_training import ModelTraining, SecondStageTraining, require_null
from diptych.training.precompute import Kept
from diptych.training.read_text import Embedding
from diptych.training.system import (
    OF_TEXT,
    Precomputing,
    TrainingData,
    first_weights,
    require_buckets,
    require_multiple,
)
from diptych.training.tasks.autoencoding import FirstStageConfig
from diptych.training.tasks.codes import CodesTask, CodesTraining
from diptych.training.tasks.contrastive import ContrastConfig
from diptych.training.tasks.diffusion import DiffusionTask, DiffusionTraining
from diptych.training.tasks.distillation import DistillationConfig
from diptych.training.tasks.few_steps import FewStepTraining
from diptych.training.tasks.guide_training import GuideTraining
from diptych.training.training_config import TrainingConfig


@dataclass(frozen=True, kw_only=True)
class LatentTraining(SecondStageTraining):
    """A latent diffusion model to train, over a first stage that is already trained."""

    renamed: ClassVar[dict[str, str]] = {"initial": "init_from"}
    kept: ClassVar[Kept] = "latents"

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
    """Folder that `diptych precompute` wrote, or none to encode images and captions at every step."""
    embed_text: Embedding = "auto"
    """When a frozen text encoder reads the captions. auto: in `diptych precompute`, or in each step where the folder
    holds no embeddings, or there is none. `online`: in each step, and `ahead`: all before the first step, rounded to
    half precision and kept for later runs; of both, `diptych precompute` keeps no embeddings."""
    init_from: str | None = None
    """Latent model whose U-Net initialises this one, or none for random weights. Tensors that do not fit are left out;
    input channels that it lacks, such as those of a mask, start at zero."""

    def check(self) -> None:
        if self.model.concat_condition is not None and self.precomputed is not None:
            raise UserError("LatentTraining.precomputed must be none: what is concatenated is made from the images")
        self.require_frozen()
        require_null("diffusion", self.model.text, self.diffusion.caption_dropout)

    @property
    def prompts(self) -> tuple[str, ...]:
        return self.diffusion.prompts

    @property
    def bucket_multiple(self) -> int | None:
        return self.model.autoencoder.factor if self.model.concat_condition is None else None

    def kept_shape(self) -> tuple[int, ...]:
        return (self.model.autoencoder.moment_channels, self.model.latent_size, self.model.latent_size)

    def build(self, data: TrainingData, seed: int, resuming: bool = False) -> DiffusionTask:
        autoencoder, text = self.parts(data, seed)
        with first_weights(seed):
            model = LatentDiffusion(self.model, autoencoder, text)
        if self.init_from is not None and not resuming:
            init_latent(model, self.init_from)
        return DiffusionTask(model, self.diffusion)


@dataclass(frozen=True, kw_only=True)
class AutoregressiveTraining(SecondStageTraining):
    """A transformer over the codes of a VQ first stage that is already trained."""

    kept: ClassVar[Kept] = "codes"

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
    """Folder that `diptych precompute` wrote, or none to encode images and captions at every step."""
    embed_text: Embedding = "auto"
    """When a frozen text encoder reads the captions. auto: in `diptych precompute`, or in each step where the folder
    holds no embeddings, or there is none. `online`: in each step, and `ahead`: all before the first step, rounded to
    half precision and kept for later runs; of both, `diptych precompute` keeps no embeddings."""

    def check(self) -> None:
        self.require_frozen()
        require_null("codes", self.model.text, self.codes.caption_dropout)

    @property
    def prompts(self) -> tuple[str, ...]:
        return self.codes.prompts

    def kept_shape(self) -> tuple[int, ...]:
        return (self.model.side, self.model.side)

    def build(self, data: TrainingData, seed: int, resuming: bool = False) -> CodesTask:
        autoencoder, text = self.parts(data, seed)
        with first_weights(seed):
            return CodesTask(Autoregressive(self.model, autoencoder, text), self.codes)


@dataclass(frozen=True, kw_only=True)
class PixelTraining(ModelTraining):
    """A pixel diffusion model to train: a base model, or one stage of a cascade, alone. The low-resolution images of a
    stage are made from its training images."""

    renamed: ClassVar[dict[str, str]] = {"initial": "init_from"}

    kind: Literal["stage"] = "stage"
    """Which system this is."""
    model: PixelDiffusionConfig = PixelDiffusionConfig()
    """The model."""
    diffusion: DiffusionTraining = DiffusionTraining()
    """Its objective, caption dropout and sample prompts."""
    init_from: str | None = None
    """Model whose network initialises this one, and whose text encoder where that is trained along; none for random
    weights. Input channels that it lacks, such as those of a mask, start at zero."""
    embed_text: Embedding = "auto"
    """When a frozen text encoder reads the captions: `ahead`, all before the first step, rounded to half precision and
    kept for later runs, or `online`, each step its own, on the device of the run. auto: ahead for up to 50,000
    examples."""
    precomputed: str | None = None
    """Folder of the embeddings of all captions that `diptych precompute` wrote, for a frozen text encoder, or none to
    embed them as `embed_text` says. Images are read as they are."""

    def check(self) -> None:
        require_null("diffusion", self.model.text, self.diffusion.caption_dropout)
        if self.precomputed is not None:
            self.require(self.precomputable, "precomputed", "be none: there is no frozen text encoder")
            self.require(self.embed_text == "auto", "embed_text", "be auto where captions are precomputed")

    @property
    def precomputable(self) -> bool:
        return isinstance(self.model.text, FrozenConfig)

    @property
    def images_precomputable(self) -> bool:
        return False

    @property
    def store(self) -> None:
        return None

    def precomputing(self) -> Precomputing:
        if not isinstance(text := self.model.text, FrozenConfig):
            return super().precomputing()
        return Precomputing(None, CachedTexts(text))  # built when there is something to embed

    @property
    def bucket_multiple(self) -> int:
        return math.lcm(self.model.multiple, self.model.factor)

    def check_data(self, data: DataConfig) -> None:
        if self.model.size not in (data.size, data.side):  # a crop is of images of its size, or of larger ones to it
            sizes = f"data.size ({data.size}) and system.model.size ({self.model.size})"
            raise UserError(f"Recipe: {sizes} must be the same: set both")
        require_multiple(data, math.lcm(self.model.multiple, self.model.factor))

    def build(self, data: TrainingData, seed: int, resuming: bool = False) -> DiffusionTask:
        """Where captions are embedded ahead, those and the sample prompts are embedded here, unless an earlier run did
        it; then the encoder is unloaded."""
        config, text, other = self.model.text, None, None
        joint = isinstance(config, JointTransformerConfig)
        if self.init_from is not None and (not resuming or joint):  # the tokenizer is in no checkpoint
            other = open_pixel_model(self.init_from)
        if isinstance(config, JointTransformerConfig):
            tokenizer = None if other is None or other.joint_text is None else other.joint_text.tokenizer
            with first_weights(seed, OF_TEXT):
                text = config.from_captions(self.learned_from(data), tokenizer)
        elif config is not None and not isinstance(config, ClassConfig):
            prompts = self.diffusion.prompts
            if self.precomputed is not None:
                text = data.stored_text(config, Path(self.precomputed), prompts)
            else:
                text = data.read_text(config, self.embed_text, prompts)
        with first_weights(seed):
            model = PixelDiffusion(self.model, text)
        if other is not None and not resuming:
            init_pixel(model, other, str(self.init_from))
        return DiffusionTask(model, self.diffusion)


@dataclass(frozen=True, kw_only=True)
class Recipe(Config):
    """What is trained, on what, and how."""

    description: str
    """One line for `diptych recipes`."""
    system: (
        FirstStageConfig
        | DistillationConfig
        | LatentTraining
        | FewStepTraining
        | AutoregressiveTraining
        | PixelTraining
        | GuideTraining
        | ContrastConfig
    )
    """What is trained."""
    data: DataConfig = DataConfig()
    """The training data; validation uses its held-out split."""
    training: TrainingConfig = TrainingConfig()
    """How it is trained."""

    def check(self) -> None:
        self.system.check_data(self.data)
        require_buckets(self.system, self.data)
        if self.data.bucket_step and self.training.cuda_graphs:
            raise UserError("Recipe: data.bucket_step must be 0 with training.cuda_graphs, which are of one shape")
        if self.data.bucket_step and self.training.evaluation.images:
            raise UserError("Recipe: training.evaluation.images must be 0 with data.bucket_step: it is of one shape")
        if self.data.drawn and self.system.store is not None:
            raise UserError(f"Recipe: {NOT_PRECOMPUTED}: set system.precomputed=none")
        if self.data.in_memory and self.training.worker_kind == "processes":
            raise UserError("Recipe: data.in_memory keeps images in one process: set training.worker_kind=threads")


NOT_PRECOMPUTED = "latents are not kept of images of which data.crop or data.center_shift draw another part each time"
