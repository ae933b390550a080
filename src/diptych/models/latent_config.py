"""The config of latent diffusion models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from torch import nn

from diptych.conditioning.concat_config import ConcatConfig, LowResConcat, MaskConcat
from diptych.core.config import Config, Within
from diptych.core.errors import UserError
from diptych.diffusion.samplers import SAMPLERS
from diptych.diffusion.schedules import ScheduleConfig
from diptych.diffusion.times import TimesConfig
from diptych.encoders.class_configs import ClassConfig
from diptych.encoders.configs import ClipTextConfig, Prompted, TextConfig
from diptych.networks.adm_config import AdmUNetConfig
from diptych.networks.autoencoder import AutoencoderConfig
from diptych.networks.unet import UNetConfig


@dataclass(frozen=True, kw_only=True)
class LatentConfig(Prompted, Config):
    """A latent diffusion model: its networks, noise schedule and default sampling options."""

    renamed: ClassVar[dict[str, str]] = {
        "beside": "concat",
        "stands_in_for": "published_scheduler",
        "refused": "unsupported_samplers",
    }

    kind: Literal["latent"] = "latent"
    """Which system this is."""
    autoencoder: AutoencoderConfig = AutoencoderConfig()
    """The first stage."""
    unet: UNetConfig | AdmUNetConfig = UNetConfig()
    """The denoising network over latents."""
    concat: ConcatConfig | None = None
    """Concat conditioning of models for inpainting and super-resolution, or none. A U-Net with `concat_channels` for a
    mask and a masked latent is an inpainting model even where this is none."""
    text: TextConfig | ClassConfig | None = ClipTextConfig()
    """The text encoder, or the classes; none for an unconditional model."""
    schedule: ScheduleConfig = ScheduleConfig()
    """The noise schedule."""
    times: TimesConfig = TimesConfig()
    """How the times of sampling are laid out."""
    prediction: Literal["eps", "v", "x0", "flow"] = "eps"
    """What the U-Net predicts."""
    latent_scale: float | None = None
    """What latents are multiplied by: 1 for a codebook's, which are not rescaled (appendix D.1), 0.18215 in Stable
    Diffusion 1 and 2. None for 1 / the deviation of the first batch's (appendix G)."""
    size: Annotated[int, Within(0, 2**16)] = 512
    """Side of the images it was trained on, in pixels."""
    steps: int = 50
    """Default number of sampling steps."""
    guidance: float = 7.5
    """Default weight of classifier-free guidance; 1 is none."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Times between which guidance is applied (Kynkäänniemi et al. 2024)."""
    sampler: str = "ddim"
    """Default sampler."""
    published_scheduler: str | None = None
    """The scheduler with which the model was published, where the default sampler is but the nearest to it."""
    unsupported_samplers: tuple[tuple[str, str], ...] = ()
    """(sampler, why) of those that cannot be had as the published scheduler asks; "" is the default."""

    def check(self) -> None:
        self.require(self.size >= 1 and self.size % self.multiple == 0, "size", f"be a multiple of {self.multiple}")
        self.require(self.steps >= 1, "steps", "be at least 1")
        scale = self.latent_scale
        self.require(scale is None or 0 < scale < math.inf, "latent_scale", "be more than 0, or none")
        self.require(math.isfinite(self.guidance), "guidance", "be finite")
        self.require(0 <= self.interval[0] <= self.interval[1] <= 1, "interval", "lie within 0 and 1, low before high")
        self.require(self.sampler in SAMPLERS, "sampler", f"be one of {', '.join(SAMPLERS)}")
        if (factor := self.low_factor) is not None:
            low, high = sorted((factor, self.autoencoder.factor))
            if high % low or self.size % factor:
                raise UserError(
                    f"LatentConfig.concat.factor must divide size ({self.size}), and divide or be a multiple of the "
                    f"autoencoder's factor ({self.autoencoder.factor}), not {factor}"
                )
        latent, text = self.autoencoder.latent_channels, None if self.encoder is None else self.encoder.width
        classes = self.text.entries if isinstance(self.text, ClassConfig) else None
        concatenated = 0 if self.concat is None else self.concat.channels(self.autoencoder)
        token = text
        if classes and isinstance(self.unet, UNetConfig):
            token = self.unet.context_width  # of a class embedding: any
        for name, value, allowed in (
            ("in_channels", self.unet.in_channels, (latent,)),
            ("concat_channels", self.unet.concat_channels, (concatenated, *[latent + 1] * (self.concat is None))),
            ("out_channels", self.unet.out_channels, (latent,)),
            ("context_width", self.unet.context_width, (token, None)),
            ("pooled_width", self.unet.pooled_width, (text, None)),
            ("classes", self.unet.classes, (classes,)),
        ):
            if value not in allowed:
                raise UserError(f"LatentConfig.unet.{name} must be {allowed[0]} to fit its neighbours, not {value}")

    def networks(self) -> dict[str, nn.Module]:
        """Each network by its name, to be counted: call it on the meta device."""
        parts = {"unet": self.unet.build(), "autoencoder": self.autoencoder.build()}
        return parts if self.encoder is None else {**parts, "text": self.encoder.build_network()}

    @property
    def concat_condition(self) -> ConcatConfig | None:
        """The concat conditioning: `concat`, or the published mask where only the U-Net has channels for one."""
        return MaskConcat() if self.concat is None and self.unet.concat_channels else self.concat

    @property
    def repaints(self) -> bool:
        """Whether it is an inpainting model, which needs image and mask."""
        return isinstance(self.concat_condition, MaskConcat)

    @property
    def low_factor(self) -> int | None:
        """Scale factor of a super-resolution model, else none."""
        return self.concat_condition.factor if isinstance(self.concat_condition, LowResConcat) else None

    @property
    def latent_size(self) -> int:
        return self.size // self.autoencoder.factor

    @property
    def multiple(self) -> int:
        """What an image's sides are multiples of: the autoencoder's factor, and what an `AdmUNet` halves evenly. A
        `UNet` takes latents of any size."""
        halvings = 0 if isinstance(self.unet, UNetConfig) else len(self.unet.multipliers) - 1
        return self.autoencoder.factor * 2**halvings
