"""What a client asks for, read and checked once, for every API."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diptych.core.errors import UserError
from diptych.core.option_fields import Option
from diptych.core.values import ImageFile, Size, unicode_text
from diptych.encoders.base import PromptOptions
from diptych.encoders.prompt_weights import require_encodable
from diptych.models.option_registry import all_options, takers
from diptych.studio.limits import FieldError, Limits
from diptych.studio.model_pool import ModelPool
from diptych.studio.model_schema import low_sizes, option_class, options_offered, read_request
from diptych.studio.styles import apply_styles

INPUTS = ("image", "mask", "low_res")
"""Images that a request may name."""
RANDOM_SEEDS = 2**32
"""Seeds drawn for clients that name none: short enough to type."""


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """Images of one prompt."""

    model: str
    prompt: str
    negative: str
    seeds: tuple[int, ...]
    """One for each image."""
    options: Mapping[str, Any]
    """Those of `generate` that are given, by their names: steps, guidance, sampler, size, ..."""
    inputs: Mapping[str, Path] = field(default_factory=dict)
    """Files of `INPUTS`."""
    steps: int
    """Of all stages together, as `callback` counts them."""

    @classmethod
    def read(
        cls, pool: ModelPool, limits: Limits, fields: Mapping[str, Any], inputs: Mapping[str, Path] | None = None
    ) -> ImageRequest:
        """From the fields of a request: model, prompt, negative, style, seed, count, and options of `generate`.

        A field of None counts as not given; without a seed a random one is drawn. Opens the model if it is not.

        Raises a `FieldError` that names the field, and a `UserError` where the model cannot be opened.
        """
        values = {name: value for name, value in fields.items() if value is not None}
        inputs = dict(inputs or {})
        name = pool.name_of(values.pop("model", None))
        prompt, negative = (read_text(key, values.pop(key, ""), limits) for key in ("prompt", "negative"))
        if (style := values.pop("style", None)) is not None and prompt:
            prompt, negative = apply_styles(style, pool.styles[name], prompt, negative)
        count = read_integer("count", values.pop("count", 1), 1, limits.count)
        seed = values.pop("seed", secrets.randbelow(RANDOM_SEEDS))
        seed = int(seed) if isinstance(seed, str) and re.fullmatch(r"[0-9]{1,19}", seed) else seed
        seed = read_integer("seed", seed, 0, 2**63 - count)
        model = pool.open(name)
        if not prompt and not inputs:
            raise FieldError("prompt", "a prompt is empty: say what the image should show")
        options = read_given(model, name, values)
        for key in inputs:
            require_taken(model, name, key)
        for key in (*options, *inputs):
            for needed in all_options()[key].needs:
                if needed not in options and needed not in inputs:
                    raise FieldError(key, f"{key} goes with {needed}: give both")
        request = cls(
            model=name,
            prompt=prompt,
            negative=negative,
            seeds=tuple(range(seed, seed + count)),
            options=options,
            inputs=inputs,
            steps=steps_of(model, options),
        )
        limits.check_work(count, request.pixels(model), request.steps)
        check_by_model(model, request)
        return request

    def pixels(self, model: Any) -> int:
        """Of one image, the largest that is made on the way to it."""
        if (size := self.options.get("size")) is not None:
            return size[0] * size[1]
        if "low_res" in self.inputs and "image" not in self.inputs:
            from PIL import Image

            with Image.open(self.inputs["low_res"]) as image:
                low = image.width * image.height
            return round(low * (model.size / min(low_sizes(model))) ** 2)
        if "image" in self.inputs:
            return self.shorter_at(model.size)
        return model.size**2

    def shorter_at(self, side: int) -> int:
        """Pixels of the init image when its shorter side is brought to `side`, as `generate` does."""
        from PIL import Image

        with Image.open(self.inputs["image"]) as image:
            return math.ceil(side**2 * max(image.size) / min(image.size))

    @property
    def batch_key(self) -> tuple[Any, ...]:
        """Images whose requests have this in common may be generated together."""
        options = tuple(sorted((name, repr(value)) for name, value in self.options.items()))
        inputs = tuple(sorted((name, str(path)) for name, path in self.inputs.items()))
        return self.model, options, inputs

    def to_json(self) -> dict[str, Any]:
        """The request as its fields, to be kept and to be made again."""
        fields: dict[str, Any] = {"model": self.model, "prompt": self.prompt, "negative": self.negative}
        fields |= {"seed": exact(self.seeds[0]), "count": len(self.seeds), "options": dict(self.options)}
        return fields | {name: path.stem for name, path in self.inputs.items()}


def exact(number: int) -> int | str:
    """A whole number in JSON; as text above 2^53, where JavaScript would round it."""
    return number if number < 2**53 else str(number)


def read_text(field: str, value: Any, limits: Limits) -> str:
    """A prompt."""
    if not isinstance(value, str):
        raise FieldError(field, f"{field} must be a text")
    limits.check_prompt(field, value)
    try:
        return unicode_text(value)
    except UserError as error:
        raise FieldError(field, str(error)) from None


def read_integer(field: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise FieldError(field, f"{field} must be a whole number from {low} to {high:,}")
    return value


def read_given(model: Any, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The options among the fields of a request, checked; a `FieldError` for what is none, or does not fit."""
    offered = options_offered(model)
    options = {}
    for key, value in values.items():
        if key not in offered:
            require_taken(model, name, key)
            raise FieldError(key, f"{key} cannot be set here")
        try:
            options[key] = read_value(offered[key], value)
        except UserError as error:
            raise FieldError(key, str(error)) from None
    return options


