"""Closed-form denoisers: for these data the best possible x_0 and the exact solution of the ODE are known."""

from __future__ import annotations

import torch
from torch import Tensor

from diptych.diffusion.schedules import Schedule


class Gaussian:
    """Data ~ N(mean, std^2) in each coordinate."""

    def __init__(self, schedule: Schedule, mean: float = 0.7, std: float = 0.3):
        self.schedule, self.mean, self.std = schedule, mean, std

    def levels(self, x: Tensor, t) -> tuple[Tensor, Tensor]:
        t = torch.as_tensor(t, dtype=torch.float64).expand(len(x)).view(-1, *[1] * (x.ndim - 1))
        alpha, sigma = self.schedule.alpha_sigma(t)
        return alpha.to(x), sigma.to(x)

    def __call__(self, x: Tensor, t) -> Tensor:
        alpha, sigma = self.levels(x, t)
        total = (alpha * self.std) ** 2 + sigma**2
        return self.mean + alpha * self.std**2 / total * (x - alpha * self.mean)

    def solve(self, x: Tensor, t: float, then: float) -> Tensor:
        """The probability-flow ODE keeps the standardised value: (x - alpha mean) / std of x_t."""
        alpha, sigma = self.levels(x, t)
        alpha_then, sigma_then = self.levels(x, then)
        standard = (x - alpha * self.mean) / ((alpha * self.std) ** 2 + sigma**2).sqrt()
        return alpha_then * self.mean + ((alpha_then * self.std) ** 2 + sigma_then**2).sqrt() * standard


class Mixture(Gaussian):
    """Data ~ the mixture sum_k weights_k N(means_k, std^2) in each coordinate, all coordinates independent."""

    def __init__(self, schedule: Schedule, means=(-0.8, 0.2, 0.9), weights=(0.2, 0.5, 0.3), std: float = 0.05):
        super().__init__(schedule, 0.0, std)
        self.means = torch.tensor(means, dtype=torch.float64)
        self.weights = torch.tensor(weights, dtype=torch.float64)

    def __call__(self, x: Tensor, t) -> Tensor:
        alpha, sigma = (value.unsqueeze(-1) for value in self.levels(x, t))
        means, weights = self.means.to(x), self.weights.to(x)
        total = (alpha * self.std) ** 2 + sigma**2
        away = x.unsqueeze(-1) - alpha * means  # (B, ..., K)
        share = (weights.log() - away.square() / (2 * total)).softmax(-1)
        return (share * (means + alpha * self.std**2 / total * away)).sum(-1)

    def noised(self, noise: Tensor, t: float) -> Tensor:
        """x_t of fresh data, from standard normal noise (B, N)."""
        generator = torch.Generator().manual_seed(11)
        modes = torch.multinomial(self.weights, noise.numel(), replacement=True, generator=generator).view(noise.shape)
        data = self.means[modes] + self.std * torch.randn(noise.shape, generator=generator)
        alpha, sigma = self.levels(noise, t)
        return (alpha * data + sigma * noise).to(noise)

    def cdf(self, x: Tensor, t) -> Tensor:
        """Of x_t, which the one-dimensional ODE keeps: cdf(x_t, t) = cdf(x_0, 0)."""
        alpha, sigma = (value.unsqueeze(-1) for value in self.levels(x, t))
        total = (alpha * self.std) ** 2 + sigma**2
        return (self.weights * torch.special.ndtr((x.unsqueeze(-1) - alpha * self.means) / total.sqrt())).sum(-1)


class Net:
    """A small deterministic stand-in for a network: smooth in x and in time, in any precision; counts its calls."""

    def __init__(self, channels: int = 1):
        self.channels, self.calls = channels, 0

    def __call__(self, x: Tensor, time: Tensor, **cond: Tensor) -> Tensor:
        self.calls += 1
        time = time.to(x).view(-1, *[1] * (x.ndim - 1))
        wave = torch.sin(3 * x + 0.01 * time) * 0.4 + 0.5 * x + 0.1 * x.roll(1, -1) * torch.cos(0.005 * time)
        for value in cond.values():
            wave = wave + value.to(x).flatten(1).mean(1).view(-1, *[1] * (x.ndim - 1))
        return torch.cat([wave, *[torch.cos(2 * wave)] * (self.channels - 1)], 1)
