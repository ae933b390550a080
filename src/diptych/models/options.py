"""The options of `generate`, each stated once: type, value, help, group, other names, and the models that take it.

The command line, `--help`, refusals, signatures and docs/options.md come from these classes. Nothing here imports
PyTorch, so that the command line answers at once, and types of other modules stand in quotes: the annotations are
values, which `from __future__ import annotations` would turn into texts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict

from diptych.core.errors import UserError
from diptych.core.option_fields import EachStage, Option, options_of
from diptych.core.values import (
    Choice,
    Flag,
    Function,
    ImageFile,
    Integer,
    Interval,
    Number,
    ScaledSource,
    Size,
    Text,
    Value,
)

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image
    from torch import Tensor

    from diptych.diffusion.steps import Callback
    from diptych.diffusion.thresholding import ThresholdConfig
    from diptych.models.guides import Guides
    from diptych.networks.tiny_decoder import TinyDecoder

    ImageInput = Image | str | Path | Tensor | Sequence[Image | str | Path]

SAMPLERS = (
    *("ddpm", "ddpm-fixed-large", "ddim", "euler", "euler-ancestral", "heun", "dpm-2m", "dpm-2m-sde", "dpmpp-1m"),
    *("dpmpp-1m-sde", "dpmpp-2m", "dpmpp-2m-heun", "dpmpp-2m-sde", "dpmpp-2m-sde-heun", "dpmpp-3m"),
    *("unipc", "unipc-bh1", "lcm"),
)
"""The names in `diffusion.samplers.SAMPLERS`."""
SCHEDULE_TYPES = ("karras", "exponential", "beta", "trailing", "leading", "linspace")
"""Those of `diffusion.times`."""
THRESHOLDS = ("none", "static", "dynamic")
"""The kinds of `diffusion.thresholding.ThresholdConfig`."""
FITS = ("crop", "pad", "stretch")
"""Those of `core.images`."""
LONG_PROMPTS = ("refuse", "cut", "chunks")
"""Those of `encoders.base`."""
OWN = "the model's own"
KNOBS, IMAGE = "options of samplers", "from an image"


@dataclass(frozen=True)
class Threshold(Value):
    """A kind of threshold, for the dynamic one with its percentile and cap: `dynamic:0.95:1.5`."""

    metavar = "T"

    def parse(self, text: str) -> str:
        Choice("threshold", THRESHOLDS).parse(text.partition(":")[0])
        return text

    def check(self, value: Any) -> Any:
        return self.parse(value) if isinstance(value, str) else value


class CommonOptions(TypedDict, total=False):
    """What every model takes."""

    seeds: Annotated[
        Sequence[int] | None,
        Option(Value(), "one seed for each prompt: an image depends on no other", unset="0, 1, ...", flags=()),
    ]
    negative: Annotated[
        str | Sequence[str] | None,
        Option(Text(), "negative prompt: what to steer away from", "prompts", also=("negative_prompt",)),
    ]
    prompt_weights: Annotated[
        bool,
        Option(Flag(), "read (word:1.3), (word) and [word] as weights", "prompts", default=False, old=("weights",)),
    ]
    long_prompts: Annotated[
        Literal["refuse", "cut", "chunks"],
        Option(
            Choice("long_prompts", LONG_PROMPTS),
            "what to do with a prompt beyond the text encoder's limit",
            "prompts",
            default="refuse",
            unset="refuse",
            metavar="HOW",
        ),
    ]
    callback: Annotated[
        "Callback | None",
        Option(Function(), "called with (step, steps, estimate of x0) after each step; raise to cancel", flags=()),
    ]


class SizeOptions(TypedDict, total=False):
    """What models of one stage take."""

    size: Annotated[tuple[int, int] | None, Option(Size(), "width and height in pixels", unset="the training size")]


class GuidanceOptions(TypedDict, total=False):
    """Classifier-free guidance of models of one stage."""

    guidance: Annotated[float | None, Option(Number(-1000, 1000), "CFG scale; 1 is off", unset=OWN, metavar="G")]


class SamplingOptions(TypedDict, total=False):
    """How a diffusion model of one stage is sampled."""

    steps: Annotated[int | None, Option(Integer(1, 10_000), "number of sampling steps", unset=OWN)]
    sampler: Annotated[str | None, Option(Choice("sampler", SAMPLERS), "sampler", unset=OWN)]
    schedule_type: Annotated[
        str | None, Option(Choice("schedule type", SCHEDULE_TYPES), "spacing of the sampling times", unset=OWN)
    ]
    guidance_interval: Annotated[
        str | tuple[float, float] | None,
        Option(Interval(), "guide at times within it alone, 0 the image, 1 noise; faster", unset=f"{OWN}, else 0:1"),
    ]
    cache_interval: Annotated[
        int | None,
        Option(
            Integer(1, 1000),
            "run all of the U-Net in every N-th call alone, its outermost blocks in the others (DeepCache); faster, "
            "other images",
            unset="1",
        ),
    ]
    eta: Annotated[
        float | None,
        Option(Number(0, 1), "fresh noise of each step: 0 is none, 1 is DDPM's", KNOBS, unset="the sampler's own"),
    ]
    s_churn: Annotated[
        float | None,
        Option(
            Number(0, 1000),
            "noise added before each step, divided among the steps (Karras et al. 2022, Alg. 2)",
            KNOBS,
            unset="0",
        ),
    ]
    s_tmin: Annotated[
        float | None, Option(Number(0), "least sigma / alpha at which s_churn adds noise", KNOBS, unset="0")
    ]
    s_tmax: Annotated[
        float | None, Option(Number(0), "largest sigma / alpha at which s_churn adds noise", KNOBS, unset="none")
    ]
    s_noise: Annotated[float | None, Option(Number(0, 2), "factor on the deviation of fresh noise", KNOBS, unset="1")]


class PixelSamplingOptions(SamplingOptions, GuidanceOptions, total=False):
    """How a pixel model of one stage is sampled."""

    threshold: Annotated[
        "str | ThresholdConfig | None",
        Option(Threshold(), "none, static, or dynamic[:PERCENTILE[:CAP]], as dynamic:0.95", "pixel models", unset=OWN),
    ]
    augmentation: Annotated[
        float | None,
        Option(
            Number(0, 1),
            "noise conditioning augmentation: level of noise on the low-resolution image, 0 to 1",
            "pixel models",
            unset=OWN,
            metavar="LEVEL",
            also=("augmentation_level",),
            enlarging=True,
        ),
    ]


class DiffusionOptions(TypedDict, total=False):
    """What every diffusion model takes besides."""

    image: Annotated["ImageInput | None", Option(ImageFile(), "start from this image (img2img)", IMAGE)]
    strength: Annotated[
        float | None,
        Option(
            Number(0, 1, above=True),
            "how much of the image may change, above 0 and at most 1",
            IMAGE,
            unset="0.8, or 1 with a mask",
            metavar="S",
            needs=("image",),
        ),
    ]
    mask: Annotated[
        "ImageInput | None",
        Option(ImageFile(), "generate only where this image is white (inpainting)", IMAGE, needs=("image",)),
    ]
    paste: Annotated[
        bool,
        Option(
            Flag(),
            "put the pixels outside the mask back exactly as they were",
            IMAGE,
            default=False,
            needs=("image", "mask"),
        ),
    ]
    fit: Annotated[
        Literal["crop", "pad", "stretch"] | None,
        Option(
            Choice("fit", FITS),
            "how an image of another shape is brought to the size",
            IMAGE,
            unset="crop to the nearest size",
            metavar="HOW",
        ),
    ]
    low_res: Annotated[
        "ImageInput | None",
        Option(
            ImageFile(),
            "low-resolution image to enlarge; in a cascade it replaces the first stages",
            IMAGE,
            old=("low",),
            enlarging=True,
        ),
    ]
    guides: Annotated[
        "Guides",
        Option(
            ScaledSource(),
            "gradient guidance by a classifier, or by judge, a noisy CLIP or a CLIP; several add up",
            "gradient guidance",
            default=(),
            flags=("classifier", "clip"),
            repeated=True,
        ),
    ]
    noise: Annotated[
        "Tensor | None", Option(Value(), "initial noise of unit deviation, in place of the seeds' own", flags=())
    ]


class LatentOptions(CommonOptions, SamplingOptions, GuidanceOptions, SizeOptions, DiffusionOptions, total=False):
    """What `LatentDiffusion.generate` takes."""

    tile: Annotated[
        int | None,
        Option(
            Integer(1),
            "encode and decode in tiles of so many pixels a side, to save memory",
            "latent models",
            unset="whole images",
            metavar="PIXELS",
        ),
    ]
    decoder: Annotated[
        "TinyDecoder | Path | str | None",
        Option(
            Value(),
            "decode by a tiny decoder: tiny for the model's, or a run or model folder of one",
            "latent models",
            unset="the autoencoder",
            metavar="DECODER",
            old=("preview_decoder",),
        ),
    ]


class PixelOptions(CommonOptions, PixelSamplingOptions, SizeOptions, DiffusionOptions, total=False):
    """What `PixelDiffusion.generate` takes."""


EACH = EachStage(PixelSamplingOptions)


class StageOptions(TypedDict, total=False):
    """How the stages of a cascade are sampled: one value for all, or a list with one for each (of those that run, or of
    all), in which None is the stage's own."""

    guidance: Annotated[float | Sequence[float | None] | None, EACH]
    steps: Annotated[int | Sequence[int | None] | None, EACH]
    sampler: Annotated[str | Sequence[str | None] | None, EACH]
    schedule_type: Annotated[str | Sequence[str | None] | None, EACH]
    guidance_interval: Annotated[str | Sequence[str | None] | None, EACH]
    cache_interval: Annotated[int | Sequence[int | None] | None, EACH]
    eta: Annotated[float | Sequence[float | None] | None, EACH]
    s_churn: Annotated[float | Sequence[float | None] | None, EACH]
    s_tmin: Annotated[float | Sequence[float | None] | None, EACH]
    s_tmax: Annotated[float | Sequence[float | None] | None, EACH]
    s_noise: Annotated[float | Sequence[float | None] | None, EACH]
    threshold: Annotated["str | ThresholdConfig | Sequence[str | ThresholdConfig | None] | None", EACH]
    augmentation: Annotated[float | Sequence[float | None] | None, EACH]


