"""What `generate` is asked for, read and checked once, and the metadata that records it.

Each kind of model has a request: `LatentRequest` here, those of pixel models and cascades in `pixel_request.py`, that
of autoregressive models with them. `read` makes one from the user's options, or raises a `UserError`; `result` puts the
images and their metadata together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from diptych.core.checks import initial
from diptych.core.errors import UserError, warn
from diptych.core.values import LONGEST_SIDE, integers, short_repr, texts
from diptych.encoders.base import PromptOptions
from diptych.models.options import LatentOptions, read_options
from diptych.models.result import Result
from diptych.models.sampling import SamplingSettings, read_settings
from diptych.weights.identity import identity

if TYPE_CHECKING:
    from diptych.diffusion.steps import Callback
    from diptych.models.guides import Guides
    from diptych.models.init_image import InitImage
    from diptych.models.latent_diffusion import LatentDiffusion
    from diptych.networks.tiling import Tiling

IMAGE_OPTIONS = ("image", "mask", "strength", "paste", "fit", "low_res")
"""Options of `generate` that concern an image to start from."""


@dataclass(frozen=True)
class Request:
    """Which images are wanted: one prompt, one negative prompt ("" for none) and one seed for each."""

    prompts: list[str]
    negatives: list[str]
    seeds: list[int]
    reading: PromptOptions = PromptOptions()
    """Whether words have weights, and what to do with a prompt that is too long."""
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By prompt, once they are encoded: words that the encoder cannot read, what was cut."""
    given: Mapping[str, Any] = field(default_factory=dict)
    """Images and noise as the user gave them, by their name in the metadata."""
    guides: Guides = ()
    callback: Callback | None = None

    @classmethod
    def of(cls, prompts: Any, values: Mapping[str, Any], empty: bool = False, **fields: Any) -> Any:
        """The prompts, negative prompts and seeds of the options `values`, and more fields of the class.

        Seeds are 0, 1, ... where none are given. `empty` allows empty prompts, where an image says what to generate. A
        negative prompt of spaces is an empty one.
        """
        prompts, negative, seeds = texts("prompts", prompts), values.get("negative"), values.get("seeds")
        negatives = [""] * len(prompts) if negative is None else texts("negative", negative)
        if isinstance(negative, str):
            negatives = [negative] * len(prompts)
        seeds = integers("seeds", range(len(prompts)) if seeds is None else seeds)
        if not prompts or not (empty or all(prompt.strip() for prompt in prompts)):
            raise UserError("a prompt is empty: say what the image should show")
        prompts = [prompt if prompt.strip() else "" for prompt in prompts]
        if len(prompts) == 1 and len(seeds) > 1:  # several images of one prompt
            prompts, negatives = prompts * len(seeds), negatives * len(seeds) if len(negatives) == 1 else negatives
        if len(seeds) != len(prompts):
            raise UserError(f"give one seed for each prompt: {len(prompts)} prompts, {len(seeds)} seeds")
        if any(not 0 <= seed < 2**63 for seed in seeds):
            raise UserError("a seed is a whole number from 0 to 2^63 - 1")
        if len(negatives) != len(prompts):
            raise UserError(f"give one negative prompt for all or one for each of the {len(prompts)} prompts")
        given = {"image": "image", "mask": "mask", "low": "low_res", "noise": "noise"}
        return cls(
            prompts,
            [negative if negative.strip() else "" for negative in negatives],
            seeds,
            PromptOptions(bool(values.get("prompt_weights")), values.get("long_prompts") or "refuse"),
            given={key: values[name] for key, name in given.items() if values.get(name) is not None},
            guides=tuple(values.get("guides") or ()),
            callback=values.get("callback"),
            **fields,
        )

    def __len__(self) -> int:
        return len(self.prompts)

    def warn_if_unguided(self, *guidance: float) -> None:
        """Warn of negative prompts where no stage guides: a weight of 1 computes the half with the prompt alone."""
        if any(self.negatives) and all(weight == 1 for weight in guidance):
            warn("the negative prompt has no effect: this generates without guidance (its weight is 1)")

    def metadata(self, model: Mapping[str, Any], settings: Mapping[str, Any]) -> list[dict[str, Any]]:
        """All that makes each image again: what it was asked for, the settings of all, and which model it was."""
        common = {**settings, **self.reading.metadata(), **({"model": model} if model else {})}
        if self.guides:
            from diptych.models.guides import guides_metadata

            common |= guides_metadata(self.guides)
        given = {}
        if self.given:
            from diptych.models.given_files import given_metadata

            given = {key: given_metadata(value, len(self)) for key, value in self.given.items()}
        rows = []
        for i, (prompt, negative, seed) in enumerate(zip(self.prompts, self.negatives, self.seeds, strict=True)):
            row = {"prompt": prompt, "negative": negative or None, "seed": seed, **common}
            row |= {key: each[i] for key, each in given.items()}
            notes = {"prompt": self.notes.get(prompt), "negative": self.notes.get(negative) if negative else None}
            notes = {key: note for key, note in notes.items() if note}
            rows.append(row | ({"notes": notes} if notes else {}))
        return rows


