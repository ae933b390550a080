"""The perceptual compression stage: an autoencoder with a KL-regularised latent (Rombach et al. 2022, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.config import Config
from diptych.networks.layers import Attention, Downsample, ResidualBlock, Upsample, norm

EPS = 1e-6  # of every norm in the autoencoder; the U-Net's is 1e-5


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(Config):
    """The shape of an `Autoencoder`. The defaults are Stable Diffusion 1.x (KL-f8): 83,653,863 parameters."""

    picture_channels: int = 3
    """Channels of a picture, with values in [-1, 1]."""
    latent_channels: int = 4
    """Channels of a latent."""
    channels: int = 128
    """Channels of the first level; level i has channels * multipliers[i]."""
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    """One for each level. Between levels the height and width are halved: factor 2 ** (levels - 1)."""
    blocks: int = 2
    """Residual blocks of a level of the encoder; the decoder's levels have one more."""
    patch: int = 1
    """Side of the patches that are folded into channels before the first convolution and unfolded after the last: 2
    takes the costly full-resolution level away, for small machines. The published autoencoders have 1."""
    attention: bool = True
    """A self-attention layer in the middle of encoder and decoder."""
    norm_groups: int = 32
    """Groups of every group norm."""

    def check(self) -> None:
        for field in ("picture_channels", "latent_channels", "channels", "blocks", "patch", "norm_groups"):
            self.require(getattr(self, field) >= 1, field, "be at least 1")
        self.require(len(self.multipliers) > 0, "multipliers", "have a value for each level")
        self.require(min(self.multipliers) >= 1, "multipliers", "be at least 1")

    @property
    def factor(self) -> int:
        """How many times smaller a latent is than its picture, along each side."""
        return self.patch * 2 ** (len(self.multipliers) - 1)


class Posterior(NamedTuple):
    """The diagonal Gaussian that the encoder predicts for a latent; both tensors (B, latent_channels, h, w)."""

    mean: Tensor
    log_variance: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> Posterior:
        """Split the encoder's output (B, 2 * latent_channels, h, w); the log-variance is clamped to [-30, 20]."""
        mean, log_variance = moments.chunk(2, dim=1)
        return cls(mean, log_variance.clamp(-30.0, 20.0))

    def sample(self, noise: Tensor) -> Tensor:
        """mean + deviation * noise, with standard normal noise of the latent's shape."""
        return self.mean + torch.exp(0.5 * self.log_variance) * noise

    def kl(self) -> Tensor:
        """KL divergence from the standard normal for each picture, in nats: (B,) (Kingma & Welling 2014, eq. 10)."""
        terms = self.mean**2 + self.log_variance.exp() - 1.0 - self.log_variance
        return 0.5 * terms.flatten(1).sum(1)


class Middle(nn.Module):
    """Two residual blocks around a single-head self-attention over all positions."""

    def __init__(self, channels: int, attention: bool, groups: int) -> None:
        super().__init__()
        self.block1 = ResidualBlock(channels, channels, groups=groups, eps=EPS)
        if attention:
            self.norm = norm(channels, groups, EPS)
            self.attention = Attention(channels, heads=1, head_width=channels, bias=True)
        self.attends = attention
        self.block2 = ResidualBlock(channels, channels, groups=groups, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(x)
        if self.attends:
            tokens = self.norm(x).flatten(2).transpose(1, 2)  # (B, h * w, C)
            x = x + self.attention(tokens).transpose(1, 2).unflatten(2, x.shape[-2:])
        return self.block2(x)


class Encoder(nn.Module):
    """Pictures to the moments of their latents: (B, 3, H, W) -> (B, 2 * latent_channels, H / f, W / f)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        c, last = config, len(config.multipliers) - 1
        self.fold = nn.PixelUnshuffle(c.patch)
        self.conv_in = nn.Conv2d(c.picture_channels * c.patch**2, c.channels, 3, padding=1)
        layers: list[nn.Module] = []
        now = c.channels
        for level, multiplier in enumerate(c.multipliers):
            for _ in range(c.blocks):
                layers.append(ResidualBlock(now, c.channels * multiplier, groups=c.norm_groups, eps=EPS))
                now = c.channels * multiplier
            if level != last:
                layers.append(Downsample(now, one_sided=True))
        self.down = nn.Sequential(*layers)
        self.middle = Middle(now, c.attention, c.norm_groups)
        self.norm_out = norm(now, c.norm_groups, EPS)
        self.conv_out = nn.Conv2d(now, 2 * c.latent_channels, 3, padding=1)

    def forward(self, pictures: Tensor) -> Tensor:
        h = self.middle(self.down(self.conv_in(self.fold(pictures))))  # (B, channels, H / f, W / f)
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """Latents to pictures: (B, latent_channels, h, w) -> (B, 3, h * f, w * f)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        c = config
        now = c.channels * c.multipliers[-1]
        self.conv_in = nn.Conv2d(c.latent_channels, now, 3, padding=1)
        self.middle = Middle(now, c.attention, c.norm_groups)
        layers: list[nn.Module] = []
        for level in reversed(range(len(c.multipliers))):
            for _ in range(c.blocks + 1):
                layers.append(ResidualBlock(now, c.channels * c.multipliers[level], groups=c.norm_groups, eps=EPS))
                now = c.channels * c.multipliers[level]
            if level != 0:
                layers.append(Upsample(now))
        self.up = nn.Sequential(*layers)
        self.norm_out = norm(now, c.norm_groups, EPS)
        self.conv_out = nn.Conv2d(now, c.picture_channels * c.patch**2, 3, padding=1)
        self.unfold = nn.PixelShuffle(c.patch)

    def forward(self, latents: Tensor) -> Tensor:
        h = self.up(self.middle(self.conv_in(latents)))  # (B, channels, H / patch, W / patch)
        return self.unfold(self.conv_out(F.silu(self.norm_out(h))))


class Autoencoder(nn.Module):
    """KL autoencoder. Its latents are unscaled; the latent diffusion model brings them to unit deviation.

    encode(pictures (B, 3, H, W) in [-1, 1]) -> Posterior; decode(latents (B, latent_channels, h, w)) -> pictures.
    H and W must be divisible by `config.factor`.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.latent_channels, 2 * config.latent_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)

    def moments(self, pictures: Tensor) -> Tensor:
        """Mean and log-variance in one tensor (B, 2 * latent_channels, h, w), the form in which latents are stored."""
        return self.quant_conv(self.encoder(pictures))

    def encode(self, pictures: Tensor) -> Posterior:
        return Posterior.from_moments(self.moments(pictures))

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latents))
