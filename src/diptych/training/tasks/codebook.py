"""How a codebook is learned (van den Oord et al. 2017, section 3.2 and appendix A.1; Esser et al. 2021, Eq. 4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diptych.core.config import Config
from diptych.core.devices import sent
from diptych.networks.quantizer import VectorQuantizer
from diptych.training.distributed import Team

SMOOTHING = 1e-5
"""Added to each entry's count, so that none is divided by zero."""


@dataclass(frozen=True, kw_only=True)
class CodebookConfig(Config):
    """How the entries come to the latents, and the latents to the entries."""

    update: Literal["loss", "ema"] = "loss"
    """Entries follow the latents by a term of the loss (VQ-VAE's Eq. 3, VQGAN), or as moving averages of the latents
    that are nearest to them."""
    weight: float = 1.0
    """Weight of both terms against the reconstruction error (a mean over components)."""
    commitment: float = 0.25
    """Weight, among them, of the term that keeps latents near their entries (beta, VQ-VAE's Eq. 3)."""
    legacy: bool = False
    """Let `commitment` weigh the other term, that which brings entries to latents, as did the code by which VQGAN's and
    latent-diffusion's codebooks were trained (its `legacy`, kept there for their sake); the paper weighs this one."""
    decay: float = 0.99
    """Of the moving averages: of how often each entry is used, and of the entries where these are averages."""
    restart: float = 0.0
    """An entry used less often than this share of 1 / entries starts again as a latent of the batch; 0 is never."""
    from_data: bool = False
    """Whether the entries are initialised with latents of the first images, not with uniform noise (as published)."""

    def check(self) -> None:
        for field in ("weight", "commitment", "restart"):
            self.require(getattr(self, field) >= 0, field, "be at least 0")
        self.require(0 <= self.decay < 1, "decay", "lie between 0 and 1, 1 left out")
        self.require(self.restart < 1, "restart", "be less than 1")
        self.require(not self.legacy or self.update == "loss", "legacy", "be false where entries are moving averages")


class Codebook(nn.Module):
    """What is remembered of a codebook while it is learned. The entries themselves belong to the `VectorQuantizer`.

    `see` is for each part of a batch, `learn` once a step: what is counted is the whole batch, of all processes.
    """

    use: Tensor
    """Moving average of the share of positions that each entry is nearest to: (N,)."""
    restarts: Tensor
    """How many entries have been started again so far."""
    sums: Tensor
    """Where entries are averages: moving averages of the sums of their latents, each by all positions (N, C)."""

    def __init__(self, config: CodebookConfig, quantiser: VectorQuantizer) -> None:
        super().__init__()
        self.config = config
        self._pending: tuple[Tensor, Tensor, Tensor] | None = None
        weight = quantiser.embedding.weight
        self.register_buffer("use", torch.full((len(weight),), 1 / len(weight)))
        self.register_buffer("restarts", torch.zeros(()))
        if config.update == "ema":
            weight.requires_grad_(False)
            self.register_buffer("sums", weight.detach() / len(weight))  # of the latents, by the share of each entry

    @torch.no_grad()
    def start(self, quantiser: VectorQuantizer, latents: Tensor) -> None:
        """Initialise the entries with latents (B, C, h, w) drawn with replacement, if the config says so."""
        if self.config.from_data:
            points = points_of(latents)
            self.place(quantiser, torch.ones_like(self.use, dtype=torch.bool), chosen(points, len(self.use)))

    def losses(self, latents: Tensor, entries: Tensor) -> Tensor:
        """For each image (B,): |sg[z] - e|^2 + commitment |z - sg[e]|^2, means over components (Eq. 4 of VQGAN, with
        VQ-VAE's weight); with `legacy` the first term has the weight, and where entries are moving averages it is not
        there."""
        config = self.config
        terms = F.mse_loss(latents, entries.detach(), reduction="none") * (1.0 if config.legacy else config.commitment)
        if config.update == "loss":
            towards = F.mse_loss(entries, latents.detach(), reduction="none")
            terms = terms + (config.commitment * towards if config.legacy else towards)
        return config.weight * terms.flatten(1).mean(1)

    @torch.no_grad()
    def accumulate(self, latents: Tensor, indices: Tensor) -> None:
        """Count the entries `indices` (B, h, w) that latents (B, C, h, w) came to, until `learn` makes use of it."""
        points = points_of(latents)  # (B h w, C)
        counts = torch.zeros_like(self.use).index_add_(0, indices.flatten(), torch.ones_like(points[:, 0]))
        sums = torch.zeros(len(counts), points.shape[1], device=points.device).index_add_(0, indices.flatten(), points)
        if self._pending is not None:
            counts, sums = counts + self._pending[0], sums + self._pending[1]
        self._pending = counts, sums, points

    @torch.no_grad()
    def learn(self, quantiser: VectorQuantizer, team: Team) -> None:
        """From all latents since the last call, by all processes: move the entries, if they are averages, and
        start those again that nothing comes to."""
        c, count = self.config, len(self.use)
        counts, sums, points = self._pending or (
            torch.zeros_like(self.use),
            torch.zeros_like(quantiser.embedding.weight),
            None,
        )
        self._pending = None
        team.add_up([counts, sums])
        total = counts.sum()
        self.use.lerp_(counts / total, 1 - c.decay)
        if c.update == "ema":
            self.sums.lerp_(sums / total, 1 - c.decay)
            smooth = (self.use + SMOOTHING / count) / (1 + SMOOTHING)  # sums to one
            quantiser.embedding.weight.copy_(self.sums / smooth[:, None])
        if c.restart:
            dead = self.use * count < c.restart  # (N,), in all processes alike; how many, only the device knows
            fresh = torch.zeros_like(quantiser.embedding.weight) if points is None else chosen(points, count)
            fresh = fresh[(dead.cumsum(0) - 1).clamp(min=0)]  # the first point for the first of them
            team.broadcast([fresh])
            self.place(quantiser, dead, fresh)
            self.restarts += dead.sum()

    def place(self, quantiser: VectorQuantizer, which: Tensor, points: Tensor) -> None:
        """Put the entries that `which` (N,) bool marks at their points (N, C), as if each were used as often as any
        other."""
        weight = quantiser.embedding.weight
        weight.copy_(torch.where(which[:, None], points.to(weight), weight))
        self.use.copy_(torch.where(which, 1 / len(self.use), self.use))
        if self.config.update == "ema":
            self.sums.copy_(torch.where(which[:, None], points / len(self.use), self.sums))

    def metrics(self) -> dict[str, Tensor]:
        """What to log: the perplexity of the entries' use, the share of entries
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


def chosen(points: Tensor, count: int) -> Tensor:
    """So many of the points (n, C), drawn with replacement."""
    return points[sent(torch.randint(len(points), (count,)), points.device)]
