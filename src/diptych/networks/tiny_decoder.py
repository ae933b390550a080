"""A tiny decoder in the place of the autoencoder's: for previews, and where there is no GPU (TAESD's idea).

A few residual convolutions a level, nearest-neighbour upsampling, no norms and no attention. Each pixel depends on
nearby latents alone, so tiles that overlap enough are exact.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.config import Config, Within
from diptych.networks.layers import Upsample, zero_init

FAR = 3.0
"""Deviations beyond which the values of a latent are softly clipped."""


@dataclass(frozen=True, kw_only=True)
class TinyDecoderConfig(Config):
    """The shape of a `TinyDecoder`. The defaults are for a factor of 8, as Stable Diffusion's: 853,443 parameters."""

    most = 2**16

    renamed: ClassVar[dict[str, str]] = {"picture_channels": "image_channels"}

    latent_channels: int = 4
    """Channels of a latent."""
    image_channels: int = 3
    """Channels of an image."""
    channels: tuple[int, ...] = (64, 64, 64, 64)
    """Channels of each level, the finest first. Between levels height and width are doubled."""
    blocks: Annotated[int, Within(0, 1000)] = 3
    """Residual blocks of a level; the finest has one."""
    patch: int = 1
    """Side of the patches of pixels that the last convolution outputs for each position, in channels."""
    teacher: str | None = None
    """Fingerprint of the autoencoder whose decoder it was trained after; none before it is trained."""

    def check(self) -> None:
        self.require_at_least(1, "latent_channels", "image_channels", "blocks", "patch")
        self.require(bool(self.channels) and min(self.channels) >= 1, "channels", "have a value of 1 or more a level")

    @property
    def factor(self) -> int:
        """How many times larger than a latent its image is, along each side."""
        return self.patch * 2 ** (len(self.channels) - 1)

    def build(self) -> TinyDecoder:
        return TinyDecoder(self)

    def networks(self) -> dict[str, nn.Module]:
        """To be counted, on the meta device."""
        return {"decoder": self.build()}


class TinyResidualBlock(nn.Module):
    """Two convolutions around a skip: (B, C, H, W) -> (B, C, H, W), none of it negative."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = zero_init(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


class TinyDecoder(nn.Module):
    """decode(latents (B, latent_channels, h, w)), unscaled as an `Autoencoder` takes them -> images (B, 3, h * f,
    w * f) in about [-1, 1].

    `scale` is 1 / the deviation of the latents that it was trained on.
    """

    scale: Tensor

    def __init__(self, config: TinyDecoderConfig) -> None:
        super().__init__()
        self.config = c = config
        self.register_buffer("scale", torch.tensor(1.0))
        widths = c.channels[::-1]  # the coarsest first
        self.conv_in = nn.Conv2d(c.latent_channels, widths[0], 3, padding=1)
        layers: list[nn.Module] = []
        for width, finer in itertools.pairwise(widths):
            layers += [*(TinyResidualBlock(width) for _ in range(c.blocks)), Upsample(width, finer), nn.ReLU()]
        self.up = nn.Sequential(*layers, TinyResidualBlock(widths[-1]))
        self.conv_out = nn.Conv2d(widths[-1], c.image_channels * c.patch**2, 3, padding=1)
        self.unfold = nn.PixelShuffle(c.patch)

    def forward(self, latents: Tensor) -> Tensor:
        x = FAR * torch.tanh(latents * (self.scale / FAR))
        h = self.up(F.relu(self.conv_in(x)))  # (B, channels, H / patch, W / patch)
        return self.unfold(self.conv_out(h))

    def decode(self, latents: Tensor) -> Tensor:
        """The same as `forward`: the interface of `Autoencoder.decode`."""
        return self(latents)
