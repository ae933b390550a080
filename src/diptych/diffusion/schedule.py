"""Noise schedules: how much of the picture, alpha(t), and how much noise, sigma(t), there is at each time.

    x_t = alpha(t) x_0 + sigma(t) eps,     t = 0 the picture (alpha 1, sigma 0),  t = 1 the most noise

Time is continuous. A published schedule of T discrete steps is a table: its index i = 0 .. T-1 is t = (i + 1) / T, and
between two entries the log-SNR is interpolated linearly. All of it is computed in float64, because a clipped cosine
schedule reaches sigma / alpha = 20,000.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from diptych.config import Config, Within
from diptych.errors import UserError

Spacing = Literal["trailing", "leading", "linspace", "karras"]


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Config):
    kind: Literal["linear", "scaled-linear", "cosine", "cosine-table", "flow"] = "scaled-linear"
    """linear (DDPM), scaled-linear (Stable Diffusion), cosine (closed form), cosine-table (clipped betas), flow."""
    steps: Annotated[int, Within(1, 10**6)] = 1000
    """T, the number of discrete steps; for closed forms, the units in which the network is told the time."""
    beta_start: float = 0.00085
    """First beta of linear (DDPM: 1e-4) and scaled-linear."""
    beta_end: float = 0.012
    """Last beta of linear (DDPM: 0.02) and scaled-linear."""
    shift: float = 1.0
    """flow only: t' = shift t / (1 + (shift - 1) t), more noise for larger pictures (SD3, Eq. 23)."""
    continuous: bool = False
    """linear, scaled-linear and cosine-table only: train and sample at any time, also between the T steps (Imagen's
    1024-px stage, SR3); else at these alone."""
    conditioning: Literal["time", "gamma"] = "time"
    """What the network is told: the time, or gamma = alpha^2, which tells the noise whatever the schedule (SR3, section
    2.1); in units of T."""

    def check(self) -> None:
        self.require(self.steps >= 2, "steps", "be at least 2")
        self.require(0 < self.beta_start < 1, "beta_start", "lie between 0 and 1")
        self.require(self.beta_start <= self.beta_end < 1, "beta_end", "lie between beta_start and 1")
        self.require(self.shift > 0, "shift", "be positive")
        self.require(self.shift == 1 or self.kind == "flow", "shift", "be 1 unless kind is flow")
        closed = self.kind in ("cosine", "flow")
        self.require(not (self.continuous and closed), "continuous", f"be false: {self.kind} has no steps anyway")
        self.require(self.conditioning == "time" or self.kind != "flow", "conditioning", "be time for flow")


def build_schedule(config: ScheduleConfig) -> Schedule:
    """The schedule that a config describes."""
    schedule = _of_kind(config)
    schedule.discrete = schedule.discrete and not config.continuous
    schedule.tells_gamma = config.conditioning == "gamma"
    return schedule


def _of_kind(config: ScheduleConfig) -> Schedule:
    if config.kind == "flow":
        return FlowSchedule(config.steps, config.shift)
    if config.kind == "cosine":
        return CosineSchedule(config.steps)
    if config.kind == "cosine-table":
        return TableSchedule(cosine_betas(config.steps))
    start, end = config.beta_start, config.beta_end
    if config.kind == "scaled-linear":
        return TableSchedule(torch.linspace(start**0.5, end**0.5, config.steps, dtype=torch.float64) ** 2)
    return TableSchedule(torch.linspace(start, end, config.steps, dtype=torch.float64))


class Schedule:
    """Base of all schedules. Every method takes and gives float64 tensors of one shape, on the device of its input."""

    steps: int
    """T: the units of `network_time`."""
    discrete: bool = False
    """True where published networks saw only t = 1/T, 2/T, ..., 1 in training."""
    straight: bool = False
    """True where alpha + sigma = 1, so that the path from noise to picture is a straight line (rectified flow)."""
    tells_gamma: bool = False
    """Whether the network is told T alpha^2 in the place of the time."""

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
        """What the network is told: the index i of t = (i + 1) / T, or gamma in units of T."""
        if self.tells_gamma:
            return self.alpha_sigma(t)[0] ** 2 * self.steps
        return t.double() * self.steps - 1


class TableSchedule(Schedule):
    """A schedule of T discrete steps, given by its betas (DDPM, Eq. 4: alpha_i^2 = prod_{j <= i} (1 - beta_j))."""

    discrete = True

    def __init__(self, betas: Tensor):
        self.steps = len(betas)
        alpha_squared = torch.cumprod(1 - betas.double(), 0)
        self.table = alpha_squared.log() - torch.log1p(-alpha_squared)  # (T,) log-SNR, falling

    def log_snr(self, t: Tensor) -> Tensor:
        table, index = self.table.to(t.device), t.double() * self.steps - 1
        low = index.floor().clamp(0, self.steps - 2).long()
        between = torch.lerp(table[low], table[low + 1], index - low)
        # Before the first entry sigma^2 grows in proportion to t, from 0.
        return torch.where(index < 0, self._before_first(index + 1), between)

    def _before_first(self, fraction: Tensor) -> Tensor:
        variance = torch.sigmoid(-self.table[0]).to(fraction.device) * fraction.clamp(0, 1)
        return torch.log1p(-variance) - variance.log()

    def inverse_log_snr(self, log_snr: Tensor) -> Tensor:
        rising, wanted = -self.table.to(log_snr.device), -log_snr.double()
        low = torch.searchsorted(rising, wanted).clamp(1, self.steps - 1) - 1
        index = low + (wanted - rising[low]) / (rising[low + 1] - rising[low])
        fraction = wanted.sigmoid() / rising[0].sigmoid()  # before the first entry, as above
        return torch.where(wanted < rising[0], fraction / self.steps, (index + 1) / self.steps).clamp(0, 1)


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
        """T sigma: the network is told the shifted time, 1000 at pure noise."""
        return self.alpha_sigma(t)[1] * self.steps


