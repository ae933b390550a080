"""Concat conditioning of latents: a masked image or a low-resolution one (Rombach et al. 2022, sections 4.4 and 4.5).

Each condition makes what is concatenated to the noisy latent, in training from the images themselves, in sampling from
an image that a user gives (read in `models/init_image.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from diptych.conditioning.concat_config import LowResConcat, MaskConcat
from diptych.core.devices import sent
from diptych.networks.autoencoder import AutoencoderConfig

Encode = Callable[[Tensor], Tensor]
"""Images (B, 3, H, W) -> scaled latents (B, C, h, w)."""


class ConcatCondition(Protocol):
    """What a model needs of either."""

    def drawn(self, images: Tensor, seeds: Tensor) -> Tensor:
        """What is drawn for training images (B, 3, H, W) in [-1, 1] with seeds (B,), on the CPU: masks (B, 1, H, W), or
        low-resolution images (B, 3, h, w)."""
        ...

    def from_training(self, images: Tensor, drawn: Tensor, encode: Encode) -> Tensor:
        """The concatenated channels (B, channels, h, w) of training images, and of what was drawn for them."""
        ...

    def examples(self, images: Tensor, seeds: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Validation inputs of images (B, 3, H, W) with seeds (B,): as images to look at (B, 3, h, w), and as options
        of the model's `generate`."""
        ...


class MaskCondition:
    """A mask and the latent of the masked image (section 4.5)."""

    def __init__(self, config: MaskConcat, autoencoder: AutoencoderConfig) -> None:
        self.config, self.factor = config, autoencoder.factor

    def __call__(self, images: Tensor, masks: Tensor, encode: Encode) -> Tensor:
        """The concatenated channels (B, channels, H / f, W / f) of images (1 or B, 3, H, W) in [-1, 1] and masks (1 or
        B, 1, H, W), 1 where masked, f being the autoencoder's factor. Masked pixels have no influence on them."""
        if self.config.fill == "smooth":
            from diptych.conditioning.masks import smooth_fill

            filled = smooth_fill(images, masks)
        else:
            filled = images * (1 - masks)
        pixels = self.config.full_resolution_mask
        mask = F.pixel_unshuffle(masks, self.factor) if pixels else latent_mask(masks, self.factor)
        latent = encode(filled)
        return torch.cat([mask.to(latent).expand(len(latent), -1, -1, -1), latent], 1)

    def drawn(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Training masks (B, 1, H, W) for images (B, 3, H, W), 1 where masked; each marks some place of the latent."""
        from diptych.conditioning.masks import sample_masks

        return sample_masks(self.config.masks, images.shape[-2:], seeds, every=self.factor)

    def from_training(self, images: Tensor, drawn: Tensor, encode: Encode) -> Tensor:
        """As `ConcatCondition.from_training`."""
        return self(images, sent(drawn, images.device).to(images), encode)

    def examples(self, images: Tensor, seeds: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """As `ConcatCondition.examples`."""
        masks = self.drawn(images, seeds).to(images)
        return images * (1 - masks), {"image": images, "mask": masks}


class LowResCondition:
    """A low-resolution image, and perhaps the latent of its bicubic enlargement (section 4.4)."""

    def __init__(self, config: LowResConcat, autoencoder: AutoencoderConfig) -> None:
        self.config, self.autoencoder = config, autoencoder

    def __call__(self, low_res: Tensor, encode: Encode) -> Tensor:
        """The concatenated channels (B, channels, H / f, W / f) of low-resolution images (B, 3, h, w) in [-1, 1], f
        being the autoencoder's factor and H, W the sides of the enlarged images."""
        pixels = at_latent_size(low_res, self.config.factor, self.autoencoder)
        if not self.config.with_latent:
            return pixels
        enlarged = F.interpolate(low_res, scale_factor=self.config.factor, mode="bicubic").clamp(-1, 1)  # it overshoots
        return torch.cat([pixels, encode(enlarged)], 1)

    def drawn(self, images: Tensor, seeds: Tensor) -> Tensor:
        """Low-resolution images (B, 3, h, w) of training images (B, 3, H, W)."""
        from diptych.conditioning.degradations import degrade

        return degrade(images, self.config.factor, self.config.degradation, seeds)

    def from_training(self, images: Tensor, drawn: Tensor, encode: Encode) -> Tensor:
        """As `ConcatCondition.from_training`."""
        return self(sent(drawn, images.device).to(images), encode)

    def examples(self, images: Tensor, seeds: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """As `ConcatCondition.examples`."""
        low_res = self.drawn(images, seeds)
        return low_res, {"low_res": low_res}


def latent_mask(mask: Tensor, factor: int) -> Tensor:
    """A mask (B, 1, H, W) over latents (B, 1, H / factor, W / factor): at each place its first pixel, as published."""
    return F.interpolate(mask, (mask.shape[-2] // factor, mask.shape[-1] // factor))


def at_latent_size(low_res: Tensor, factor: int, autoencoder: AutoencoderConfig) -> Tensor:
    """Low-resolution images (B, 3, H / factor, W / factor) at the size of latents: where these are smaller still, the
    pixels of a square lie in channels; where they are larger, each pixel is repeated."""
    if autoencoder.factor >= factor:
        return F.pixel_unshuffle(low_res, autoencoder.factor // factor)
    return F.interpolate(low_res, scale_factor=factor // autoencoder.factor, mode="nearest")
