"""The perceptual compression stage: an autoencoder with a KL-regularised or a vector-quantised latent (Rombach et al.
2022, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.config import Config, Within
from diptych.networks.layers import Attention, Downsample, Upsample, norm
from diptych.networks.quantizer import VectorQuantizer
from diptych.networks.residual import ResidualBlock

EPS = 1e-6  # of every norm in the autoencoder; the U-Net's is 1e-5


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig(Config):
    """The shape of an `Autoencoder`. The defaults are Stable Diffusion 1.x (KL-f8): 83,653,863 parameters."""

    most = 2**16

    renamed: ClassVar[dict[str, str]] = {"picture_channels": "image_channels"}

    image_channels: int = 3
    """Channels of an image, with values in [-1, 1]."""
    latent_channels: int = 4
    """Channels of a latent."""
    channels: int = 128
    """Channels of the first level; level i has channels * multipliers[i]."""
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    """One for each level. Between levels the height and width are halved: factor 2 ** (levels - 1)."""
    blocks: Annotated[int, Within(0, 1000)] = 2
    """Residual blocks of a level of the encoder; the decoder's levels have one more."""
    patch: int = 1
    """Side of the patches that are folded into channels before the first convolution and unfolded after the last: 2
    takes the costly full-resolution level away, for small machines. The published autoencoders have 1."""
    attention: bool = True
    """A self-attention layer in the middle of encoder and decoder."""
    attention_levels: tuple[int, ...] = ()
    """Levels whose residual blocks each end in such a layer too; the published VQ-f8, VQ-f16, KL-f16, KL-f32 have it at
    the last ones."""
    codebook: Annotated[int | None, Within(0, 2**24)] = None
    """Entries of the codebook to whose nearest one decoding rounds every position of a latent (VQ), or none for a
    KL-regularised latent."""
    norm_groups: int = 32
    """Groups of every group norm."""

    def check(self) -> None:
        self.require_at_least(1, "image_channels", "latent_channels", "channels", "blocks", "patch", "norm_groups")
        self.require(len(self.multipliers) > 0, "multipliers", "have a value for each level")
        self.require(min(self.multipliers) >= 1, "multipliers", "be at least 1")
        levels = range(len(self.multipliers))
        self.require(all(i in levels for i in self.attention_levels), "attention_levels", f"lie in {list(levels)}")
        self.require(self.codebook is None or self.codebook >= 1, "codebook", "be at least 1, or none")

    @property
    def moment_channels(self) -> int:
        """Channels of the encoder's output: mean and log-variance of a latent, or for a VQ the latent alone."""
        return self.latent_channels * (2 if self.codebook is None else 1)

    @property
    def factor(self) -> int:
        """How many times smaller a latent is than its image, along each side."""
        return self.patch * 2 ** (len(self.multipliers) - 1)

    def build(self) -> Autoencoder:
        return Autoencoder(self)

    def networks(self) -> dict[str, nn.Module]:
        """To be counted, on the meta device."""
        return {"autoencoder": self.build()}


class Posterior(NamedTuple):
    """The diagonal Gaussian that the encoder predicts for a latent; both tensors (B, latent_channels, h, w)."""

    mean: Tensor
    log_variance: Tensor

    @classmethod
    def from_moments(cls, moments: Tensor) -> Posterior:
        """Split the encoder's output (B, 2 * latent_channels, h, w); the log-variance is clamped to [-30, 20]."""
        mean, log_variance = moments.chunk(2, dim=1)
        return cls(mean, log_variance.clamp(-30.0, 20.0))

    @classmethod
    def point(cls, latents: Tensor) -> Posterior:
        """No variance: every sample is `latents` themselves."""
        return cls(latents, torch.full_like(latents, -torch.inf))

    def sample(self, noise: Tensor) -> Tensor:
        """mean + deviation * noise, with standard normal noise of the latent's shape."""
        return self.mean + torch.exp(0.5 * self.log_variance) * noise

    def kl(self) -> Tensor:
        """KL divergence from the standard normal for each image, in nats: (B,) (Kingma & Welling 2014, eq. 10)."""
        terms = self.mean**2 + self.log_variance.exp() - 1.0 - self.log_variance
        return 0.5 * terms.flatten(1).sum(1)


def self_attend(x: Tensor, norm: nn.GroupNorm, attention: Attention) -> Tensor:
    """Self-attention over all positions of x (B, C, h, w), normalised before, added after."""
    tokens = norm(x).flatten(2).transpose(1, 2)  # (B, h * w, C)
    return x + attention(tokens).transpose(1, 2).unflatten(2, x.shape[-2:])


