"""Classifier and CLIP guidance: the denoiser's estimate moved along the gradient of another network's score.

    eps' = eps - sigma scale grad_x log p(y | x_t)        (Dhariwal & Nichol 2021, section 4.2, Eq. 14 and algorithm 2)
    x_0' = x_0 + scale sigma^2 / alpha grad_x log p(y | x_t)            the same, as x_t = alpha x_0 + sigma eps

A DDPM step from x_0' moves its mean by scale beta / sqrt(1 - beta) times the gradient, which is algorithm 1 with the
larger variance. With CLIP's similarity for the logarithm it is CLIP guidance (GLIDE: Nichol et al. 2021, section 2.4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from diptych.core.errors import UserError
from diptych.diffusion.denoiser import MIN_ALPHA, Cond, Denoising, Estimate, Time
from diptych.diffusion.guidance import Wrapper
from diptych.diffusion.schedules import Schedule

Score = Callable[..., Tensor]
"""(x_t (B, ...), t (B,)) -> (B,), or (x_0 (B, ...)) -> (B,): a log-likelihood up to a constant. Each image's is
independent of the others, so that the gradient of the sum is the gradient of each."""


class GradientGuidance(Wrapper):
    """x_0 + scale sigma^2 / alpha grad_x score.

    score: of the noisy x_t and its time (`of="noisy"`: a classifier or CLIP that was trained on noise), or of the
      estimate of x_0 (`of="estimate"`: any network for clean images).
    through: of an estimate, whether the gradient is taken through the denoiser; else with the estimate's noise held
      fixed, where dx_0 / dx is 1 / alpha, which saves the backward pass through the denoiser.
    limit: the largest root mean square of the move of x_0, or none. Exact guidance at scale 1 moves it by no more than
      images differ; where alpha is small, errors of the score are amplified without such a bound.
    interval: the times at which it guides; never at alpha = 0, where x_t has no signal.
    """

    def __init__(
        self,
        denoiser: Denoising,
        schedule: Schedule,
        score: Score,
        scale: float,
        *,
        of: Literal["noisy", "estimate"] = "noisy",
        through: bool = True,
        limit: float | None = None,
        interval: tuple[float, float] = (0.0, 1.0),
    ):
        super().__init__(denoiser)
        if not 0 <= interval[0] <= interval[1] <= 1:
            raise UserError(f"the guidance interval must lie within 0 and 1, low before high, not {interval}")
        if limit is not None and not limit > 0:
            raise UserError(f"the limit of what guidance moves must be more than 0, not {limit}")
        self.schedule, self.score, self.scale = schedule, score, scale
        self.of, self.through, self.limit, self.interval = of, through, limit, interval

    def estimate(self, x: Tensor, t: Time, cond: Cond | None = None) -> Estimate:
        times = torch.as_tensor(t, dtype=torch.float64).expand(len(x))
        alpha, sigma = self.schedule.alpha_sigma(times)  # (B,) each
        low, high = self.interval
        guided = (times >= low) & (times <= high) & (alpha >= MIN_ALPHA)  # (B,)
        if self.scale == 0 or not bool(guided.any()):
            return self.denoiser.estimate(x, t, cond)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        estimate, gradient = self.gradient(x, t, times, cond)
        self.gradients += len(x)
        pull = self.scale * sigma**2 / alpha.clamp(min=MIN_ALPHA)
        if self.of == "estimate" and not self.through:
            pull = pull / alpha.clamp(min=MIN_ALPHA)
        move = _spread(torch.where(guided, pull, 0.0), x) * gradient  # (B, ...)
        if self.limit is not None:
            size = move.reshape(len(move), -1).square().mean(1).sqrt()  # (B,)
            move = move * _spread((self.limit / size.clamp(min=MIN_ALPHA)).clamp(max=1.0), x)
        return Estimate(estimate.x0 + move.to(estimate.x0), estimate.variance)

    def gradient(self, x: Tensor, t: Time, times: Tensor, cond: Cond | None) -> tuple[Estimate, Tensor]:
        """The estimate, and the score's gradient (B, ...) by x, or by the estimate where its noise is held fixed."""
        if self.of == "noisy":
            return self.denoiser.estimate(x, t, cond), score_gradient(lambda x: self.score(x, times), x)
        if not self.through:
            estimate = self.denoiser.estimate(x, t, cond)
            return estimate, score_gradient(self.score, estimate.x0)
        estimates: list[Estimate] = []

        def score(x: Tensor) -> Tensor:
            estimates.append(self.denoiser.estimate(x, t, cond))
            return self.score(estimates[0].x0)

        gradient = score_gradient(score, x)
        x0, variance = estimates[0]
        return Estimate(x0.detach(), None if variance is None else variance.detach()), gradient


