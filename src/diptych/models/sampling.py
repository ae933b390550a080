"""Sampling with a denoiser: what latent and pixel models share between preparing an input and decoding."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch import Tensor

from diptych.core.checks import remedy
from diptych.core.option_fields import options_of
from diptych.diffusion.denoiser import Cond, Denoiser, Denoising
from diptych.diffusion.guidance import ClassifierFreeGuidance
from diptych.diffusion.samplers import SAMPLERS, SamplerChoice, read_sampler
from diptych.diffusion.schedules import ScheduleConfig
from diptych.diffusion.steps import Callback, NoiseSource
from diptych.diffusion.times import TimesConfig
from diptych.models.options import KNOBS, PixelSamplingOptions

if TYPE_CHECKING:
    from diptych.diffusion.thresholding import ThresholdConfig

SAMPLER_OPTIONS = tuple(name for name, one in options_of(PixelSamplingOptions).items() if one.group == KNOBS)
"""eta, s_churn, ...: those that only some samplers take."""


class SampledConfig(SamplerChoice, Protocol):
    """The fields of a diffusion model's config about sampling."""

    @property
    def steps(self) -> int: ...
    @property
    def guidance(self) -> float: ...
    @property
    def guidable(self) -> bool: ...
    @property
    def schedule(self) -> ScheduleConfig: ...
    @property
    def times(self) -> TimesConfig: ...


@dataclass(frozen=True, kw_only=True)
class SamplingSettings:
    """How one diffusion model is sampled."""

    steps: int
    guidance: float
    """CFG scale; 1 for a model without a condition, or without one to guide away from."""
    sampler: str
    sampler_options: dict[str, float] = field(default_factory=dict)
    """Options of the sampler that are not its defaults: eta, s_churn, ..."""
    schedule_type: str | None = None
    """Spacing of the sampling times, where it is not the model's own."""
    interval: tuple[float, float] = (0.0, 1.0)
    """Times between which guidance is applied."""
    cache_interval: int = 1
    """All of the network runs in every so many-th call; 1 is always."""
    threshold: ThresholdConfig | None = None
    """Threshold on the estimates; none for latents."""
    augmentation: float | None = None
    """Noise conditioning augmentation of the low-resolution image; none for a model without one."""

    def metadata(self) -> dict[str, Any]:
        """The settings as entries of an image's metadata."""
        row: dict[str, Any] = {"steps": self.steps, "guidance": self.guidance, "sampler": self.sampler}
        row |= {} if self.threshold is None else {"threshold": str(self.threshold)}
        row |= {} if self.schedule_type is None else {"schedule_type": self.schedule_type}
        row |= {} if self.interval == (0, 1) else {"guidance_interval": "{}:{}".format(*self.interval)}
        row |= {} if self.cache_interval == 1 else {"cache_interval": self.cache_interval}
        row |= {} if self.augmentation is None else {"augmentation": self.augmentation}
        return row | self.sampler_options


def read_settings(config: SampledConfig, given: Mapping[str, Any]) -> SamplingSettings:
    """The options of `generate` about sampling, the model's own where none are given; a `UserError` names what does
    not fit the model. Options that have no effect on it are checked and left out.
    """
    options = options_of(PixelSamplingOptions)

    def value(name: str) -> Any:
        return options[name].read(getattr(config, name) if given.get(name) is None else given[name])

    steps, guidance = value("steps"), value("guidance")
    sampler, schedule_type = read_sampler(given.get("sampler"), config), given.get("schedule_type")
    config.times.plan(config.schedule.build(), steps, sampler, schedule_type)  # or an error
    interval = given.get("guidance_interval") or ":".join(map(str, getattr(config, "interval", (0.0, 1.0))))
    low, high = map(float, options["guidance_interval"].read(interval).split(":"))
    knobs = {name: given[name] for name in SAMPLER_OPTIONS if given.get(name) is not None}
    if knobs:
        from diptych.diffusion.sampler_options import read_sampler_options

        knobs = read_sampler_options(sampler, knobs)
    return SamplingSettings(
        steps=steps,
        guidance=guidance if config.guidable else 1.0,
        sampler=sampler,
        sampler_options=knobs,
        schedule_type=None if schedule_type is None else str(schedule_type),
        interval=(low, high),
        cache_interval=given.get("cache_interval") or 1,
    )