class AttendingBlock(ResidualBlock):
    """A residual block and a single-head self-attention over all positions."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__(in_channels, out_channels, groups=groups, eps=EPS)
        self.attention_norm = norm(out_channels, groups, EPS)
        self.attention = Attention(out_channels, heads=1, head_width=out_channels, bias=True)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        return self_attend(super().forward(x, embedding), self.attention_norm, self.attention)


def level_block(config: AutoencoderConfig, level: int, in_channels: int) -> ResidualBlock:
    """A residual block of a level, with attention if the config has it at that level."""
    out_channels = config.channels * config.multipliers[level]
    if level in config.attention_levels:
        return AttendingBlock(in_channels, out_channels, config.norm_groups)
    return ResidualBlock(in_channels, out_channels, groups=config.norm_groups, eps=EPS)


class MiddleBlock(nn.Module):
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
            x = self_attend(x, self.norm, self.attention)
        return self.block2(x)


class ConvEncoder(nn.Module):
    """Images to the moments of their latents: (B, 3, H, W) -> (B, moment_channels, H / f, W / f)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        c, last = config, len(config.multipliers) - 1
        self.fold = nn.PixelUnshuffle(c.patch)
        self.conv_in = nn.Conv2d(c.image_channels * c.patch**2, c.channels, 3, padding=1)
        layers: list[nn.Module] = []
        now = c.channels
        for level, multiplier in enumerate(c.multipliers):
            for _ in range(c.blocks):
                layers.append(level_block(c, level, now))
                now = c.channels * multiplier
            if level != last:
                layers.append(Downsample(now, one_sided=True))
        self.down = nn.Sequential(*layers)
        self.middle = MiddleBlock(now, c.attention, c.norm_groups)
        self.norm_out = norm(now, c.norm_groups, EPS)
        self.conv_out = nn.Conv2d(now, c.moment_channels, 3, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        h = self.middle(self.down(self.conv_in(self.fold(images))))  # (B, channels, H / f, W / f)
        return self.conv_out(F.silu(self.norm_out(h)))


class ConvDecoder(nn.Module):
    """Latents to images: (B, latent_channels, h, w) -> (B, 3, h * f, w * f)."""

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        c = config
        now = c.channels * c.multipliers[-1]
        self.conv_in = nn.Conv2d(c.latent_channels, now, 3, padding=1)
        self.middle = MiddleBlock(now, c.attention, c.norm_groups)
        layers: list[nn.Module] = []
        for level in reversed(range(len(c.multipliers))):
            for _ in range(c.blocks + 1):
                layers.append(level_block(c, level, now))
                now = c.channels * c.multipliers[level]
            if level != 0:
                layers.append(Upsample(now))
        self.up = nn.Sequential(*layers)
        self.norm_out = norm(now, c.norm_groups, EPS)
        self.conv_out = nn.Conv2d(now, c.image_channels * c.patch**2, 3, padding=1)
        self.unfold = nn.PixelShuffle(c.patch)

    def forward(self, latents: Tensor) -> Tensor:
        h = self.up(self.middle(self.conv_in(latents)))  # (B, channels, H / patch, W / patch)
        return self.unfold(self.conv_out(F.silu(self.norm_out(h))))


class Autoencoder(nn.Module):
    """KL or VQ autoencoder. Its latents are unscaled; the latent diffusion model brings them to unit deviation.

    encode(images (B, 3, H, W) in [-1, 1]) -> Posterior; decode(latents (B, latent_channels, h, w)) -> images.
    H and W must be divisible by `config.factor`. Latents of a VQ are those before the quantisation, which is the
    decoder's first layer (section 3.1); their posterior has no variance.
    """

    def __init__(self, config: AutoencoderConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ConvEncoder(config)
        self.decoder = ConvDecoder(config)
        self.quant_conv = nn.Conv2d(config.moment_channels, config.moment_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.latent_channels, config.latent_channels, 1)
        self.quantise = None if config.codebook is None else VectorQuantizer(config.codebook, config.latent_channels)

    def moments(self, images: Tensor) -> Tensor:
        """Mean and log-variance in one tensor, of a VQ the latents alone: (B, moment_channels, h, w). In this form
        latents are stored."""
        return self.quant_conv(self.encoder(images))

    def posterior(self, moments: Tensor) -> Posterior:
        """The posterior of the latents with these moments."""
        return Posterior.from_moments(moments) if self.quantise is None else Posterior.point(moments)

    def encode(self, images: Tensor) -> Posterior:
        return self.posterior(self.moments(images))

    def codes(self, images: Tensor) -> Tensor:
        """The numbers of the codebook's entries that images become, int64: (B, 3, H, W) -> (B, h, w)."""
        if self.quantise is None:
            raise ValueError("a KL autoencoder has no codes: its codebook is none")
        return self.quantise.indices(self.moments(images))

    def decode(self, latents: Tensor) -> Tensor:
        return self.decode_entries(latents if self.quantise is None else self.quantise(latents))

    def decode_entries(self, entries: Tensor) -> Tensor:
        """`decode` without the quantisation: entries of the codebook, or latents of a KL, to images."""
        return self.decoder(self.post_quant_conv(entries))
