"""Concat conditioning of latents: a masked image or a low-resolution one (Rombach et al. 2022, sections 4.4 and 4.5).

Each kind is a config with the methods of `ConcatCondition`: which channels it takes, and what it makes of training
images. Images that a user gives are read in `models/init_image.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.conditioning.concat_config import DegradationConfig, MaskConfig
from diptych.core.config import Config
from diptych.networks.autoencoder import AutoencoderConfig

Latents = Callable[[Tensor], Tensor]
"""Pictures (B, 3, H, W) -> scaled latents (B, C, h, w), whose noise is drawn for this purpose."""


class ConcatCondition(Protocol):
    """What each kind of it, a config, can say."""

    def channels(self, autoencoder: AutoencoderConfig) -> int:
        """How many channels it takes."""
        ...

    def concatenated(self, autoencoder: AutoencoderConfig, pictures: Tensor, seeds: Tensor, latents: Latents) -> Tensor:
        """What training pictures (B, 3, H, W) in [-1, 1] with these seeds (B,) are learned from (B, channels, h, w)."""
        ...

    def posed(self, autoencoder: AutoencoderConfig, pictures: Tensor, seeds: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """What training pictures (B, 3, H, W) with these seeds (B,) look like to a model, for people to see
        (B, 3, h, w), and as arguments of its `generate`."""
        ...


@dataclass(frozen=True, kw_only=True)
class MaskConcat(Config):
    """A mask and the latent of what it leaves of the picture: the model repaints (section 4.5)."""

    renamed: ClassVar[dict[str, str]] = {"fine": "full_resolution_mask"}

    kind: Literal["masked"] = "masked"
    """Which condition this is."""
    masks: MaskConfig = MaskConfig()
    """How masks are drawn in training."""
    fill: Literal["grey", "smooth"] = "grey"
    """What stands in the hole when the first stage reads the picture: grey, as published, or what is around it, spread
    smoothly (`smooth_fill`); then the colours of flat grounds have not to be learned."""
    full_resolution_mask: bool = False
    """Give all pixels of the mask, those of a latent's square in channels; else the first of each, as published."""

    def channels(self, autoencoder: AutoencoderConfig) -> int:
        """How many it takes: one for the mask, or one for each of a square's pixels, the others for a latent."""
        return (autoencoder.factor**2 if self.full_resolution_mask else 1) + autoencoder.latent_channels

    def concatenated(self, autoencoder: AutoencoderConfig, pictures: Tensor, seeds: Tensor, latents: Latents) -> Tensor:
        """As `ConcatCondition.concatenated`."""
        return self.shown(autoencoder, pictures, training_masks(self, autoencoder, pictures, seeds), latents)

    def shown(self, autoencoder: AutoencoderConfig, pictures: Tensor, masks: Tensor, latents: Latents) -> Tensor:
        """What a model is shown of pictures (1 or B, 3, H, W) in [-1, 1] and masks (1 or B, 1, H, W), 1 where to paint:
        (B, channels, H / f, W / f), f being the autoencoder's factor. Nothing of what is under a mask is in it."""
        if self.fill == "smooth":
            from diptych.conditioning.masks import smooth_fill

            known = smooth_fill(pictures, masks)
        else:
            known = pictures * (1 - masks)
        whole, factor = self.full_resolution_mask, autoencoder.factor
        own = F.pixel_unshuffle(masks, factor) if whole else masked_latent(masks, factor)
        latent = latents(known)
        return torch.cat([own.to(latent).expand(len(latent), -1, -1, -1), latent], 1)

    def posed(self, autoencoder: AutoencoderConfig, pictures: Tensor, seeds: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """As `ConcatCondition.posed`."""
        masks = training_masks(self, autoencoder, pictures, seeds)
        return pictures * (1 - masks), {"image": pictures, "mask": masks}


@dataclass(frozen=True, kw_only=True)
class LowResConcat(Config):
    """A picture `factor` times as small: the model enlarges (section 4.4)."""

    renamed: ClassVar[dict[str, str]] = {"encoded": "with_latent"}

    kind: Literal["low"] = "low"
    """Which condition this is."""
    factor: int = 4
    """How many times as large a picture becomes."""
    degradation: DegradationConfig = DegradationConfig()
    """How training pictures are made small."""
    with_latent: bool = False
    """Give the latent of the bicubically enlarged image too, as the published x2 upscaler of latents reads it."""

    def check(self) -> None:
        self.require(self.factor >= 2, "factor", "be at least 2")

    def channels(self, autoencoder: AutoencoderConfig) -> int:
        """How many it takes: all its values, at the size of a latent, and perhaps a latent."""
        own = autoencoder.image_channels * max(1, autoencoder.factor // self.factor) ** 2
        return own + autoencoder.latent_channels * self.with_latent

    def concatenated(self, autoencoder: AutoencoderConfig, pictures: Tensor, seeds: Tensor, latents: Latents) -> Tensor:
        """As `ConcatCondition.concatenated`."""
        from diptych.conditioning.degradations import degrade

        return self.shown(autoencoder, degrade(pictures, self.factor, self.degradation, seeds), latents)

    def shown(self, autoencoder: AutoencoderConfig, low: Tensor, latents: Latents) -> Tensor:
        """What a model is shown of small pictures (B, 3, h, w) in [-1, 1]: (B, channels, H / f, W / f), f being the
        autoencoder's factor and H, W the sides of what they become."""
        own = at_latents(low, self.factor, autoencoder)
        if not self.with_latent:
            return own
        # Bicubic overshoots what pictures can be.
        return torch.cat([own, latents(F.interpolate(low, scale_factor=self.factor, mode="bicubic").clamp(-1, 1))], 1)

    def posed(self, autoencoder: AutoencoderConfig, pictures: Tensor, seeds: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """As `ConcatCondition.posed`."""
        from diptych.conditioning.degradations import degrade

        low = degrade(pictures, self.factor, self.degradation, seeds)
        return low, {"low": low}


ConcatConfig = MaskConcat | LowResConcat


def training_masks(config: MaskConcat, autoencoder: AutoencoderConfig, pictures: Tensor, seeds: Tensor) -> Tensor:
    """Masks (B, 1, H, W) for pictures (B, 3, H, W), 1 where to paint; some of it shows in each over the latents."""
    from diptych.conditioning.masks import sample_masks

    return sample_masks(config.masks, pictures.shape[-2:], seeds, every=autoencoder.factor).to(pictures)


def masked_latent(mask: Tensor, factor: int) -> Tensor:
    """A mask (B, 1, H, W) over latents (B, 1, H / factor, W / factor): at each place its first pixel, as published."""
    return F.interpolate(mask, (mask.shape[-2] // factor, mask.shape[-1] // factor))


def at_latents(low: Tensor, factor: int, autoencoder: AutoencoderConfig) -> Tensor:
    """Small pictures (B, 3, H / factor, W / factor) at the size of latents: where these are smaller still, the pixels
    of a square lie in channels; where they are larger, each pixel is repeated."""
    if autoencoder.factor >= factor:
        return F.pixel_unshuffle(low, autoencoder.factor // factor)
    return F.interpolate(low, scale_factor=factor // autoencoder.factor, mode="nearest")