def score_gradient(score: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient (B, ...) of each image's score (B,) with respect to x, also within `torch.no_grad`."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(score(x).sum(), x)
    return gradient


def _spread(values: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ...)."""
    return values.to(like).view(-1, *[1] * (like.ndim - 1))


# How a system is handed its guides.


@dataclass(frozen=True)
class Space:
    """What x_t is in a system."""

    schedule: Schedule
    device: torch.device
    pictures: Callable[[Tensor], Tensor]
    """x_0 (B, ...) as pictures (B, 3, H, W) in [-1, 1], differentiable."""
    first_stage: str | None = None
    """Fingerprint of the autoencoder whose latents they are; none for pixels, or where it cannot be told."""
    scale: float | None = None
    """What those latents were multiplied by; none for pixels."""


class Guide(Protocol):
    """A network that scores pictures by prompts."""

    @property
    def name(self) -> str:
        """What the metadata calls it."""
        ...

    @property
    def reads(self) -> Literal["noisy", "pictures"]:
        """The noisy x_t, or the pictures that the denoiser sees in it."""
        ...

    @property
    def through(self) -> bool:
        """Of pictures, whether the gradient goes through the denoiser."""
        ...

    def bound(self, prompts: Sequence[str], space: Space) -> Score:
        """The score of one picture for each prompt. A `UserError` for a prompt that it cannot read, or for a system
        that it was not made for."""
        ...


Guides = Sequence[tuple[Guide, float]]
"""Guides and their scales."""
MOST_SCALE = 1e6
"""Beyond it a scale is a slip of the keyboard."""
LIMIT = 1.0
"""In `generate` no step's estimate is moved by more than what latents and pixels deviate by."""


def steered(denoiser: Denoising, guides: Guides, prompts: Sequence[str], space: Space) -> Denoising:
    """The denoiser, guided by each: by pictures first, so that what reads noise takes nothing from their gradients."""
    for guide, scale in guides:
        if not (isinstance(scale, (int, float)) and abs(scale) <= MOST_SCALE):  # nor is what is no number
            raise UserError(f"the scale of the guide {guide.name} must lie within {MOST_SCALE:g} of 0, not {scale!r}")
    for guide, scale in sorted(guides, key=lambda pair: pair[0].reads == "noisy"):
        score, noisy = guide.bound(prompts, space), guide.reads == "noisy"

        def of_pictures(x0: Tensor, score: Score = score) -> Tensor:
            return score(space.pictures(x0))

        denoiser = GradientGuidance(
            denoiser,
            space.schedule,
            score if noisy else of_pictures,
            scale,
            of="noisy" if noisy else "estimate",
            through=guide.through,
            limit=LIMIT,
        )
    return denoiser


def told(guides: Guides) -> dict[str, Any]:
    """As metadata; nothing where there are none."""
    rows = []
    for guide, scale in guides:
        origin = getattr(guide, "origin", None)  # of one that was opened: its source, and the hash of its files
        rows.append({"guide": guide.name, "scale": scale, **({} if origin is None else origin.metadata())})
    return {"guides": rows} if rows else {}


class Cost:
    """Network calls from its making on, for the metadata of `pictures` pictures made together."""

    def __init__(self, denoiser: Denoising, pictures: int) -> None:
        self.denoiser, self.pictures = denoiser, pictures
        self.before = denoiser.calls, denoiser.gradients

    def told(self) -> dict[str, dict[str, int]]:
        """A picture's share: `calls` of the network, `gradients` of what guides it (each a call and the way back)."""
        found = self.denoiser.calls - self.before[0], self.denoiser.gradients - self.before[1]
        shares = (-(-count // self.pictures) for count in found)
        return {"cost": dict(zip(("calls", "gradients"), shares, strict=True))}