def timesteps(
    schedule: Schedule,
    steps: int,
    spacing: Spacing = "trailing",
    *,
    offset: int = 0,
    drop_last: bool = False,
    final: Literal["clean", "first"] = "clean",
    between: bool = False,
) -> Tensor:
    """The N + 1 times that a sampler visits, falling, float64: N where the network runs, and where the result stands.

    spacing: how the N indices are laid out over 0 .. T-1 ("Common Diffusion Noise Schedules and Sample Steps are
      Flawed", Table 2): `trailing` starts at T-1; `leading` is the multiples of T // N; `linspace` has both ends;
      `karras` keeps the ends of linspace and spaces sigma / alpha between them by EDM's Eq. 5 with rho = 7.
    offset: added to the indices of `leading` (Stable Diffusion 1: 1).
    drop_last: leading and linspace lay out N + 1 indices and drop the lowest (as published for DPM-Solver++ and UniPC).
    final: `clean` ends at t = 0; `first` ends at index 0, which keeps a little noise (Stable Diffusion 1 with DDIM).
    between: linspace only: leave the indices where they fall, between those that a discrete schedule has.
    """
    total = schedule.steps
    points = steps + (drop_last and spacing in ("leading", "linspace"))
    if steps < 1 or (schedule.discrete and points > total):
        raise UserError(f"steps must lie between 1 and {total + steps - points}, not {steps}")
    if spacing == "trailing":
        index = total - torch.arange(points, dtype=torch.float64) * (total / points)
        index = (index.round() if schedule.discrete else index) - 1
    elif spacing == "leading":
        index = (total // points) * torch.arange(points - 1, -1, -1, dtype=torch.float64) + offset
    elif spacing in ("linspace", "karras"):
        index = torch.linspace(total - 1, 0, points, dtype=torch.float64)
    else:
        raise UserError(f"unknown spacing {spacing!r}: choose one of karras, leading, linspace, trailing")
    if schedule.discrete and not (between and spacing == "linspace"):
        index = index.round()  # published networks were never told anything between
    times = ((index + 1) / total).clamp(0, 1)[:steps]
    if spacing == "karras":
        times = _karras(schedule, times)
    end = 0.0 if final == "clean" else 1 / total
    return torch.cat([times, times.new_tensor([end])])


@dataclass(frozen=True, kw_only=True)
class TimesConfig(Config):
    """How the times that a sampler visits are laid out: see `timesteps`."""

    spacing: Literal["trailing", "leading", "linspace", "karras", "published"] = "trailing"
    """As in `timesteps`; published: as each sampler was published for Stable Diffusion, leading for DDIM and DDPM and
    linspace for the others."""
    offset: int = 0
    """Added to the indices of leading (Stable Diffusion: 1)."""
    final: Literal["clean", "first"] = "clean"
    """Where DDIM and DDPM end; the others always end at the picture."""

    def check(self) -> None:
        self.require(0 <= self.offset <= 1, "offset", "be 0 or 1")

    def times(self, schedule: Schedule, steps: int, sampler: str) -> Tensor:
        """The times (N + 1,) of a sampler by its name, as `timesteps` gives them.

        The multistep solvers were published with one index more than steps, of which the lowest is dropped, and Euler's
        kin with indices that are not rounded.
        """
        plain = sampler in ("ddim", "ddpm")
        spacing = self.spacing
        if spacing == "published":
            spacing = "leading" if plain else "linspace"
        return timesteps(
            schedule,
            steps,
            spacing,
            offset=self.offset,
            drop_last=sampler in ("dpmpp-2m", "dpmpp-2m-sde", "unipc") and spacing != "trailing",
            final=self.final if plain else "clean",
            between=sampler in ("euler", "euler-ancestral", "heun"),
        )

    def first_noise(self, schedule: Schedule, times: Tensor, sampler: str) -> float:
        """Deviation of the noise that sampling starts from.

        1, but for Euler's kin where the times have both ends: as published they start from sigma / alpha times unit
        noise, with nothing of a picture in it, which is sigma of unit noise here.
        """
        if sampler not in ("euler", "euler-ancestral", "heun") or self.spacing in ("trailing", "leading"):
            return 1.0
        return float(schedule.alpha_sigma(times[:1])[1])


def _karras(schedule: Schedule, times: Tensor, rho: float = 7.0) -> Tensor:
    """As many times between the same ends, with (sigma / alpha)^(1 / rho) evenly spaced (Karras et al. 2022, Eq. 5)."""
    ends = schedule.log_snr(times[[0, -1]]).clamp(min=CosineSchedule.lowest)  # flow starts at alpha = 0
    most, least = (-ends / 2 / rho).exp().tolist()
    ratio = torch.linspace(most, least, len(times), dtype=torch.float64) ** rho
    return schedule.inverse_log_snr(-2 * ratio.log())
