"""Classifier and CLIP guidance: the denoiser's estimate moved along the gradient of another network's score.

    eps' = eps - sigma scale grad_x log p(y | x_t)        (Dhariwal & Nichol 2021, section 4.2, Eq. 14 and algorithm 2)
    x_0' = x_0 + scale sigma^2 / alpha grad_x log p(y | x_t)            the same, as x_t = alpha x_0 + sigma eps

A DDPM step from x_0' moves its mean by scale beta / sqrt(1 - beta) times the gradient, which is algorithm 1 with the
larger variance. With CLIP's similarity for the logarithm it is CLIP guidance (GLIDE: Nichol et al. 2021, section 2.4).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diptych.core.errors import UserError
from diptych.diffusion.denoiser import MIN_ALPHA, Cond, Denoising, Estimate, Time
from diptych.diffusion.guidance import Wrapper
from diptych.diffusion.schedules import Schedule

Score = Callable[..., Tensor]
"""(x_t (B, ...), t (B,)) -> (B,), or (x_0 (B, ...)) -> (B,): a log-likelihood up to a constant. Each image's is
independent of the others, so that the gradient of the sum is the gradient of each."""


@dataclass(frozen=True)
class WeightedScore:
    """A score, its scale and its argument."""

    score: Score
    scale: float
    of: Literal["noisy", "estimate"] = "noisy"
    """The noisy x_t and its time (a classifier or CLIP that was trained on noise), or the denoiser's estimate of x_0
    (any network of clean images)."""
    through: bool = True
    """Of an estimate, whether the gradient is taken through the denoiser. Else the estimate's noise is held fixed:
    then dx_0 / dx is 1 / alpha, which saves the backward pass through the denoiser."""


class GradientGuidance(Wrapper):
    """x_0 + sum over scores of scale sigma^2 / alpha grad_x score.

    All scores of an estimate are taken at the unguided one, so that their order does not matter.

    limit: the largest root mean square by which one score moves x_0, or none. Exact guidance at scale 1 moves it by no
      more than images differ; where alpha is small, errors of the score are amplified without such a bound.
    interval: the times at which it guides; never at alpha = 0, where x_t has no signal.

    Where gradients are on, x_0' has those of x_0; the terms of the scores count as constants.
    """

    def __init__(
        self,
        denoiser: Denoising,
        schedule: Schedule,
        scores: Sequence[WeightedScore],
        *,
        limit: float | None = None,
        interval: tuple[float, float] = (0.0, 1.0),
    ):
        super().__init__(denoiser)
        if not 0 <= interval[0] <= interval[1] <= 1:
            raise UserError(f"the guidance interval must lie within 0 and 1, low before high, not {interval}")
        if limit is not None and not limit > 0:
            raise UserError(f"the limit of gradient guidance must be more than 0, not {limit}")
        self.schedule, self.limit, self.interval = schedule, limit, interval
        self.scores = [term for term in scores if term.scale != 0]

    def estimate(self, x: Tensor, t: Time, cond: Cond | None = None) -> Estimate:
        times = torch.as_tensor(t, dtype=torch.float64).expand(len(x))
        alpha, sigma = self.schedule.alpha_sigma(times)  # (B,) each
        low, high = self.interval
        guided = (times >= low) & (times <= high) & (alpha >= MIN_ALPHA)  # (B,)
        if not self.scores or not bool(guided.any()):
            return self.denoiser.estimate(x, t, cond)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        estimate, gradients = self.differentiate(x, t, times, cond)
        self.gradients += len(x) * len(self.scores)
        x0 = estimate.x0
        for term, gradient in zip(self.scores, gradients, strict=True):
            factor = term.scale * sigma**2 / alpha.clamp(min=MIN_ALPHA)
            if term.of == "estimate" and not term.through:
                factor = factor / alpha.clamp(min=MIN_ALPHA)
            move = _spread(torch.where(guided, factor, 0.0), x) * gradient  # (B, ...)
            if self.limit is not None:
                size = move.reshape(len(move), -1).square().mean(1).sqrt()  # (B,)
                move = move * _spread((self.limit / size.clamp(min=MIN_ALPHA)).clamp(max=1.0), x)
            x0 = x0 + move.to(x0)
        return Estimate(x0, estimate.variance)

    def differentiate(self, x: Tensor, t: Time, times: Tensor, cond: Cond | None) -> tuple[Estimate, list[Tensor]]:
        """The estimate, and the gradient (B, ...) of each score by x, or by the estimate where its noise is fixed."""
        through = any(term.of == "estimate" and term.through for term in self.scores)
        outer = torch.is_grad_enabled() and x.requires_grad
        if through and not outer:
            x = x.detach().requires_grad_()
        with torch.set_grad_enabled(through or torch.is_grad_enabled()):
            estimate = self.denoiser.estimate(x, t, cond)
        gradients = []
        for term in self.scores:
            if term.of == "noisy":
                gradients.append(score_gradient(lambda x, term=term: term.score(x, times), x))
            elif term.through:
                with torch.enable_grad():
                    (gradient,) = torch.autograd.grad(term.score(estimate.x0).sum(), x, retain_graph=True)
                gradients.append(gradient)
            else:
                gradients.append(score_gradient(term.score, estimate.x0))
        if through and not outer:
            x0, variance = estimate
            estimate = Estimate(x0.detach(), None if variance is None else variance.detach())
        return estimate, gradients


def score_gradient(score: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """The gradient (B, ...) of each image's score (B,) with respect to x, also within `torch.no_grad`."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(score(x).sum(), x)
    return gradient


def _spread(values: Tensor, like: Tensor) -> Tensor:
    """(B,) -> (B, 1, ...)."""
    return values.to(like).view(-1, *[1] * (like.ndim - 1))
