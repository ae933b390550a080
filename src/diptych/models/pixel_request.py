"""What `PixelDiffusion.generate` and `Cascade.generate` are asked for, read and checked once, as in `request.py`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from diptych.core.checks import initial
from diptych.core.errors import UserError
from diptych.core.values import short_repr
from diptych.diffusion.thresholding import ThresholdConfig
from diptych.models.init_image import Canvas, InitImage, read_init_image, read_low_res
from diptych.models.options import CascadeOptions, PixelOptions, StageOptions, read_options
from diptych.models.pixel_config import PixelDiffusionConfig
from diptych.models.request import Request, read_size
from diptych.models.result import Result
from diptych.models.sampling import SamplingSettings, read_settings, steps_taken
from diptych.models.size_warning import warn_of_size
from diptych.weights.identity import identity

if TYPE_CHECKING:
    from diptych.diffusion.steps import Callback
    from diptych.models.cascade import Cascade
    from diptych.models.pixel_diffusion import PixelDiffusion


@dataclass(frozen=True, kw_only=True)
class PixelRequest(Request):
    """What `PixelDiffusion.generate` is asked for."""

    sampling: SamplingSettings
    size: list[int]
    """Width and height in pixels."""
    init_image: InitImage | None
    low_res: Tensor | None
    """(B, 3, h, w) in [-1, 1], of a super-resolution model."""
    fit: str | None
    """How low-resolution images of another shape were fitted."""
    noise: Tensor | None
    """(B, 3, H, W), of unit deviation."""

    @classmethod
    def read(cls, config: PixelDiffusionConfig, prompts: Any, options: Mapping[str, Any]) -> PixelRequest:
        """From what the user gave."""
        values = read_options(PixelOptions, options)
        if values["augmentation"] and (config.low_size is None or config.augmentation.kind == "none"):
            raise UserError("augmentation has no effect on this stage, which was trained without it: leave it out")
        empty = values["image"] is not None or (values["low_res"] is not None and config.text is None)
        request = Request.of(prompts, values, empty)
        settings = read_pixel_settings(config, values)
        request.warn_if_unguided(settings.guidance)
        init_image = read_pixel_image([config], len(request), settings.steps, values)
        low_res, fit = read_pixel_low_res([config], len(request), values)
        if init_image is not None:
            size = init_image.size
        elif low_res is None:
            size = read_size((config.size,) * 2 if values["size"] is None else values["size"], config.multiple)
            warn_of_size(size, config.size)
        elif values["size"] is None:
            size = [side * config.factor for side in reversed(low_res.shape[-2:])]
        else:
            raise UserError("size follows from the low-resolution image: leave it out")
        noise = values["noise"]
        return cls(
            **vars(request),
            sampling=settings,
            size=size,
            init_image=init_image,
            low_res=low_res,
            fit=fit,
            noise=None if noise is None else initial(noise, (len(request), 3, size[1], size[0])),
        )

    def result(self, model: PixelDiffusion, images: list[Image.Image], cost: Mapping[str, Any]) -> Result:
        """The images that a model has made at this cost, with their metadata."""
        settings = {**self.sampling.metadata(), "size": self.size, **cost}
        settings |= {} if self.init_image is None else self.init_image.metadata()
        settings |= {} if self.fit is None else {"fit": self.fit}
        return Result(images, self.metadata(identity(model, "stage"), settings))


@dataclass(frozen=True, kw_only=True)
class CascadeRequest(Request):
    """What `Cascade.generate` is asked for."""

    stages: range
    """Numbers of the stages that run, from 0."""
    sampling: dict[int, SamplingSettings]
    """Of each of them."""
    size: list[int]
    """Width and height of the first one's images, in pixels."""
    init_image: InitImage | None
    """At the size of the last one's images."""
    init_images: dict[int, InitImage]
    """What each stage starts from, at its own size: the first from all of it, the others from what a mask leaves."""
    low_res: Tensor | None
    """(B, 3, h, w) in [-1, 1], in the place of the stages before."""
    fit: str | None
    """How low-resolution images of another shape were fitted."""
    noise: Tensor | None
    """(B, 3, H, W) of the first stage, of unit deviation."""
    keep_stages: bool
    one_at_a_time: bool

    @classmethod
    def read(cls, model: Cascade, prompts: Any, options: Mapping[str, Any]) -> CascadeRequest:
        """From what the user gave."""
        values, configs = read_options(CascadeOptions, options), model.configs
        if values["one_at_a_time"] and not model.folders:
            raise UserError("stages that lie in no folder cannot be opened one at a time: save and load the cascade")
        request = Request.of(prompts, values, empty=not (values["image"] is None and values["low_res"] is None))
        stages = read_stages(configs, values)
        each = {name: one_each(name, values[name], stages, len(configs)) for name in StageOptions.__annotations__}
        sampling = {n: read_pixel_settings(configs[n], {name: each[name][n] for name in each}) for n in stages}
        request.warn_if_unguided(*(one.guidance for one in sampling.values()))
        running = configs[stages.start : stages.stop]
        low_res, fit = read_pixel_low_res(running, len(request), values)
        init_image = read_pixel_image(running, len(request), sampling[stages.start].steps, values)
        init_images = {} if init_image is None else stage_images(configs, stages, init_image)
        size = [running[0].size, running[0].size]
        if low_res is not None:
            size = [side * running[0].factor for side in reversed(low_res.shape[-2:])]
        elif init_images:
            size = init_images[stages.start].size
        noise = values["noise"]
        return cls(
            **vars(request),
            stages=stages,
            sampling=sampling,
            size=size,
            init_image=init_image,
            init_images=init_images,
            low_res=low_res,
            fit=fit,
            noise=None if noise is None else initial(noise, (len(request), 3, size[1], size[0])),
            keep_stages=values["keep_stages"],
            one_at_a_time=values["one_at_a_time"],
        )

    @property
    def callbacks(self) -> Iterator[Callback | None]:
        """The callback of each stage, which counts the steps of all."""
        strengths = {number: one.strength for number, one in self.init_images.items()}
        steps = [steps_taken(self.sampling[n].steps, strengths.get(n, 1.0)) for n in self.stages]
        for done, total in zip(itertools.accumulate([0, *steps[:-1]]), itertools.repeat(sum(steps)), strict=False):
            yield None if self.callback is None else shifted(self.callback, done, total)

    def result(self, model: Cascade, images: list[list[Image.Image]], costs: Iterable[Mapping[str, Any]]) -> Result:
        """The images that each stage has made, at these costs, with their metadata."""
        rows = [
            {"stage": model.configs[n].name, **self.sampling[n].metadata(), **cost}
            for n, cost in zip(self.stages, costs, strict=True)
        ]
        settings: dict[str, Any] = {"stages": rows, "size": list(images[-1][0].size)}
        settings |= {} if self.init_image is None else self.init_image.metadata()
        settings |= {} if self.low_res is None else {"start": self.stages.start}
        settings |= {} if self.fit is None else {"fit": self.fit}
        settings |= {} if self.stages.stop == len(model.configs) else {"stop": self.stages.stop}
        rows = self.metadata(identity(model, "cascade"), settings)
        return Result(images[-1], rows, images if self.keep_stages else [])


