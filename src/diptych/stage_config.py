"""The config of one stage of the cascade panel, and how a user's settings for it are read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from diptych.conditioning.low_resolution import AugmentationConfig
from diptych.conditioning.text import FrozenConfig
from diptych.config import Config
from diptych.diffusion.guidance import ThresholdConfig
from diptych.diffusion.samplers import SAMPLERS
from diptych.diffusion.schedule import ScheduleConfig
from diptych.errors import UserError, pick
from diptych.generation import read_number, read_steps
from diptych.networks.efficient_unet import EfficientUNet, EfficientUNetConfig
from diptych.networks.unet import UNet, UNetConfig


@dataclass(frozen=True, kw_only=True)
class StageConfig(Config):
    """A pixel diffusion model: its network, its noise schedule, and how it likes to be sampled."""

    kind: Literal["stage"] = "stage"
    """Which system this is."""
    network: UNetConfig | EfficientUNetConfig = EfficientUNetConfig()
    """The denoising network over pixels."""
    text: FrozenConfig | None = None
    """What reads the prompts, frozen; none for a stage without words (SR3, DDPM)."""
    schedule: ScheduleConfig = ScheduleConfig(kind="cosine")
    """The noise schedule."""
    prediction: Literal["eps", "v", "x0", "flow"] = "eps"
    """What the network predicts."""
    learned_variance: bool = False
    """The network's output has a second half, the variance (Nichol & Dhariwal 2021)."""
    size: int = 256
    """Side of the pictures that it makes, in pixels."""
    low_size: int | None = 64
    """Side of the pictures that it enlarges; none for a base stage, which starts from words alone."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """What is done to the picture that it enlarges."""
    steps: int = 50
    """Default number of sampling steps."""
    guidance: float = 1.0
    """Default weight of classifier-free guidance; 1 is none."""
    sampler: str = "ddpm"
    """Default sampler."""
    threshold: ThresholdConfig = ThresholdConfig()
    """Default bound on the estimate."""

    def check(self) -> None:
        self.require(self.size >= 1 and self.size % self.multiple == 0, "size", f"be a multiple of {self.multiple}")
        self.require(self.steps >= 1, "steps", "be at least 1")
        self.require(math.isfinite(self.guidance), "guidance", "be finite")
        self.require(self.sampler in SAMPLERS, "sampler", f"be one of {', '.join(SAMPLERS)}")
        if self.low_size is not None:
            whole = 1 <= self.low_size < self.size and self.size % self.low_size == 0
            self.require(whole, "low_size", f"divide size ({self.size})")
        net, text = self.network, None if self.text is None else self.text.width
        for name, value, wanted in (
            ("in_channels", net.in_channels, (3,)),
            ("concat_channels", net.concat_channels, (0 if self.low_size is None else 3,)),
            ("out_channels", net.out_channels, (6 if self.learned_variance else 3,)),
            ("context_width", net.context_width, (text, None)),
            ("pooled_width", net.pooled_width, (text, None)),
        ):
            if value not in wanted:
                raise UserError(f"StageConfig.network.{name} must be {wanted[0]} to fit its neighbours, not {value}")
        if net.augmented and self.low_size is None:
            raise UserError("StageConfig.network.augmented must be false: a base stage enlarges nothing")

    @property
    def multiple(self) -> int:
        """What a picture's sides are multiples of, so that every level of the network halves evenly."""
        levels = len(self.network.multipliers)
        return 2 ** (levels if isinstance(self.network, EfficientUNetConfig) else levels - 1)

    @property
    def factor(self) -> int:
        """How many times larger it makes a picture."""
        return self.size // self.low_size if self.low_size else 1

    @property
    def name(self) -> str:
        """What it does: "64" or "64-256"."""
        return f"{self.low_size}-{self.size}" if self.low_size else str(self.size)


def trained(network: nn.Module) -> bool:
    """Whether a network was ever trained: before, its last layer is all zeros and it would paint noise."""
    return bool(network.state_dict()["conv_out.weight"].any())


def build_network(config: UNetConfig | EfficientUNetConfig) -> UNet | EfficientUNet:
    return EfficientUNet(config) if isinstance(config, EfficientUNetConfig) else UNet(config)


@dataclass(frozen=True)
class Settings:
    """How one stage is sampled."""

    steps: int
    guidance: float
    sampler: str
    threshold: ThresholdConfig
    augmentation: float | None

    def told(self) -> dict[str, Any]:
        """As metadata."""
        told = {
            "steps": self.steps,
            "guidance": self.guidance,
            "sampler": self.sampler,
            "threshold": str(self.threshold),
        }
        return told if self.augmentation is None else {**told, "augmentation": self.augmentation}


def read_settings(
    config: StageConfig,
    *,
    steps: Any = None,
    guidance: Any = None,
    sampler: Any = None,
    threshold: Any = None,
    augmentation: Any = None,
) -> Settings:
    """A user's settings for a stage, its own where none are given; a `UserError` names what is wrong."""
    level = None
    if config.low_size is not None:
        level = read_number("augmentation", config.augmentation.level if augmentation is None else augmentation)
        if not 0 <= level <= 1:
            raise UserError(f"augmentation must lie between 0 and 1, not {level:g}")
    return Settings(
        read_steps(config.steps if steps is None else steps),
        read_number("guidance", config.guidance if guidance is None else guidance),
        pick("sampler", config.sampler if sampler is None else str(sampler), SAMPLERS),
        config.threshold if threshold is None else ThresholdConfig.parse(threshold),
        level,
    )