@dataclass(frozen=True, kw_only=True)
class LatentRequest(Request):
    """What `LatentDiffusion.generate` is asked for."""

    sampling: SamplingSettings
    size: list[int]
    """Width and height in pixels."""
    init_image: InitImage | None
    low_res: Tensor | None
    """(B, 3, h, w) in [-1, 1], of a model that enlarges."""
    fit: str | None
    """How low-resolution images of another shape were fitted."""
    noise: Tensor | None
    """(B, C, h, w), of unit deviation."""
    tile: int | None
    tiling: Tiling | None
    decoder: Any
    """As the user gave it; none for the autoencoder's own."""

    @classmethod
    def read(cls, model: LatentDiffusion, prompts: Any, options: Mapping[str, Any]) -> LatentRequest:
        """From what the user gave."""
        values, config, factor = read_options(LatentOptions, options), model.config, model.config.autoencoder.factor
        request = Request.of(prompts, values, empty=values["image"] is not None or values["low_res"] is not None)
        settings = read_settings(config, values)
        request.warn_if_unguided(settings.guidance)
        size = read_size((config.size, config.size) if values["size"] is None else values["size"], config.multiple)
        init_image = low_res = fit = tiling = None
        if config.concat_condition is not None or any(is_given(values[name]) for name in IMAGE_OPTIONS):
            from diptych.models.init_image import read_init_image, read_latent_low_res

            low_res, fit = read_latent_low_res(config, len(request), values)
            if low_res is None:
                init_image = read_init_image(config, len(request), settings.steps, values, factor)
        if low_res is not None:
            size = [side * (config.low_factor or 1) for side in reversed(low_res.shape[-2:])]
        elif init_image is not None:
            size = init_image.size
        else:
            from diptych.models.size_warning import warn_of_size

            warn_of_size(size, config.size)
        if (tile := values["tile"]) is not None:
            from diptych.networks.tiling import Tiling

            tiling = Tiling.of_pixels(tile, factor)
        shape = (config.autoencoder.latent_channels, size[1] // factor, size[0] // factor)
        return cls(
            **vars(request),
            sampling=settings,
            size=size,
            init_image=init_image,
            low_res=low_res,
            fit=fit,
            noise=None if values["noise"] is None else initial(values["noise"], (len(request), *shape)),
            tile=tile,
            tiling=tiling,
            decoder=values["decoder"],
        )

    def result(
        self, model: LatentDiffusion, images: list[Image.Image], cost: Mapping[str, Any], decoder: Any
    ) -> Result:
        """The images that a model has made at this cost, decoded by `decoder`, with their metadata."""
        settings = {**self.sampling.metadata(), "size": self.size, **cost}
        settings |= {} if self.fit is None else {"fit": self.fit}
        settings |= {} if self.tile is None else {"tile": self.tile}
        settings |= {} if self.init_image is None else self.init_image.metadata()
        if self.decoder is not None:
            from diptych.weights.fingerprint import fingerprint

            source = {"source": str(self.decoder)} if isinstance(self.decoder, (str, Path)) else {}
            settings["decoder"] = {**source, "fingerprint": fingerprint(decoder)}
        if model.adapters:
            from diptych.weights.lora_hash import named_lora

            settings["lora"] = [{**named_lora(name), "scale": scale} for name, scale in model.adapters.items()]
        return Result(images, self.metadata(identity(model, "latent"), settings))


def is_given(value: Any) -> bool:
    """Whether an option was given: it is neither none nor false."""
    return value is not None and value is not False


def read_size(size: Sequence[int], multiple: int) -> list[int]:
    """Width and height in pixels, multiples of what the networks can halve."""
    sides = integers("size", size)
    if len(sides) != 2 or any(not 1 <= side <= LONGEST_SIDE or side % multiple for side in sides):
        raise UserError(
            f"size is width and height, both multiples of {multiple} up to {LONGEST_SIDE}, not {short_repr(sides)}"
        )
    return sides
