"""A request of OpenAI's images API as the fields of an `ImageRequest`, and how its answer is to look."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from diptych.core.errors import UserError
from diptych.core.values import ImageFile
from diptych.models.option_registry import all_options
from diptych.studio.limits import FieldError

EXTENSIONS = {
    "negative_prompt": "negative",
    "num_inference_steps": "steps",
    "guidance_scale": "guidance",
    "true_cfg_scale": "guidance",
}
"""Fields that other servers of this API know beyond OpenAI's, by our names."""
FORMATS = ("png", "webp", "jpeg")
MOST_PARTIAL = 3
"""Partial images of one image."""
NOT_HERE: dict[str, tuple[Any, ...]] = {
    "background": (None, "auto", "opaque"),
    "output_format": (None, *FORMATS),
    "response_format": (None, "b64_json", "url"),
    "markup": (None,),
    "frame_count": (None,),
    "svg": (None,),
}
"""Fields of OpenAI's, and their values that can be kept. To ignore others would be to promise what is not done; what
is in no list here changes nothing that the answer states, and is ignored."""


@dataclass(frozen=True, kw_only=True)
class ImagesCall:
    """What a client asks for."""

    fields: Mapping[str, Any]
    """Of an `ImageRequest`."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Our name of a field -> the client's, where it is another."""
    as_url: bool = False
    output_format: str = "png"
    compression: int = 100
    stream: bool = False
    partial_images: int = 0

    def named(self, error: FieldError) -> FieldError:
        """An error about one of our fields, about the client's."""
        theirs = self.names.get(error.field, error.field)
        text = str(error)
        if theirs != error.field and text.startswith(f"{error.field} "):
            text = theirs + text[len(error.field) :]
        return FieldError(theirs, text)


def read_call(body: Mapping[str, Any], text: bool = False) -> ImagesCall:
    """From the JSON of a request; `text` for a form, whose values are all text. Raises a `FieldError`."""
    values = {key: value for key, value in body.items() if value is not None and not (text and value == "")}
    for key, allowed in NOT_HERE.items():
        if values.get(key) not in allowed:
            also = [str(one) for one in allowed if one is not None]
            meant = f"{key} must be {' or '.join(also)}" if also else f"{key} is not supported: leave it out"
            raise FieldError(key, meant)
    prompt = values.get("prompt", "")
    if not isinstance(prompt, str):
        raise FieldError("prompt", "prompt must be a text")
    fields: dict[str, Any] = {"prompt": prompt}
    names = {"count": "n"}
    if values.get("model") not in (None, ""):
        fields["model"] = values["model"]
    if "n" in values:
        fields["count"] = whole("n", values["n"], text)
    if values.get("size", "auto") != "auto":
        fields["size"] = read_size(values["size"])
    if "seed" in values:
        fields["seed"] = whole("seed", values["seed"], text)
    for key, value in values.items():
        ours = EXTENSIONS.get(key, key)
        if ours in ("size", *fields) or ours not in all_options() or isinstance(all_options()[ours].value, ImageFile):
            continue
        fields[ours] = option_of_text(key, ours, value) if text else value
        if key != ours:
            names[ours] = key
    return answer_of(values, text, fields, names)


def answer_of(values: Mapping[str, Any], text: bool, fields: dict[str, Any], names: dict[str, str]) -> ImagesCall:
    """How the answer is to look, of the same values."""
    output_format = values.get("output_format", "png")
    as_url = values.get("response_format") == "url"
    if as_url and output_format != "png":
        raise FieldError("response_format", "url leads to the PNG: ask for b64_json to have another output_format")
    compression = whole("output_compression", values.get("output_compression", 100), text)
    partial = whole("partial_images", values.get("partial_images", 0), text)
    if not 0 <= compression <= 100:
        raise FieldError("output_compression", "output_compression must be from 0 to 100")
    if not 0 <= partial <= MOST_PARTIAL:
        raise FieldError("partial_images", f"partial_images must be from 0 to {MOST_PARTIAL}")
    stream = values.get("stream", False)
    stream = {"true": True, "false": False}.get(str(stream).lower()) if text else stream
    if not isinstance(stream, bool):
        raise FieldError("stream", "stream must be true or false")
    return ImagesCall(
        fields=fields,
        names=names,
        as_url=as_url,
        output_format=output_format,
        compression=compression,
        stream=stream,
        partial_images=partial,
    )


def whole(key: str, value: Any, text: bool = False) -> int:
    """A whole number, in a form as text."""
    if text and isinstance(value, str) and re.fullmatch(r"-?[0-9]{1,20}", value.strip()):
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise FieldError(key, f"{key} must be a whole number")
    return value


def read_size(value: Any) -> list[int]:
    """Width and height in "64x32"."""
    sides = re.fullmatch(r"([0-9]{1,5})x([0-9]{1,5})", value.strip()) if isinstance(value, str) else None
    if sides is None:
        raise FieldError("size", "size must be auto, or width and height in pixels, as 64x64")
    return [int(side) for side in sides.groups()]


def option_of_text(key: str, ours: str, value: Any) -> Any:
    """An option in a form, read as on the command line."""
    if not isinstance(value, str):
        raise FieldError(key, f"{key} must be a text")
    option = all_options()[ours]
    if value.lower() in ("true", "false"):
        return value.lower() == "true"
    try:
        return option.value.parse(value)
    except UserError as error:
        raise FieldError(key, str(error)) from None
    except (ValueError, TypeError):
        raise FieldError(key, f"{key} cannot be {value[:80]!r}") from None
