"""The residual block of the U-Nets and the autoencoder."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from diptych.networks.layers import norm, zero_init


class ResidualBlock(nn.Module):
    """norm, SiLU, convolution, twice, around a skip connection; in between the embedding is added (LDM).

    scale_shift: the embedding scales and shifts instead (ADM: Dhariwal & Nichol 2021, section 3).
    skip_conv: a 1x1 convolution on every skip connection, else only where the number of channels changes.

    forward(x (B, C, H, W), embedding (B, time_width) or None) -> (B, out_channels, H, W)
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
    ) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.norm1 = norm(in_channels, groups, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time = nn.Linear(time_width, (1 + scale_shift) * out_channels) if time_width else None
        self.norm2 = norm(out_channels, groups, eps)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        plain = in_channels == out_channels and not skip_conv
        self.skip = nn.Identity() if plain else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))  # (B, out_channels, H, W)
        h = self.norm_with(h, None if embedding is None else F.silu(embedding))
        return self.skip(x) + self.conv2(self.dropout(F.silu(h)))

    def norm_with(self, h: Tensor, embedding: Tensor | None) -> Tensor:
        """h (B, out_channels, H, W) normalised, with the embedding (B, time_width) where the block has one."""
        if self.time is None:
            return self.norm2(h)
        assert embedding is not None, "this block was built for a time embedding"
        time = self.time(embedding)
        if not self.scale_shift:
            return self.norm2(h + time[:, :, None, None])
        scale, shift = time.chunk(2, dim=1)
        return self.norm2(h) * (1 + scale)[:, :, None, None] + shift[:, :, None, None]  # in this order for OpenVINO
