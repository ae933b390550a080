"""The residual block of every U-Net and autoencoder: the plain one of LDM, and BigGAN's as ADM and Imagen have it."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from diptych.networks.layers import norm, zero_init

ACTIVATIONS = {"silu": nn.SiLU, "gelu": nn.GELU}


class ResidualBlock(nn.Module):
    """norm, activation, convolution, twice, around a skip; the embedding is added, or scales and shifts, in between.

    The defaults are LDM's. Others are BigGAN's blocks as ADM has them (Dhariwal & Nichol 2021, section 3, appendix A):
    `resample` halves or doubles the size within the block, both ways; `scale` is what the sum is multiplied by;
    `preactivated` embeddings are not activated here; `skip_conv` puts a 1x1 convolution on every skip, else only on
    those whose channels change.

    forward(x (B, C, H, W), embedding (B, time_width) or None) -> (B, out_channels, H, W), or at half or twice the size
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        time_width: int | None = None,
        dropout: float = 0.0,
        groups: int = 32,
        eps: float = 1e-5,
        *,
        scale_shift: bool = False,
        skip_conv: bool = False,
        resample: Literal["up", "down"] | None = None,
        activation: Literal["silu", "gelu"] = "silu",
        preactivated: bool = False,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.scale_shift, self.resample, self.preactivated, self.scale = scale_shift, resample, preactivated, scale
        self.activation = ACTIVATIONS[activation]()
        self.norm1 = norm(in_channels, groups, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(time_width, (1 + scale_shift) * out_channels) if time_width else None
        self.norm2 = norm(out_channels, groups, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        plain = in_channels == out_channels and not skip_conv
        self.skip = nn.Identity() if plain else nn.Conv2d(in_channels, out_channels, 1)

    def resampled(self, x: Tensor) -> Tensor:
        if self.resample == "up":
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        return F.avg_pool2d(x, 2) if self.resample == "down" else x

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        h = self.conv1(self.resampled(self.activation(self.norm1(x))))  # (B, out, H, W)
        if self.time is None:
            h = self.norm2(h)
        else:
            assert embedding is not None, "this block was built for a time embedding"
            time = self.time(embedding if self.preactivated else self.activation(embedding))[:, :, None, None]
            if self.scale_shift:
                scale, shift = time.chunk(2, dim=1)
                h = self.norm2(h) * (1 + scale) + shift
            else:
                h = self.norm2(h + time)
        h = self.skip(self.resampled(x)) + self.conv2(self.dropout(self.activation(h)))
        return h if self.scale == 1 else h * self.scale