def read_value(option: Option, value: Any) -> Any:
    """An option's value from JSON."""
    value = option.read(value)
    if isinstance(option.value, Size):
        sides = value if isinstance(value, (list, tuple)) else ()
        if len(sides) != 2 or any(isinstance(side, bool) or not isinstance(side, int) for side in sides):
            raise UserError("size is width and height in pixels, as [64, 64]")
        return tuple(sides)
    return value


def require_taken(model: Any, name: str, key: str) -> None:
    """Raise a `FieldError` for an option that a model does not take."""
    option = all_options().get(key)
    if option is None:
        raise FieldError(key, f"there is no field {key[:80]!r}")
    taken = key in option_class(model).__annotations__
    if not taken or (option.enlarging and isinstance(option.value, ImageFile) and not low_sizes(model)):
        raise FieldError(key, f"{key} is for {takers(key)}, and the model {name} is none of them: leave it out")


def steps_of(model: Any, options: Mapping[str, Any]) -> int:
    """The steps of a request, of all stages together; of a model that takes none, 1."""
    given, configs = options.get("steps"), getattr(model, "configs", None)
    if configs is None:
        return given or getattr(model.config, "steps", 1)
    configs = configs[: options.get("stop") or len(configs)]
    each = given if isinstance(given, list) else [given] * len(configs)
    return sum(one or config.steps for one, config in zip(each, configs, strict=False))


def check_by_model(model: Any, request: ImageRequest) -> None:
    """Raise a `FieldError` for what the model itself would refuse, before the request waits in the queue."""
    options = {**request.options, **request.inputs, "negative": request.negative or None, "seeds": [request.seeds[0]]}
    try:
        read = read_request(model, request.prompt, options)
        if (encoder := getattr(model, "text", None)) is not None:
            for field, text in (("prompt", request.prompt), ("negative", request.negative)):
                check_text(field, encoder, text, read.reading)
    except FieldError:
        raise
    except UserError as error:
        raise FieldError(field_of(str(error), {*request.options, *request.inputs}), str(error)) from None


def check_text(field: str, encoder: Any, text: str, reading: PromptOptions) -> None:
    """Raise a `FieldError` for a prompt that an encoder cannot take."""
    try:
        if text:
            require_encodable(encoder, text, reading)
    except UserError as error:
        raise FieldError(field, str(error)) from None


def field_of(message: str, fields: set[str]) -> str:
    """The field that an error of `generate` is about: it names the option first."""
    named = [name for name in (*fields, "size", "prompt", "negative", "seed") if message.startswith(name)]
    return named[0] if named else next((name for name in fields if name in message), "prompt")
