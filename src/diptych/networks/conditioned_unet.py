"""Base of the U-Nets: the first fields of their configs, their conditions, and the time embedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diptych.core.config import Config
from diptych.networks.layers import timestep_embedding

LEVEL_UNITS = 1000.0
"""Augmentation levels in [0, 1] are embedded in these units, as the time is: the sinusoids are made for them."""
NEEDS = {
    "context": "context_width",
    "context_mask": "context_width",
    "pooled": "pooled_width",
    "concat": "concat_channels",
    "level": "augmented",
    "label": "classes",
}
"""Condition -> the field of the config without which a network has no input for it."""


@dataclass(frozen=True, kw_only=True)
class ConditionedUNetConfig(Config):
    """The fields with which the config of every U-Net begins."""

    most = 2**16

    kind: str = ""
    """Which network this is."""
    in_channels: int = 4
    """Channels of the noisy input."""
    concat_channels: int = 0
    """Channels concatenated to the input: a low-resolution image, or a mask and the masked latent."""
    out_channels: int = 4
    """Channels of the prediction; twice the input's where the variance is learned."""
    channels: int = 320
    """Channels of the first level; level i has channels * multipliers[i]."""
    multipliers: tuple[int | float, ...] = (1, 2, 4, 4)
    """One for each level. Between levels the height and width are halved."""

    def check(self) -> None:
        self.require_at_least(1, "in_channels", "out_channels", "channels")
        self.require_at_least(0, "concat_channels")
        self.require(len(self.multipliers) > 0, "multipliers", "have a value for each level")

    def build(self) -> ConditionedUNet:
        """The network that this config describes, with random weights."""
        raise NotImplementedError


class ConditionedUNet(nn.Module):
    """Base of the U-Nets, with the one signature that denoisers call.

    forward(x (B, in_channels, H, W), time (B,) in network units, *, context (B, L, context_width),
    context_mask (B, L) bool with True for real tokens, pooled (B, pooled_width), concat (B, concat_channels, H, W),
    level (B,) in [0, 1], label (B,) int64) -> (B, out_channels, H, W). A `ValueError` for a condition that the network
    was not built for.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    def add_embedding(self, width: int) -> None:
        """Layers for `embed`: time, pooled text and augmentation level are summed (Imagen, section 2.5)."""
        c = self.config
        self.time = time_mlp(c.channels, width)
        if c.pooled_width is not None:
            self.pooled = nn.Sequential(nn.LayerNorm(c.pooled_width), nn.Linear(c.pooled_width, width))
        if c.augmented:
            self.level = time_mlp(c.channels, width)
        if c.context_norm and c.context_width is not None:
            self.context_norm = nn.LayerNorm(c.context_width)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        *,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        pooled: Tensor | None = None,
        concat: Tensor | None = None,
        level: Tensor | None = None,
        label: Tensor | None = None,
    ) -> Tensor:
        cond = {"context": context, "context_mask": context_mask, "pooled": pooled, "level": level, "label": label}
        return self.predict(*self.prepare(x, time, concat, cond))

    def prepare(self, x: Tensor, time: Tensor, concat: Tensor | None, cond: dict[str, Tensor | None]) -> tuple:
        """What `predict` takes, of what `forward` does."""
        self.check(x, concat=concat, **cond)
        embedding, tokens = self.embed(x, time, **cond), self.project_context(cond.get("context"), cond.get("label"))
        x = x if concat is None else torch.cat([x, concat], dim=1)
        return x, embedding, tokens, cond.get("context_mask")

    def check(self, x: Tensor, **conditions: Tensor | None) -> None:
        """Raise a `ValueError` for a condition that the network was not built for."""
        for name, value in conditions.items():
            field = getattr(self.config, NEEDS[name], None)
            if value is not None and not field:
                field = str(field).lower()
                raise ValueError(f"{name} was given to a network that was built without: its {NEEDS[name]} is {field}")

    def embed(self, x: Tensor, time: Tensor, **conditions: Tensor | None) -> Tensor:
        """The embedding (B, width) of the time and of the conditions on the image as a whole, in the dtype of x."""
        channels = self.config.channels
        embedding = self.time(timestep_embedding(time, channels).to(x.dtype))
        if (pooled := conditions.get("pooled")) is not None:
            embedding = embedding + self.pooled(pooled)
        if (level := conditions.get("level")) is not None:
            embedding = embedding + self.level(timestep_embedding(level * LEVEL_UNITS, channels).to(x.dtype))
        return embedding

    def project_context(self, context: Tensor | None, label: Tensor | None) -> Tensor | None:
        """The tokens (B, L, D) of cross-attention."""
        return self.context_norm(context) if context is not None and self.config.context_norm else context

    def predict(self, x: Tensor, embedding: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        """The network itself: (B, in_channels + concat_channels, H, W) -> (B, out_channels, H, W)."""
        raise NotImplementedError


def time_mlp(channels: int, width: int, activation: type[nn.Module] = nn.SiLU) -> nn.Sequential:
    """The layers behind the sinusoids of the time: (B, channels) -> (B, width)."""
    return nn.Sequential(nn.Linear(channels, width), activation(), nn.Linear(width, width))


def check_size(x: Tensor, halvings: int) -> None:
    """Raise a `ValueError` unless the sides of x (B, C, H, W) can be halved so often without a remainder."""
    height, width = x.shape[-2:]
    if height % 2**halvings or width % 2**halvings:
        raise ValueError(f"{height} x {width} cannot be halved {halvings} times: no multiples of {2**halvings}")
