"""The training objective: the distribution of training times, the weighting, and the loss of the learned variance."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from diptych.core.config import Config
from diptych.diffusion.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Config):
    """The training loss and the times at which it is taken."""

    loss: Literal["mse", "l1"] = "mse"
    """The error of the network's prediction: squared, or absolute as some of latent-diffusion's models and SR3."""
    times: Literal["uniform", "logit-normal"] = "uniform"
    """Distribution of training times; logit-normal favours the middle (Esser et al. 2024, Eq. 19)."""
    mean: float = 0.0
    """logit-normal only: of logit(t); above 0 favours noise."""
    std: float = 1.0
    """logit-normal only: of logit(t)."""
    weighting: Literal["none", "min-snr", "truncated-snr"] = "none"
    """Of the loss at each time: none, min(SNR, gamma) for the error of x_0
    (min-SNR, Hang et al. 2023), or that but no less than 1 (truncated SNR, Salimans & Ho 2022)."""
    gamma: float = 5.0
    """min-snr and truncated-snr only: the largest weight of the x_0 error."""

    def check(self) -> None:
        self.require(self.std > 0, "std", "be positive")
        plain = self.weighting == "none"
        self.require(self.loss == "mse" or plain, "loss", f"be mse: {self.weighting} weighs a squared error")
        self.require(self.gamma > 0, "gamma", "be positive")
        self.require(self.weighting != "truncated-snr" or self.gamma >= 1, "gamma", "be at least 1 for truncated-snr")


def training_times(uniform: Tensor, config: ObjectiveConfig, schedule: Schedule) -> Tensor:
    """(B,) float64 times in (0, 1] from (B,) uniform draws in [0, 1) (`NoiseSource.uniform`).

    A table of T steps is trained at its entries t = 1/T, ..., 1, as the published models are; a closed form anywhere.
    """
    t = uniform.double()
    if config.times == "logit-normal":
        t = torch.sigmoid(config.mean + config.std * torch.special.ndtri(t.clamp(1e-9, 1 - 1e-9)))
    if schedule.discrete:
        return ((t * schedule.steps).floor().clamp(max=schedule.steps - 1) + 1) / schedule.steps
    return 1 - t if config.times == "uniform" else t  # [0, 1) becomes (0, 1]


def variance_bound(x0: Tensor, estimate: Tensor, fraction: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """(B,) KL(q(x_then | x_now, x_0) || p(x_then | x_now)) of a step of 1/T, in bits per value (Improved DDPM, Eq. 6).

    x0, estimate (B, ...): the image and its estimate. fraction (B, ...) in [-1, 1]: the learned variance (Eq. 15).
    It trains the variance alone: the estimate is detached (Sec. 3.1). 0 in the first step, which draws no noise.
    """
    alpha, sigma = schedule.alpha_sigma(t.double())
    alpha_then, sigma_then = schedule.alpha_sigma((t.double() - 1 / schedule.steps).clamp(min=0))
    large = (sigma**2 - (alpha / alpha_then * sigma_then) ** 2).clamp(min=1e-20)  # beta
    drawn = t * schedule.steps > 1.5  # half an index of slack for float32 times
    small = torch.where(drawn, large * sigma_then**2 / sigma**2, large)  # beta-tilde
    pull = alpha_then * large / sigma**2  # how far x_0 moves the mean (DDPM, Eq. 7)

    def spread(values: Tensor) -> Tensor:  # (B,) -> (B, 1, ...)
        return values.to(x0).view(-1, *[1] * (x0.ndim - 1))

    between = (fraction + 1) / 2
    log_small = spread(small.log())
    log_variance = between * spread(large.log()) + (1 - between) * log_small
    distance = (spread(pull) * (x0 - estimate.detach())).square()
    bits = (log_variance - log_small + (log_small - log_variance).exp() + distance * (-log_variance).exp() - 1) / 2
    return torch.where(drawn.to(x0.device), bits.reshape(len(bits), -1).mean(1) / math.log(2), 0.0)
