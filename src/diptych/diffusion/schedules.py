"""Noise schedules: how much signal, alpha(t), and how much noise, sigma(t), x_t has at each time.

    x_t = alpha(t) x_0 + sigma(t) eps,     t = 0: the image (alpha 1, sigma 0),  t = 1: the most noise

Time is continuous. A published schedule of T discrete steps is a table: its index i = 0 .. T-1 is t = (i + 1) / T, and
between two entries the log-SNR is interpolated linearly. All of it is computed in float64, because a clipped cosine
schedule reaches sigma / alpha = 20,000.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor

from diptych.core.config import Config, Within

Rounding = Literal["exact", "nearest", "below"]


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Config):
    """A noise schedule."""

    renamed: ClassVar[dict[str, str]] = {"between": "rounding"}

    kind: Literal["linear", "scaled-linear", "cosine", "cosine-table", "flow"] = "scaled-linear"
    """linear (DDPM), scaled-linear (Stable Diffusion), cosine (closed form), cosine-table (clipped betas), flow."""
    steps: Annotated[int, Within(1, 10**6)] = 1000
    """T, the number of discrete steps; for closed forms, the units of the network's time."""
    beta_start: float = 0.00085
    """First beta of linear (DDPM: 1e-4) and scaled-linear."""
    beta_end: float = 0.012
    """Last beta of linear (DDPM: 0.02) and scaled-linear."""
    shift: float = 1.0
    """flow only: t' = shift t / (1 + (shift - 1) t), more noise for larger images (SD3, Eq. 23)."""
    continuous: bool = False
    """linear, scaled-linear and cosine-table only: train and sample at any time, also between the T steps (Imagen's
    1024-px stage, SR3); else at these alone."""
    conditioning: Literal["time", "gamma"] = "time"
    """The network's time input: the time, or gamma = alpha^2, which is the noise level whatever the schedule (SR3,
    section 2.1); in units of T."""
    zero_snr: bool = False
    """Tables of betas only: rescaled so that no signal is left at the last step (Lin et al. 2024, Alg. 1)."""
    rounding: Rounding = "exact"
    """Tables only: how the network's time is rounded between two entries, see `Schedule.with_rounding`."""

    def check(self) -> None:
        self.require(2 <= self.steps <= 100_000, "steps", "be at least 2 and at most 100,000")
        self.require(0 < self.beta_start < 1, "beta_start", "lie between 0 and 1")
        self.require(self.beta_start <= self.beta_end < 1, "beta_end", "lie between beta_start and 1")
        self.require(self.shift > 0, "shift", "be positive")
        self.require(self.shift == 1 or self.kind == "flow", "shift", "be 1 unless kind is flow")
        closed = self.kind in ("cosine", "flow")
        self.require(not (self.continuous and closed), "continuous", f"be false: {self.kind} has no steps anyway")
        self.require(self.conditioning == "time" or self.kind != "flow", "conditioning", "be time for flow")
        self.require(not self.zero_snr or self.kind not in ("cosine", "flow"), "zero_snr", f"be false for {self.kind}")

    def build(self) -> Schedule:
        """The schedule that this config describes."""
        schedule = self._schedule().with_rounding(self.rounding)
        schedule.discrete = schedule.discrete and not self.continuous
        schedule.gamma_conditioning = self.conditioning == "gamma"
        return schedule

    def _schedule(self) -> Schedule:
        if self.kind == "flow":
            return FlowSchedule(self.steps, self.shift)
        if self.kind == "cosine":
            return CosineSchedule(self.steps)
        if self.kind == "cosine-table":
            return TableSchedule(cosine_betas(self.steps), self.zero_snr)
        start, end = self.beta_start, self.beta_end
        if self.kind == "scaled-linear":
            betas = torch.linspace(start**0.5, end**0.5, self.steps, dtype=torch.float64) ** 2
            return TableSchedule(betas, self.zero_snr)
        return TableSchedule(torch.linspace(start, end, self.steps, dtype=torch.float64), self.zero_snr)


class Schedule:
    """Base of all schedules. Methods take and return float64 tensors of one shape, on the device of their input."""

    steps: int
    """T: the units of `network_time`."""
    discrete: bool = False
    """True where published networks saw only t = 1/T, 2/T, ..., 1 in training."""
    straight: bool = False
    """True where alpha + sigma = 1, so that the path from noise to image is a straight line (rectified flow)."""
    gamma_conditioning: bool = False
    """Whether `network_time` is T alpha^2."""
    rounding: Rounding = "exact"
    """How `network_time` is rounded between two entries of a table."""

    def with_rounding(self, rounding: Rounding) -> Schedule:
        """The same schedule with `network_time` between two entries of a table exact, or rounded to the nearest entry
        or the one below, as some published samplers do."""
        if rounding == self.rounding:
            return self
        other = copy.copy(self)
        other.rounding = rounding
        return other

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) at times t in [0, 1]."""
        log_snr = self.log_snr(t)
        return log_snr.sigmoid().sqrt(), (-log_snr).sigmoid().sqrt()  # variance preserving: alpha^2 + sigma^2 = 1

    def log_snr(self, t: Tensor) -> Tensor:
        """log(alpha^2 / sigma^2): +inf at t = 0, falling with t."""
        raise NotImplementedError

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        """The time at which `log_snr` is reached, within [0, 1]."""
        raise NotImplementedError

    def network_time(self, t: Tensor) -> Tensor:
        """The network's time input: the index i of t = (i + 1) / T, or gamma in units of T."""
        if self.gamma_conditioning:
            return self.alpha_sigma(t)[0] ** 2 * self.steps
        return t.double() * self.steps - 1