def read_pixel_settings(config: PixelDiffusionConfig, given: Mapping[str, Any]) -> SamplingSettings:
    """As `read_settings`, with threshold and noise conditioning augmentation."""
    threshold, level = given.get("threshold"), given.get("augmentation")
    level = config.augmentation.level if level is None else level
    if config.augmentation.kind == "none":
        level = 0.0  # as it was trained
    return replace(
        read_settings(config, given),
        threshold=config.threshold if threshold is None else ThresholdConfig.parse(threshold),
        augmentation=None if config.low_size is None else level,
    )


def read_pixel_image(
    configs: Sequence[PixelDiffusionConfig], count: int, steps: int, given: Mapping[str, Any]
) -> InitImage | None:
    """The init image of stages that follow one another, at the size of the last, or none. steps: of the first."""
    if given["image"] is not None and configs[0].low_size is not None:
        raise UserError(
            f"stage {configs[0].name} enlarges an image and starts from no other: give it as --low-res (low_res=), not "
            "as image"
        )
    unit = grown = 1
    for config in reversed(configs):
        unit, grown = math.lcm(unit, config.multiple * grown), grown * config.factor
    canvas = Canvas(configs[-1].size, unit, configs[0].masks is not None and configs[0].low_size is None)
    return read_init_image(canvas, count, steps, given if given["low_res"] is None else {**given, "fit": None})


