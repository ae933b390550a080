"""The config of a VQGAN and transformer (Esser et al. 2021)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from torch import nn

from diptych.core.config import Config, Within
from diptych.core.errors import UserError
from diptych.encoders.class_configs import ClassConfig
from diptych.encoders.configs import Prompted, TextConfig
from diptych.networks.autoencoder import AutoencoderConfig
from diptych.networks.code_transformer import CodeTransformerConfig


@dataclass(frozen=True, kw_only=True)
class AutoregressiveConfig(Prompted, Config):
    """A VQ first stage, an autoregressive transformer over its codes, and default sampling options. The defaults are
    the paper's model of ImageNet's classes, with the settings of its samples."""

    kind: Literal["autoregressive"] = "autoregressive"
    """Which system this is."""
    autoencoder: AutoencoderConfig = AutoencoderConfig(
        latent_channels=256, multipliers=(1, 1, 2, 2, 4), attention_levels=(4,), codebook=16_384
    )
    """The first stage; it has a codebook."""
    transformer: CodeTransformerConfig = CodeTransformerConfig()
    """The transformer over its codes."""
    text: TextConfig | ClassConfig | None = ClassConfig(classes=1000)
    """The text encoder, or the classes; none for an unconditional model."""
    size: Annotated[int, Within(0, 2**16)] = 256
    """Side of the images it was trained on, in pixels."""
    temperature: float = 1.0
    """Default temperature of the logits."""
    top_k: int | None = None
    """By default, draw among the so many likeliest codes; none for all."""
    top_p: float = 1.0
    """By default, draw among the likeliest codes that have this probability together; 1 for all."""
    guidance: float = 1.0
    """Default weight of classifier-free guidance of the logits; 1 is none."""

    def check(self) -> None:
        factor = self.autoencoder.factor
        self.require(self.size >= 1 and self.size % factor == 0, "size", f"be a multiple of {factor}")
        self.require(0 < self.temperature < math.inf, "temperature", "be more than 0 and finite")
        self.require(self.top_k is None or self.top_k >= 1, "top_k", "be at least 1, or none")
        self.require(0 < self.top_p <= 1, "top_p", "be more than 0 and at most 1")
        self.require(math.isfinite(self.guidance), "guidance", "be finite")
        if self.autoencoder.codebook is None:
            raise UserError("AutoregressiveConfig.autoencoder.codebook must be set: codes are entries of a codebook")
        shape, classes = self.transformer, self.text.entries if isinstance(self.text, ClassConfig) else None
        for name, value, expected in (
            ("vocabulary", shape.vocabulary, self.autoencoder.codebook),
            ("length", shape.length, self.side**2),
            ("context_width", shape.context_width, None if self.encoder is None else self.encoder.width),
            ("classes", shape.classes, classes),
        ):
            if value != expected:
                raise UserError(
                    f"AutoregressiveConfig.transformer.{name} must be {expected} to fit its neighbours, not {value}"
                )

    @property
    def side(self) -> int:
        """Codes along the side of an image as it was trained on."""
        return self.size // self.autoencoder.factor

    def networks(self) -> dict[str, nn.Module]:
        """Each network by its name, to be counted: call it on the meta device."""
        parts = {"transformer": self.transformer.build(), "autoencoder": self.autoencoder.build()}
        return parts if self.encoder is None else {**parts, "text": self.encoder.build_network()}