def steps_taken(steps: int, strength: float) -> int:
    """How many of the steps are taken from an init image: rounded down, as published."""
    return int(steps * strength)


class InitState(NamedTuple):
    """An init image in the space of the denoiser (SDEdit, or inpainting with a mask)."""

    x0: Tensor
    """(B, C, ...)."""
    mask: Tensor | None
    """Bool, broadcasts to x0, true where to generate; none to change all of it, or where the network reads the mask."""
    strength: float
    """Fraction of the steps, the last ones, that is taken."""
    from_noise: bool
    """Whether sampling starts from noise alone and not from the noised image."""

    def remaining(self, times: Tensor) -> Tensor:
        """Those of the times (N + 1,) that are left."""
        return times[len(times) - 1 - steps_taken(len(times) - 1, self.strength) :]


def sample(
    denoiser: Denoiser,
    times: TimesConfig,
    settings: SamplingSettings,
    cond: Cond,
    uncond: Cond,
    source: NoiseSource,
    *,
    noise: Tensor | None = None,
    init: InitState | None = None,
    guide: Callable[[Denoising], Denoising] | None = None,
    sampler_options: Mapping[str, Any] = MappingProxyType({}),
    name: str = "this model",
    callback: Callback | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """Samples of x_0 (B, ...), and their cost as metadata.

    cond, uncond: conditions with and without the prompt (classifier-free guidance).
    source: the random numbers of each image, from its seed. noise: initial noise (B, ...) in the place of its first.
    init: what sampling starts from if not noise alone.
    guide: adds guidance by gradients to a denoiser.
    sampler_options: the model's own; those of the settings come first.
    name: of the model, for errors. A `UserError` is raised where an estimate or the result is not finite.
    """
    from diptych.core.steady import only_looks_on, steady_weights
    from diptych.diffusion.finite_check import FiniteCheck

    if settings.cache_interval > 1:
        from diptych.networks.feature_cache import with_cache

        denoiser = with_cache(denoiser, settings.cache_interval)
    first = source.draw()  # drawn also where noise is given, so that the sampler draws other numbers
    noise = first if noise is None else noise.to(first.device)
    plan, cost = times.plan(denoiser.schedule, settings.steps, settings.sampler, settings.schedule_type), Cost(denoiser)
    check = FiniteCheck(name, plan.times, remedy(dtype_of(denoiser), settings.guidance))
    guided = ClassifierFreeGuidance(
        denoiser.with_schedule(plan.schedule), cond, uncond, settings.guidance, settings.interval
    )
    guided = check.wrap(guided if guide is None else guide(guided))
    guided = guided if settings.threshold is None else settings.threshold.wrap(guided)
    options = {**sampler_options, **settings.sampler_options}
    function = partial(SAMPLERS[settings.sampler], schedule=denoiser.schedule, noise=source, callback=callback)
    sampler = check.wrap_sampler(partial(function, **options))
    x = plan.init_noise_sigma * noise
    with steady_weights(guide is None and only_looks_on(callback)):
        if init is None:
            x0 = sampler(guided, x, plan.times)
        else:
            from diptych.diffusion.inpainting import sample_from_image

            start = x if init.from_noise else None
            remaining, add_noise = init.remaining(plan.times), denoiser.add_noise
            x0 = sample_from_image(sampler, guided, init.x0, noise, remaining, add_noise, mask=init.mask, start=start)
    return x0, cost.metadata(len(noise))


def dtype_of(denoiser: Denoiser) -> torch.dtype:
    """The type of the network's weights."""
    network = denoiser.network
    return next(network.parameters()).dtype if isinstance(network, torch.nn.Module) else torch.float32


class Cost:
    """Network calls since its construction."""

    def __init__(self, denoiser: Denoising) -> None:
        self.denoiser = denoiser
        self.before = denoiser.calls, denoiser.gradients

    def metadata(self, images: int) -> dict[str, Any]:
        """The share of one of the images: `calls` of the network, `gradients` of guides (each a forward and a backward
        pass)."""
        counts = self.denoiser.calls - self.before[0], self.denoiser.gradients - self.before[1]
        shares = (-(-count // images) for count in counts)
        return {"cost": dict(zip(("calls", "gradients"), shares, strict=True))}
