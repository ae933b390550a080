"""The classifier of noisy images of classifier guidance: the encoder half of ADM's U-Net, pooled (Dhariwal & Nichol
2021, section 4, appendix I). The gradient of its log-probability guides an unconditional model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.config import Config, Within
from diptych.networks.adm import AdmEncoder
from diptych.networks.adm_config import AdmUNetConfig
from diptych.networks.layers import norm, zero_init

HIDDEN = 2048
"""Width of the layer between, where the features of all levels are pooled."""


@dataclass(frozen=True, kw_only=True)
class NoisyClassifierConfig(Config):
    """The shape of a `NoisyClassifier`. The defaults are those of ADM's for 256-px images."""

    most = 2**16

    kind: Literal["noisy-classifier"] = "noisy-classifier"
    """Which network this is."""
    encoder: AdmUNetConfig = AdmUNetConfig(channels=128)
    """The U-Net of which it has the way down and the middle; `out_channels` is not used."""
    classes: Annotated[int, Within(0, 2**24)] = 1000
    """Number of classes."""
    pool: Literal["attention", "adaptive", "spatial", "spatial_v2"] = "attention"
    """How features become one vector: by the attention of their mean to all of them (as published), by their mean, or
    from the means of every block's, through a layer between without (spatial) or with a group norm."""
    size: int | None = 256
    """Side of the images that attention pooling is built for; none for the others, which take any."""

    def check(self) -> None:
        self.require(self.classes >= 1, "classes", "be at least 1")
        encoder, halvings = self.encoder, len(self.encoder.multipliers) - 1
        conditions = (
            encoder.classes,
            encoder.context_width,
            encoder.concat_channels or None,
            encoder.augmented or None,
        )
        self.require(conditions == (None,) * 4, "encoder", "have no condition but the time")
        self.require((self.size is not None) == (self.pool == "attention"), "size", "be given for attention alone")
        whole = self.size is None or (self.size >= 1 and self.size % 2**halvings == 0)
        self.require(whole, "size", f"be a multiple of {2**halvings}")

    def build(self) -> NoisyClassifier:
        return NoisyClassifier(self)


class AttentionPooling(nn.Module):
    """Features (B, C, h, w) pooled by the attention of their mean to them and itself: (B, outputs).

    As CLIP's image encoder pools (Radford et al. 2021, section 2.4); positions are a learned embedding.
    """

    def __init__(self, channels: int, positions: int, heads: int, outputs: int) -> None:
        super().__init__()
        self.heads = heads
        self.position = nn.Parameter(torch.randn(channels, positions + 1) / channels**0.5)
        self.query, self.key, self.value = (nn.Linear(channels, channels) for _ in range(3))
        self.out = nn.Linear(channels, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)
        x = torch.cat([x.mean(2, keepdim=True), x], 2) + self.position.to(x)  # (B, C, 1 + h w), the mean first
        tokens = x.transpose(1, 2)
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(tokens[:, :1]), self.key(tokens), self.value(tokens))
        )
        return self.out(F.scaled_dot_product_attention(q, k, v).flatten(1))


class NoisyClassifier(nn.Module):
    """forward(x (B, in_channels, H, W), time (B,) in network units) -> logits (B, classes).

    H and W must be `config.size` where pooling is attention, and else divisible by 2 ** (levels - 1).
    """

    def __init__(self, config: NoisyClassifierConfig) -> None:
        super().__init__()
        self.config, shape = config, config.encoder
        self.encoder = AdmEncoder(shape)
        channels = self.encoder.skips[-1]
        if config.pool in ("attention", "adaptive"):
            self.norm_out = norm(channels, shape.norm_groups)
        if config.pool == "attention":
            side = (config.size or 0) // 2 ** (len(shape.multipliers) - 1)
            heads = shape.heads or channels // (shape.head_width or 1)
            self.pool = AttentionPooling(channels, side**2, heads, config.classes)
        elif config.pool == "adaptive":
            self.out = zero_init(nn.Linear(channels, config.classes))
        else:
            self.hidden = nn.Linear(sum(self.encoder.skips) + channels, HIDDEN)
            if config.pool == "spatial_v2":
                self.norm_hidden = norm(HIDDEN, shape.norm_groups)
            self.out = nn.Linear(HIDDEN, config.classes)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        encoder, size, pool = self.encoder, self.config.size, self.config.pool
        encoder.check(x)
        if size is not None and x.shape[-2:] != (size, size):
            raise ValueError(f"this classifier takes {size} x {size} images, not {x.shape[-2]} x {x.shape[-1]}")
        x, skips = encoder.encode(x, encoder.embed(x, time))
        if pool == "attention":
            return self.pool(encoder.activated(self.norm_out(x)))
        if pool == "adaptive":
            return self.out(encoder.activated(self.norm_out(x)).mean((2, 3)))
        hidden = self.hidden(torch.cat([features.mean((2, 3)) for features in (*skips, x)], 1))
        return self.out(F.relu(hidden) if pool == "spatial" else F.silu(self.norm_hidden(hidden)))
