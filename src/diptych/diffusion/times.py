"""The timesteps of sampling: how N of them are spaced, and the deviation of the initial noise.

Published samplers differ in this as much as in their formulas. The defaults of a sampler are its `Layout`, a model's
are its `TimesConfig`, and a user may set a `schedule_type`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from diptych.core.config import Config
from diptych.core.errors import UserError, pick
from diptych.diffusion.schedules import Rounding, Schedule

Spacing = Literal["trailing", "leading", "linspace", "karras", "lcm"]
Curve = Literal["karras", "exponential", "beta", "lu"]
"""Of sigma / alpha over the steps (`diffusion.sigmas`); lu is evenly spaced lambda (DPM-Solver)."""
SCHEDULE_TYPES = ("karras", "exponential", "beta", "trailing", "leading", "linspace")
"""The spacings and sigma curves that a user may set in the place of the model's times."""


class Layout(NamedTuple):
    """How a sampler was published with Stable Diffusion (diffusers' scheduler of its name)."""

    spacing: Literal["leading", "linspace", "lcm"]
    """The default spacing."""
    multistep: bool = False
    """leading and linspace lay out one index more than there are steps and drop the lowest, and curves of sigmas run
    between the ends of the table."""
    fractional: bool = False
    """linspace does not round its indices to those of a table; with it and with trailing, sampling starts from
    sigma / alpha times unit noise and no signal."""
    curves: tuple[str, ...] = ()
    """The sigma curves of a config that apply to it; others are ignored."""


class SamplingPlan(NamedTuple):
    """The arguments of a sampler other than the denoiser."""

    times: Tensor
    """(N + 1,), falling."""
    init_noise_sigma: float
    """Deviation of the initial noise."""
    schedule: Schedule
    """With the rounding of the network's time."""


PLAIN = Layout("leading")
EULER = Layout("linspace", fractional=True, curves=("karras", "exponential", "beta"))
MULTISTEP = Layout("linspace", multistep=True, curves=("karras", "exponential", "beta", "lu"))
UNIPC = MULTISTEP._replace(curves=("karras", "exponential", "beta"))
LAYOUTS = {
    "ddim": PLAIN,
    "ddpm": PLAIN,
    "ddpm-fixed-large": PLAIN,
    "euler": EULER,
    "euler-ancestral": EULER._replace(curves=()),
    "heun": EULER,
    "dpm-2m": MULTISTEP,
    "dpm-2m-sde": MULTISTEP,
    "dpmpp-1m": MULTISTEP,
    "dpmpp-1m-sde": MULTISTEP,
    "dpmpp-2m": MULTISTEP,
    "dpmpp-2m-heun": MULTISTEP,
    "dpmpp-2m-sde": MULTISTEP,
    "dpmpp-2m-sde-heun": MULTISTEP,
    "dpmpp-3m": MULTISTEP,
    "unipc": UNIPC,
    "unipc-bh1": UNIPC,
    "lcm": Layout("lcm"),
}
"""Sampler -> its layout."""
LCM_STEPS = 50
"""Of the teacher's steps among whose times those of published latent consistency models lie."""
ENDS_AT_ZERO = ("ddpm", "ddpm-fixed-large", "euler-ancestral", "heun", "lcm")
"""Samplers that always end at t = 0; `ddim` has a setting of its own."""


def timesteps(
    schedule: Schedule,
    steps: int,
    spacing: Spacing = "trailing",
    *,
    offset: int = 0,
    drop_last: bool = False,
    final: Literal["clean", "first"] = "clean",
    fractional: bool = False,
    used: int | None = None,
) -> Tensor:
    """The N + 1 falling times of a sampler, float64: N at which the network runs, and that of the result.

    spacing: `trailing` takes equal steps from t = 1, on a discrete schedule rounded to its times ("Common
      Diffusion Noise Schedules and Sample Steps are Flawed", Table 2). For the others, `published_times` has `offset`,
      `drop_last` and `fractional` too.
    final: `clean` ends at t = 0; `first` ends at index 0, which leaves a little noise (Stable Diffusion 1 with DDIM).
    used: so many of the table's entries, the first ones; all if none.

    Raises `UserError` for an unknown spacing, and for more steps than a table has entries.
    """
    total = schedule.steps
    last = total if used is None else used
    if pick("spacing", spacing, ("trailing", "leading", "linspace", "karras", "lcm")) == "trailing":
        check_steps(schedule, steps, last)
        times = last - torch.arange(steps, dtype=torch.float64) * (last / steps)
        times = (times.round() if schedule.discrete else times) / total
    else:
        times = published_times(schedule, steps, spacing, last, offset, drop_last, fractional)
    return torch.cat([times, times.new_tensor([0.0 if final == "clean" else 1 / total])])


