"""The config of a pixel diffusion model, which may be a stage of a cascade."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from torch import nn

from diptych.conditioning.concat_config import DegradationConfig, MaskConfig
from diptych.conditioning.lowres_augmentation import AugmentationConfig
from diptych.core.config import Config, Within, read_json
from diptych.core.errors import UserError
from diptych.core.values import short_repr
from diptych.diffusion.samplers import SAMPLERS
from diptych.diffusion.schedules import ScheduleConfig
from diptych.diffusion.thresholding import ThresholdConfig
from diptych.diffusion.times import TimesConfig
from diptych.encoders.class_configs import ClassConfig
from diptych.encoders.configs import FrozenConfig, JointTransformerConfig, Prompted
from diptych.networks.adm_config import AdmUNetConfig
from diptych.networks.efficient_unet import EfficientUNetConfig
from diptych.networks.unet import UNetConfig


@dataclass(frozen=True, kw_only=True)
class PixelDiffusionConfig(Prompted, Config):
    """A pixel diffusion model: its network, noise schedule and default sampling options."""

    renamed: ClassVar[dict[str, str]] = {
        "null": "null_text",
        "stands_in_for": "published_scheduler",
        "refused": "unsupported_samplers",
    }

    kind: Literal["stage"] = "stage"
    """Which system this is."""
    network: UNetConfig | EfficientUNetConfig | AdmUNetConfig = EfficientUNetConfig()
    """The denoising network over pixels."""
    text: FrozenConfig | JointTransformerConfig | ClassConfig | None = None
    """What reads the prompts, frozen or trained along (GLIDE), or the classes that they name; none for a stage without
    words (SR3, DDPM)."""
    null_text: Literal["zeros", "empty"] = "zeros"
    """The null condition of caption dropout and guidance: zeros (Imagen), or the empty prompt as it is read
    (DeepFloyd IF)."""
    schedule: ScheduleConfig = ScheduleConfig(kind="cosine")
    """The noise schedule."""
    times: TimesConfig = TimesConfig()
    """At which of its times a sampler looks."""
    prediction: Literal["eps", "v", "x0", "flow"] = "eps"
    """What the network predicts."""
    learned_variance: bool = False
    """The network's output has a second half, the variance (Nichol & Dhariwal 2021)."""
    size: Annotated[int, Within(0, 2**16)] = 256
    """Side of the images that it makes, in pixels."""
    low_size: Annotated[int | None, Within(0, 2**16)] = 64
    """Side of the images that it enlarges; none for a base stage, which starts from words alone."""
    degradation: DegradationConfig | None = None
    """How training images are made small; averaged over boxes if none."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """Upsampling and augmentation of the low-resolution image."""
    masks: MaskConfig | None = None
    """Masks that training draws, for a stage that repaints a part of an image (GLIDE, section 4.3): the last four
    concatenated channels are the masked image and the mask, 1 where masked. A
    super-resolution stage reads all of its small image, and so much of the large one. None for any other stage."""
    steps: int = 50
    """Default number of sampling steps."""
    guidance: float = 1.0
    """Default weight of classifier-free guidance; 1 is none."""
    sampler: str = "ddpm"
    """Default sampler."""
    variance: Literal["fixed-small", "fixed-large"] = "fixed-small"
    """Of what the ddpm sampler draws, where it is not learned: that of the posterior, beta-tilde, or that of a step
    towards noise, beta (SR3)."""
    published_scheduler: str | None = None
    """The scheduler with which the stage was published, where the default sampler is but the nearest to it."""
    unsupported_samplers: tuple[tuple[str, str], ...] = ()
    """(sampler, why) of those that cannot be had as the published scheduler asks; "" is the default."""
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
        net, text = self.network, None if self.encoder is None else self.encoder.width
        classes = self.text.entries if isinstance(self.text, ClassConfig) else None
        token = (
            net.context_width if classes and isinstance(net, UNetConfig) else text
        )  # of a class: as wide as it likes
        for name, value, expected in (
            ("in_channels", net.in_channels, (3,)),
            ("concat_channels", net.concat_channels, (self.concat_channels,)),
            ("out_channels", net.out_channels, (6 if self.learned_variance else 3,)),
            ("context_width", net.context_width, (token, None)),
            ("pooled_width", net.pooled_width, (text, None)),
            ("classes", getattr(net, "classes", None), (classes,)),
        ):
            if value not in expected:
                raise UserError(
                    f"PixelDiffusionConfig.network.{name} must be {expected[0]} to fit its neighbours, not {value}"
                )
        if net.augmented and self.low_size is None:
            raise UserError("PixelDiffusionConfig.network.augmented must be false: a base stage enlarges nothing")

    def networks(self) -> dict[str, nn.Module]:
        """Each network by its name, to be counted: call it on the meta device."""
        parts: dict[str, nn.Module] = {"network": self.network.build()}
        return parts if self.encoder is None else {**parts, "text": self.encoder.build_network()}

    @property
    def concat_channels(self) -> int:
        """Channels that are concatenated to the noisy image."""
        return (0 if self.low_size is None else 3) + (0 if self.masks is None else 4)

    @property
    def null_tokens(self) -> Literal["all", "one"]:
        """Tokens of the null condition where it is zeros: one, where the network weighs tokens
        against something else (pixels in one attention, their own mean), so that their number would count."""
        weighs = isinstance(self.network, AdmUNetConfig) and self.network.context_width is not None
        return "one" if weighs or getattr(self.network, "text_pooling_heads", None) is not None else "all"

    @property
    def multiple(self) -> int:
        """What an image's sides are multiples of, so that every level of the network halves evenly."""
        levels = len(self.network.multipliers)
        return 2 ** (levels if isinstance(self.network, EfficientUNetConfig) else levels - 1)

    @property
    def factor(self) -> int:
        """How many times larger it makes an image."""
        return self.size // self.low_size if self.low_size else 1

    @property
    def unit(self) -> int:
        """What the sides of an image that it enlarges are multiples of."""
        return self.multiple // math.gcd(self.multiple, self.factor)

    @property
    def name(self) -> str:
        """What it does: "64" or "64-256"."""
        return f"{self.low_size}-{self.size}" if self.low_size else str(self.size)


def read_stage(folder: Path) -> PixelDiffusionConfig:
    """The config of a stage's folder."""
    path = folder / "config.json"
    values = read_json(path, missing=f"there is no stage: {path} is missing")
    kind = values.get("kind") if isinstance(values, dict) else None
    if kind != "stage":
        raise UserError(f"{folder} holds a model of kind {short_repr(kind)}, not a stage of a cascade")
    try:
        return PixelDiffusionConfig.from_dict(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def require_trained(network: nn.Module, what: str) -> None:
    """Raise a `UserError` if a network was never trained: it would paint noise, as its last layer is all zeros."""
    last = network.get_parameter("conv_out.weight")
    if not last.is_meta and not last.any():
        raise UserError(f"{what} was never trained: its last layer is still all zeros")