class TableSchedule(Schedule):
    """A schedule of T discrete steps, given by its betas (DDPM, Eq. 4: alpha_i^2 = prod_{j <= i} (1 - beta_j)).

    zero_snr: shift and scale alpha so that the last is 0 and the first stays (Lin et al. 2024, Alg. 1). As published
      samplers have it, the last alpha^2 is 2^-24 and not 0, so that sigma / alpha stays finite.
    """

    discrete = True

    def __init__(self, betas: Tensor, zero_snr: bool = False):
        self.steps = len(betas)
        alpha_squared = torch.cumprod(1 - betas.double(), 0)
        if zero_snr:
            first, last = alpha_squared[[0, -1]].sqrt()
            alpha_squared = ((alpha_squared.sqrt() - last) * first / (first - last)) ** 2
            alpha_squared[-1] = 2.0**-24
        self.table = alpha_squared.log() - torch.log1p(-alpha_squared)  # (T,) log-SNR, falling
        self._copies = {self.table.device: self.table}

    def table_on(self, device: torch.device) -> Tensor:
        """The table on a device, copied there once."""
        if (copied := self._copies.get(device)) is None:
            copied = self.table.to(device)
            if type(copied) is Tensor:  # not one of shapes alone, while something is traced
                self._copies[device] = copied
        return copied

    def log_snr(self, t: Tensor) -> Tensor:
        table, index = self.table_on(t.device), t.double() * self.steps - 1
        low = index.floor().clamp(0, self.steps - 2).long()
        between = torch.lerp(table[low], table[low + 1], index - low)
        # Before the first entry sigma^2 grows in proportion to t, from 0.
        return torch.where(index < 0, self._before_first(index + 1), between)

    def _before_first(self, fraction: Tensor) -> Tensor:
        variance = torch.sigmoid(-self.table_on(fraction.device)[0]) * fraction.clamp(0, 1)
        return torch.log1p(-variance) - variance.log()

    def network_time(self, t: Tensor) -> Tensor:
        index = super().network_time(t)
        if self.gamma_conditioning:
            return index
        if self.rounding == "below":  # as published: 999 itself, through a logarithm in float32, comes out as 998
            return (index - 1e-4).floor().clamp(min=0)
        return index.round() if self.rounding == "nearest" else index

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        rising, target = -self.table_on(log_snr.device), -log_snr.double()
        low = torch.searchsorted(rising, target).clamp(1, self.steps - 1) - 1
        index = low + (target - rising[low]) / (rising[low + 1] - rising[low])
        fraction = target.sigmoid() / rising[0].sigmoid()  # before the first entry, as above
        return torch.where(target < rising[0], fraction / self.steps, (index + 1) / self.steps).clamp(0, 1)


OFFSET = 0.008  # s of Nichol & Dhariwal 2021, Eq. 17


def cosine_betas(steps: int, largest: float = 0.999) -> Tensor:
    """(T,) betas of the cosine schedule, clipped so that a last bit of signal is left (Nichol & Dhariwal, Sec. 3.2)."""
    t = torch.arange(steps + 1, dtype=torch.float64) / steps
    alpha_squared = torch.cos((t + OFFSET) / (1 + OFFSET) * math.pi / 2) ** 2
    return (1 - alpha_squared[1:] / alpha_squared[:-1]).clamp(max=largest)


class CosineSchedule(Schedule):
    """The cosine schedule in closed form (Nichol & Dhariwal 2021, Eq. 17), clipped at log-SNR -20 as its table is."""

    lowest = -20.0

    def __init__(self, steps: int = 1000):
        self.steps = steps
        self.start = math.cos(OFFSET / (1 + OFFSET) * math.pi / 2)

    def log_snr(self, t: Tensor) -> Tensor:
        alpha = torch.cos((t.double() + OFFSET) / (1 + OFFSET) * math.pi / 2) / self.start
        alpha_squared = alpha.clamp(0, 1) ** 2
        return (alpha_squared.log() - torch.log1p(-alpha_squared)).clamp(min=self.lowest)

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        alpha = log_snr.double().sigmoid().sqrt()
        return ((1 + OFFSET) * torch.acos(self.start * alpha) * 2 / math.pi - OFFSET).clamp(0, 1)


class FlowSchedule(Schedule):
    """Rectified flow: alpha = 1 - t, sigma = t (Liu et al. 2022); shifted as in SD3 (Esser et al. 2024, Eq. 23)."""

    straight = True

    def __init__(self, steps: int = 1000, shift: float = 1.0):
        self.steps, self.shift = steps, shift

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        sigma = self.shift * t.double() / (1 + (self.shift - 1) * t.double())
        return 1 - sigma, sigma

    def log_snr(self, t: Tensor) -> Tensor:
        alpha, sigma = self.alpha_sigma(t)
        return 2 * (alpha.log() - sigma.log())

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        sigma = torch.sigmoid(-log_snr.double() / 2)  # sigma / (1 - sigma) = exp(-log_snr / 2)
        return sigma / (self.shift - (self.shift - 1) * sigma)

    def network_time(self, t: Tensor) -> Tensor:
        """T sigma: the shifted time, 1000 at pure noise."""
        return self.alpha_sigma(t)[1] * self.steps