def check_steps(schedule: Schedule, steps: int, most: int) -> None:
    """Raise a `UserError` for less than one step, and for more than a table has entries."""
    if steps < 1 or (schedule.discrete and steps > most):
        raise UserError(f"steps must lie between 1 and {most}, not {steps}")


def published_times(
    schedule: Schedule,
    steps: int,
    spacing: Spacing,
    last: int,
    offset: int,
    drop_last: bool,
    fractional: bool,
) -> Tensor:
    """The N falling times (N,) of a spacing over the indices 0 .. last - 1 of a table, index i being t = (i + 1) / T.

    spacing: `leading` is the multiples of T // N; `linspace` has both ends; `karras` has the ends of linspace and
      spaces sigma / alpha between them by EDM's Eq. 5 with rho = 7; `lcm` is N of 50 trailing ones, evenly, rounded up
      (Luo et al. 2023, as diffusers has it).
    offset: added to the indices of `leading` (Stable Diffusion 1: 1).
    drop_last: leading and linspace lay out N + 1 indices and drop the lowest (as published for DPM-Solver++ and UniPC).
    fractional: linspace only: do not round the indices to those of a discrete schedule.
    """
    points = steps + (drop_last and spacing != "karras")
    check_steps(schedule, steps, LCM_STEPS if spacing == "lcm" else last + steps - points)
    if spacing == "lcm":
        skipped = (torch.arange(steps, dtype=torch.float64) * (LCM_STEPS / steps)).floor()
        index = (LCM_STEPS - skipped) * (last // LCM_STEPS) - 1
    elif spacing == "leading":
        index = (last // points) * torch.arange(points - 1, -1, -1, dtype=torch.float64) + offset
    else:
        index = torch.linspace(last - 1, 0, points, dtype=torch.float64)
    if schedule.discrete and not (fractional and spacing == "linspace"):
        index = index.round()  # published networks were trained at whole indices only
    times = ((index + 1) / schedule.steps).clamp(0, 1)[:steps]
    if spacing == "karras":
        from diptych.diffusion.sigmas import times_on_curve

        return times_on_curve(schedule, times[[0, -1]], steps, "karras")
    return times


@dataclass(frozen=True, kw_only=True)
class TimesConfig(Config):
    """The spacing of the times of sampling: see `timesteps`."""

    spacing: Literal["trailing", "leading", "linspace", "karras", "published"] = "trailing"
    """As in `timesteps`; published: as each sampler was published for Stable Diffusion, leading for DDIM and DDPM and
    linspace for the others."""
    offset: int = 0
    """Added to the indices of leading (Stable Diffusion: 1)."""
    final: Literal["clean", "first"] = "clean"
    """Where DDIM ends."""
    final_sigma: Literal["zero", "least"] = "zero"
    """Where the others end, those of `ENDS_AT_ZERO` aside: at t = 0, or at the least noise of a table."""
    sigmas: Literal["own", "karras", "exponential", "beta", "lu"] = "own"
    """The curve along which sigma / alpha falls between the first and the last time, for samplers that were published
    with it (see `diptych.diffusion.sigmas`); own: that of the times themselves."""
    sigma_min: float | None = None
    """Lower end of that curve, sigma / alpha; that of the times if none."""
    sigma_max: float | None = None
    """Upper end of that curve, likewise."""
    lambda_min: float | None = None
    """Least log(alpha / sigma) at which the DPM solvers start, on a table (DPM-Solver's own code: -5.1 for cosine)."""

    def check(self) -> None:
        self.require(0 <= self.offset <= 1, "offset", "be 0 or 1")
        low, high = self.sigma_min, self.sigma_max
        self.require(low is None or low > 0, "sigma_min", "be positive, or none")
        self.require(high is None or high > (low or 0), "sigma_max", "be larger than sigma_min and 0, or none")

    def of_type(self, schedule_type: str | None) -> TimesConfig:
        """The same with times of this type, if any: a curve of sigmas, or how the times themselves are laid out.

        Raises `UserError` for an unknown type.
        """
        if schedule_type is None:
            return self
        kind: Any = pick("schedule type", str(schedule_type), SCHEDULE_TYPES)
        if kind not in get_args(Curve):
            return replace(self, spacing=kind, sigmas="own")
        return replace(self, sigmas=kind, spacing="published" if self.spacing == "karras" else self.spacing)

    def times(self, schedule: Schedule, steps: int, sampler: str, schedule_type: str | None = None) -> Tensor:
        """The times (N + 1,) of a sampler by its name, as `timesteps` gives them.

        schedule_type: one of `SCHEDULE_TYPES` in the place of the config's; it then applies to every sampler.
        """
        layout, config = LAYOUTS[sampler], self.of_type(schedule_type)
        spacing = config.spacing_of(sampler)
        if sampler == "lcm" and schedule_type is None and spacing != "trailing":
            spacing = "lcm"  # the times over which published ones are distilled, whatever the model's own are
        first = config.final == "first" or (spacing == "leading" and schedule.steps // max(steps, 1) <= config.offset)
        clean = not first if sampler == "ddim" else config.final_sigma == "zero" or sampler in ENDS_AT_ZERO
        curved = self._curve(sampler, schedule_type) is not None
        times = timesteps(
            schedule,
            steps,
            spacing,
            offset=config.offset,
            drop_last=layout.multistep,
            final="clean" if clean else "first",
            fractional=layout.fractional,
            used=config._used(schedule) if sampler.startswith("dpm") and not curved else None,
        )
        if not curved:
            return times
        from diptych.diffusion.sigmas import times_on_curve

        whole = layout.multistep or schedule.straight
        ends = times.new_tensor([1.0, 1 / schedule.steps]) if whole else times[[0, -2]]
        curve = times_on_curve(schedule, ends, steps, config.sigmas, config.sigma_min, config.sigma_max)
        return torch.cat([curve, times[-1:]])

    def plan(self, schedule: Schedule, steps: int, sampler: str, schedule_type: str | None = None) -> SamplingPlan:
        """The times of a sampler, the deviation of the initial noise, and the schedule with the rounding of its times.

        Raises `UserError` for an unknown schedule type, and for more steps than a table has entries.
        """
        times = self.times(schedule, steps, sampler, schedule_type)
        sigma = self.init_noise_sigma(schedule, times, sampler, schedule_type)
        return SamplingPlan(times, sigma, schedule.with_rounding(self.rounding(sampler, schedule_type)))

    def init_noise_sigma(
        self, schedule: Schedule, times: Tensor, sampler: str, schedule_type: str | None = None
    ) -> float:
        """Deviation of the initial noise.

        1, but for the Euler samplers and Heun where the times start at the table's end: as published they start from
        sigma / alpha times unit noise without signal, which is sigma times unit noise here.
        """
        if not LAYOUTS[sampler].fractional or self.of_type(schedule_type).spacing_of(sampler) == "leading":
            return 1.0
        return float(schedule.alpha_sigma(times[:1])[1])

    def rounding(self, sampler: str, schedule_type: str | None = None) -> Rounding:
        """How the network's time is rounded between two entries of a table: multistep solvers on a sigma curve were
        published with whole numbers."""
        curve = self._curve(sampler, schedule_type)
        if curve is None or not LAYOUTS[sampler].multistep:
            return "exact"
        return "nearest" if curve in ("karras", "lu") else "below"

    def _curve(self, sampler: str, schedule_type: str | None) -> Curve | None:
        """The sigma curve of a sampler: by `schedule_type`, or the config's if the sampler was published with it."""
        curve = self.of_type(schedule_type).sigmas
        follows = curve in LAYOUTS[sampler].curves or schedule_type is not None
        return curve if curve != "own" and follows else None

    def spacing_of(self, sampler: str) -> Spacing:
        """The spacing for a sampler."""
        return LAYOUTS[sampler].spacing if self.spacing == "published" else self.spacing

    def _used(self, schedule: Schedule) -> int | None:
        """How many entries of a table lie above `lambda_min`."""
        if self.lambda_min is None or not schedule.discrete:
            return None
        every = torch.arange(1, schedule.steps + 1, dtype=torch.float64) / schedule.steps
        left = int((schedule.log_snr(every) / 2 >= self.lambda_min).sum())
        if left < 2:
            raise UserError(f"lambda_min {self.lambda_min:g} leaves no times to sample at")
        return left