def read_pixel_low_res(
    configs: Sequence[PixelDiffusionConfig], count: int, given: Mapping[str, Any]
) -> tuple[Tensor | None, str | None]:
    """The low-resolution images (count, 3, h, w) of the first of stages that follow one another, and how they were
    fitted; each of the stages must be able to halve what comes to it. None for a base stage."""
    first, low_res = configs[0], given["low_res"]
    if first.low_size is None:
        if low_res is not None:
            raise UserError("this is a base stage, which starts from noise: leave the low-resolution image out")
        return None, None
    if low_res is None:
        raise UserError(
            f"this stage makes {first.low_size}-px images into {first.size}-px ones: "
            "give it the image to enlarge as --low-res (low_res=)"
        )
    unit = grown = 1
    for config in configs:
        unit, grown = math.lcm(unit, config.unit // math.gcd(config.unit, grown)), grown * config.factor
    return read_low_res(low_res, count, first.low_size, unit, given["fit"])


def read_stages(configs: Sequence[PixelDiffusionConfig], given: Mapping[str, Any]) -> range:
    """The stages of a cascade that run."""
    low_res, start, stop = given["low_res"], given["start"], given["stop"]
    count, base = len(configs), configs[0].low_size is None
    if low_res is None and not base:
        raise UserError("this cascade has no base stage: give it a low-resolution image")
    if low_res is None and start is not None:
        raise UserError("start goes with a low-resolution image: give one, or leave start out")
    least = 0 if low_res is None or not base else 1  # a base stage enlarges nothing
    if least == count:
        raise UserError("this cascade has no stage that enlarges: leave the low-resolution image out")
    first, last = least if start is None else start, count if stop is None else stop
    if not least <= first < count:
        raise UserError(f"start must be the number of a stage that enlarges, {least} to {count - 1}, not {first}")
    if not first < last <= count:
        raise UserError(f"stop must be a number of stages, {first + 1} to {count}, not {last}")
    return range(first, last)


def one_each(name: str, value: Any, numbers: range, count: int) -> dict[int, Any]:
    """One value for all of a cascade's `count` stages, or a list with one for each (of those that run, or of all), by
    the number of the stage that runs.
    """
    values = list(value) if isinstance(value, (list, tuple)) else [value] * count
    if len(values) == count:
        values = [values[number] for number in numbers]
    if len(values) != len(numbers):
        raise UserError(f"{name}: give one value for all stages, or a list of {len(numbers)}, not {short_repr(value)}")
    return dict(zip(numbers, values, strict=True))


def stage_images(configs: Sequence[PixelDiffusionConfig], stages: range, init_image: InitImage) -> dict[int, InitImage]:
    """The init image of each stage, at its own size: the first starts from all of it, the others change what is within
    the mask, from noise alone."""
    images, factor = {}, 1
    for number in reversed(stages):
        if number == stages.start:
            images[number] = init_image.downsample(factor, init_image.strength)
        elif init_image.mask is not None:
            images[number] = init_image.downsample(factor, 1.0)
        factor *= configs[number].factor
    return images


def shifted(callback: Callback, done: int, total: int) -> Callback:
    """The callback of one stage of several, of whose `total` steps so many are done."""
    return lambda step, steps, x0: callback(done + step, total, x0)
