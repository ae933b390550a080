"""The adversarial part of a first stage's objective (Rombach et al. 2022, Eq. 25; Esser et al. 2021, Eq. 6 and 7).

A patch discriminator learns to separate images from reconstructions; the autoencoder is rewarded for what it takes for
real. How much that counts follows from the gradients that both parts of the loss send into the decoder's last layer, so
that neither drowns the other. Both sides take their step at once, from one backward pass: the reward reaches the
autoencoder alone, the hinge loss the discriminator alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diptych.core.config import Config
from diptych.networks.discriminator import Discriminator, DiscriminatorConfig, hinge_loss

MOST = 1e4
"""The largest adaptive weight, and what keeps its division from zero, as published."""
EPS = 1e-4
MEMORY = 0.98
"""Decay of the moving averages by which a collapse is detected: about the last 50 steps."""
EARLY = 1 - MEMORY**100
"""The averages tell nothing before they have this weight."""
WON, BLIND = 0.02, 0.02
"""A hinge loss below the first: the discriminator separates all and its reward says little. Logits of both kinds that
differ by less than the second: it separates nothing."""


@dataclass(frozen=True, kw_only=True)
class AdversarialConfig(Config):
    """The discriminator, and when and how much it counts."""

    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    """The network."""
    weight: float = 0.5
    """Weight of the reward, before the adaptive one."""
    adaptive: bool = True
    """Whether the weight is multiplied by the ratio of the norms of both gradients at the decoder's last layer, 1e4 at
    most."""
    start: int = 50_001
    """The step at which the discriminator starts to learn, and without a `lead` its reward to count."""
    lead: int = 0
    """Steps after that for which the discriminator learns alone: a reward from one that separates nothing yet is
    noise. None as published."""
    warmup: int = 0
    """Steps after the lead over which the reward's weight rises linearly."""

    def check(self) -> None:
        for field in ("weight", "start", "lead", "warmup"):
            self.require(getattr(self, field) >= 0, field, "be at least 0")


class Adversary(nn.Module):
    """The discriminator of a run, and the state of the collapse check."""

    averages: Tensor
    """Moving averages of the hinge loss, of the logits of real images and of reconstructions; and their weight."""

    def __init__(self, config: AdversarialConfig) -> None:
        super().__init__()
        self.config = config
        self.discriminator = Discriminator(config.discriminator)
        self.register_buffer("averages", torch.zeros(4, dtype=torch.float64))

    def strength(self, step: int) -> float:
        """The weight of the reward at a step, between 0 and `config.weight`."""
        c = self.config
        rewarded = step - c.start - c.lead + 1
        return c.weight * min(1.0, rewarded / max(c.warmup, 1)) if rewarded > 0 else 0.0

    def losses(
        self, images: Tensor, rebuilt: Tensor, nll: Tensor, last: Tensor, step: int, units: int = 1
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """For each image the autoencoder's reward as a loss (B,), weighted, and the discriminator's loss (B,); and
        what to log.

        images, rebuilt: (B, 3, H, W) in [-1, 1], the latter with its graph. nll: the rest of the loss, a mean over
        the batch. last: the weights of the decoder's last layer. units: what `nll` was divided by, where the published
        loss is a sum; the adaptive weight is bounded, and logged, in the units of that.
        """
        self.discriminator.requires_grad_(False)
        verdict = self.discriminator(rebuilt)
        self.discriminator.requires_grad_(True)
        reward = -verdict.flatten(1).mean(1)  # (B,)
        balance = torch.ones((), device=rebuilt.device)
        if self.config.adaptive:
            balance = adaptive_weight(nll * units, reward.mean(), last)
        real, fake = self.discriminator(images), self.discriminator(rebuilt.detach())
        hinge = hinge_loss(real, fake)
        self.update_averages(hinge, real, fake)
        scalars = {
            "discriminator": hinge.mean(),
            "logits_real": real.mean(),
            "logits_fake": fake.mean(),
            "reward": -reward.mean(),
            "adaptive_weight": balance,
        }
        return self.strength(step) * balance / units * reward, hinge, scalars

    @torch.no_grad()
    def update_averages(self, hinge: Tensor, real: Tensor, fake: Tensor) -> None:
        if not self.training:
            return
        now = torch.stack([hinge.mean(), real.mean(), fake.mean(), torch.ones_like(hinge[0])]).to(self.averages)
        self.averages.lerp_(now, 1 - MEMORY)

    def collapsed(self) -> Tensor:
        """Whether `collapse` has something to say, as a number () on the device: 1.0 or 0.0."""
        hinge, real, fake, weight = self.averages
        wrong = (hinge / weight < WON) | ((real / weight - fake / weight).abs() < BLIND)
        return (wrong & (weight >= EARLY)).float()

    def collapse(self, averages: Sequence[float] | None = None) -> str | None:
        """What went wrong between the two, in words, by the averages that were or else are; none while both have
        something to learn."""
        hinge, real, fake, weight = averages or self.averages.tolist()
        if weight < EARLY:
            return None
        hinge, real, fake = hinge / weight, real / weight, fake / weight
        if hinge < WON:
            return (
                f"the discriminator separates all reconstructions from images (hinge loss {hinge:.3f}): its reward "
                "says little. Lower training.learning_rate, or give it fewer channels"
            )
        if abs(real - fake) < BLIND:
            return (
                f"the discriminator separates nothing (logits {real:.3f} of images and {fake:.3f} of "
                "reconstructions): its reward is noise. Start it later, or give it more channels"
            )
        return None


def adaptive_weight(nll: Tensor, reward: Tensor, last: Tensor) -> Tensor:
    """|grad of nll| / (|grad of reward| + 1e-4) at the weights `last`, at most 1e4 (Esser et al. 2021, Eq. 7)."""
    (one,) = torch.autograd.grad(nll, last, retain_graph=True)
    (other,) = torch.autograd.grad(reward, last, retain_graph=True)
    return (one.float().norm() / (other.float().norm() + EPS)).clamp(max=MOST).detach()
