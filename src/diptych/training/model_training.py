"""The bases of the systems that train a generative model: with a first stage beneath it, or without."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar, Self

from torch import nn

from diptych.core.config import Config
from diptych.core.errors import UserError
from diptych.data.dataset import DataConfig
from diptych.encoders.class_configs import ClassConfig
from diptych.encoders.classes import with_names
from diptych.encoders.configs import FrozenConfig, JointTransformerConfig, LearnedConfig, build_encoder
from diptych.networks.autoencoder import Autoencoder
from diptych.pretrained.load import open_autoencoder
from diptych.training.precompute import Kept
from diptych.training.read_text import Embedding
from diptych.training.system import OF_TEXT, Precomputing, TrainingData, TrainingSystem, first_weights, require_side

LEARNED_FROM = 1_000_000
"""A tokenizer is learned from the captions of at most so many examples."""


class ModelTraining(TrainingSystem):
    """Base of the systems that train the model of a config, `model`, whose prompts `model.text` reads."""

    model: Any

    @property
    def text_config(self) -> Any:
        return self.model.text

    def networks(self) -> dict[str, nn.Module]:
        return self.model.networks()

    def learned_from(self, data: TrainingData) -> Callable[..., list[str]]:
        """The captions from which a text encoder that is trained along learns its tokenizer, of a million examples at
        most, or the names of its classes, of all."""
        joint = isinstance(self.model.text, JointTransformerConfig)
        return functools.partial(data.captions, examples=LEARNED_FROM) if joint else data.captions

    def with_class_names(self, captions: Callable[[], list[str]]) -> Self:
        text = self.model.text
        if not isinstance(text, ClassConfig) or not text.names_from_captions:
            return self
        model = dataclasses.replace(self.model, text=with_names(text, captions()))
        return dataclasses.replace(self, model=model)  # type: ignore[type-var]


class SecondStageTraining(ModelTraining):
    """Base of the systems that train a model over a first stage, `autoencoder`, that is already trained."""

    autoencoder: str
    precomputed: str | None
    embed_text: Embedding
    kept: ClassVar[Kept]
    """What is precomputed of an image."""

    @property
    def precomputable(self) -> bool:
        return True

    @property
    def texts_precomputable(self) -> bool:
        return super().texts_precomputable and self.embed_text == "auto"

    @property
    def texts_stored(self) -> bool:
        """Whether a step finds embeddings of its captions, by a plan in which all is precomputed that can be."""
        return self.embed_text == "ahead" or (self.precomputed is not None and self.embed_text == "auto")

    @property
    def prompts(self) -> tuple[str, ...]:
        """The prompts of the samples."""
        raise NotImplementedError

    def require_frozen(self) -> None:
        """Raise a `UserError` where it is said when captions are embedded, and they are not."""
        frozen = self.embed_text == "auto" or isinstance(self.model.text, FrozenConfig)
        self.require(frozen, "embed_text", "be auto: there is no frozen text encoder")

    def check_data(self, data: DataConfig) -> None:
        require_side(data, "system.model.size", self.model.size)

    def first_stage(self) -> Autoencoder:
        """The trained autoencoder. A `UserError` where it is none, or not that of `model.autoencoder`."""
        module = open_autoencoder(self.autoencoder)
        if module.config != self.model.autoencoder:
            raise UserError(
                f"the autoencoder in {self.autoencoder} has another shape than the recipe's model.autoencoder"
            )
        return module

    def kept_shape(self) -> tuple[int, ...]:
        """The shape of what is precomputed of an image."""
        raise NotImplementedError

    def precomputing(self) -> Precomputing:
        text = build_encoder(self.model.text) if self.texts_precomputable else None
        return Precomputing(self.first_stage(), text, self.kept)

    def parts(self, data: TrainingData, seed: int) -> tuple[Autoencoder, Any]:
        """The first stage and what reads the prompts."""
        autoencoder = self.first_stage()
        data.encoded_by(autoencoder, self.kept, self.kept_shape())
        return autoencoder, self.reader(data, seed)

    def reader(self, data: TrainingData, seed: int) -> Any:
        """What reads the prompts."""
        text = self.model.text
        with first_weights(seed, OF_TEXT):
            if isinstance(text, LearnedConfig):
                return text.from_captions(self.learned_from(data))
            if isinstance(text, FrozenConfig) and self.embed_text == "ahead":
                return data.read_text(text, "ahead", self.prompts)
            return data.embedded(text, online=self.embed_text == "online")


def require_null(field: str, text: Config | None, dropout: float) -> None:
    """Raise a `UserError` where captions are dropped, and there is no null class."""
    if dropout > 0 and isinstance(text, ClassConfig) and text.null is None:
        raise UserError(
            f"{field}.caption_dropout must be 0, not {dropout:g}: no class stands for none. Or set model.text.null, "
            "and one class more in the network"
        )