class CascadeOptions(CommonOptions, StageOptions, DiffusionOptions, total=False):
    """What `Cascade.generate` takes."""

    start: Annotated[
        int | None,
        Option(
            Integer(0),
            "number of the stage, from 0, that enlarges the low-resolution image",
            "cascades",
            unset="the first that enlarges",
        ),
    ]
    stop: Annotated[int | None, Option(Integer(1), "run the first N stages only", "cascades", unset="all")]
    keep_stages: Annotated[
        bool, Option(Flag(), "keep the images of the earlier stages too", "cascades", default=False, old=("keep",))
    ]
    one_at_a_time: Annotated[bool, Option(Flag(), "hold one stage in memory at a time", "cascades", default=False)]


class AutoregressiveOptions(CommonOptions, GuidanceOptions, SizeOptions, total=False):
    """What `Autoregressive.generate` takes."""

    temperature: Annotated[
        float | None,
        Option(
            Number(0, above=True),
            "divides the logits: below 1 likelier codes, above 1 rarer ones",
            "autoregressive models",
            unset=OWN,
            metavar="T",
        ),
    ]
    top_k: Annotated[
        int | None,
        Option(Integer(1), "sample among the K likeliest codes", "autoregressive models", unset=OWN, metavar="K"),
    ]
    top_p: Annotated[
        float | None,
        Option(
            Number(0, 1, above=True),
            "sample among the likeliest codes that have probability P together",
            "autoregressive models",
            unset=OWN,
            metavar="P",
        ),
    ]


def read_options(kind: type, options_given: Mapping[str, Any]) -> dict[str, Any]:
    """All options of a class above: those that are given, checked, and the defaults of the others.

    An old name counts as the new one. Raises `UserError` for an option that the class has not, one that is given twice,
    and a value that does not fit.
    """
    options = options_of(kind)
    names, names_used = names_of(options), dict[str, str]()
    values = {name: option.default for name, option in options.items()}
    for given_name, value in options_given.items():
        name = names.get(given_name)
        if name is None:
            from diptych.models.option_registry import refusal

            raise refusal(given_name, options)
        if name in names_used:
            raise UserError(f"{names_used[name]} and {given_name} are one option: give one of them")
        names_used[name] = given_name
        if value is not None:
            values[name] = options[name].read(value)
    return values


def names_of(options: Mapping[str, Option]) -> dict[str, str]:
    """Every name that counts as one of these options -> the option's own name."""
    return {other: name for name, option in options.items() for other in (name, *option.also, *option.old)}
