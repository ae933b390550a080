"""How a codebook is learned (van den Oord et al. 2017, section 3.2 and appendix A.1; Esser et al. 2021, Eq. 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.config import Config
from diptych.networks.quantiser import Quantiser

SMOOTHING = 1e-5
"""Added to each entry's count, so that none is divided by zero."""


@dataclass(frozen=True, kw_only=True)
class CodebookConfig(Config):
    """How the entries come to the latents, and the latents to the entries."""

    update: Literal["loss", "ema"] = "loss"
    """Entries follow the latents by a term of the loss, as published, or as moving averages of the latents that are
    nearest to them."""
    weight: float = 1.0
    """Weight of both terms against the reconstruction error (a mean over components)."""
    commitment: float = 0.25
    """Weight, among them, of the term that keeps latents near their entries."""
    decay: float = 0.99
    """Of the moving averages: of how often each entry is used, and of the entries where these are averages."""
    restart: float = 0.0
    """An entry used less often than this share of 1 / entries starts again as a latent of the batch; 0 is never."""
    from_data: bool = False
    """Whether the entries begin as latents of the first pictures, not as uniform noise (as published)."""

    def check(self) -> None:
        for field in ("weight", "commitment", "restart"):
            self.require(getattr(self, field) >= 0, field, "be at least 0")
        self.require(0 <= self.decay < 1, "decay", "lie between 0 and 1, 1 left out")
        self.require(self.restart < 1, "restart", "be less than 1")


class Codebook(nn.Module):
    """What is remembered of a codebook while it is learned. The entries themselves belong to the `Quantiser`.

    With several processes the counts are those of all; with accumulated parts each part counts by itself.
    """

    use: Tensor
    """Moving average of the share of positions that each entry is nearest to: (N,)."""
    restarts: Tensor
    """How many entries have been started again so far."""
    sums: Tensor
    """Where entries are averages: moving averages of the sums of their latents, each by all positions (N, C)."""

    def __init__(self, config: CodebookConfig, quantiser: Quantiser) -> None:
        super().__init__()
        self.config = config
        weight = quantiser.embedding.weight
        self.register_buffer("use", torch.full((len(weight),), 1 / len(weight)))
        self.register_buffer("restarts", torch.zeros(()))
        if config.update == "ema":
            weight.requires_grad_(False)
            self.register_buffer("sums", weight.detach() / len(weight))  # of the latents, by the share of each entry

    @torch.no_grad()
    def start(self, quantiser: Quantiser, latents: Tensor) -> None:
        """Let the entries begin at latents (B, C, h, w) drawn with replacement, if the config says so."""
        if self.config.from_data:
            self.place(quantiser, torch.arange(len(self.use), device=latents.device), points_of(latents))

    def losses(self, latents: Tensor, entries: Tensor) -> Tensor:
        """For each picture (B,): |sg[z] - e|^2 + commitment |z - sg[e]|^2, means over components (Eq. 4 of VQGAN); the
        first term not where entries are moving averages."""
        commitment = self.config.commitment * F.mse_loss(latents, entries.detach(), reduction="none")
        terms = commitment
        if self.config.update == "loss":
            terms = commitment + F.mse_loss(entries, latents.detach(), reduction="none")
        return self.config.weight * terms.flatten(1).mean(1)

    @torch.no_grad()
    def learn(self, quantiser: Quantiser, latents: Tensor, indices: Tensor) -> None:
        """Count the entries `indices` (B, h, w) that latents (B, C, h, w) came to, move them if they are averages, and
        start those again that nothing comes to."""
        c, points = self.config, points_of(latents)  # (B h w, C)
        counts = torch.zeros_like(self.use).index_add_(0, indices.flatten(), torch.ones_like(points[:, 0]))
        sums = torch.zeros(len(counts), points.shape[1], device=points.device).index_add_(0, indices.flatten(), points)
        total = counts.sum()
        if dist.is_initialized():
            for tensor in (counts, sums, total):
                dist.all_reduce(tensor)
        self.use.lerp_(counts / total, 1 - c.decay)
        if c.update == "ema":
            self.sums.lerp_(sums / total, 1 - c.decay)
            smooth = (self.use + SMOOTHING / len(counts)) / (1 + SMOOTHING)  # sums to one
            quantiser.embedding.weight.copy_(self.sums / smooth[:, None])
        if c.restart:
            dead = (self.use * len(counts) < c.restart).nonzero()[:, 0]
            self.place(quantiser, dead, points)
            self.restarts += len(dead)

    def place(self, quantiser: Quantiser, numbers: Tensor, points: Tensor) -> None:
        """Put entries at points drawn with replacement, the same in all processes, as if each were used as often as any
        other."""
        if not len(numbers):
            return
        chosen = points[torch.randint(len(points), (len(numbers),)).to(points.device)]
        if dist.is_initialized():
            dist.broadcast(chosen, src=0)
        quantiser.embedding.weight[numbers] = chosen
        self.use[numbers] = 1 / len(self.use)
        if self.config.update == "ema":
            self.sums[numbers] = chosen / len(self.use)

    def told(self) -> dict[str, Tensor]:
        """What to log: how many entries the latents use as if all were used alike (perplexity), the share of entries
        that are used at least a tenth as often as that, and restarts."""
        share = self.use / self.use.sum()
        perplexity = torch.exp(-(share * share.clamp(min=1e-12).log()).sum())
        return {
            "perplexity": perplexity,
            "codes_used": (self.use * len(self.use) >= 0.1).float().mean(),
            "restarts": self.restarts,
        }


def points_of(latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) as a list of points (B h w, C), in float32."""
    return latents.detach().movedim(1, -1).flatten(0, -2).float()
