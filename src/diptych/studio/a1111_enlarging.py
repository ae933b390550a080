"""A1111's `extra-single-image`: super-resolution by a model of this server, or by a stage of a cascade."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from PIL import Image

from diptych.studio.a1111_fields import number, text
from diptych.studio.engine import Engine
from diptych.studio.limits import FieldError
from diptych.studio.model_schema import kind_of
from diptych.studio.read_upload import read_upload
from diptych.studio.sent_images import from_base64

FACTOR = 2
"""`upscaling_resize` of a request that has none."""


def factors(model: Any) -> dict[int | None, dict[int, dict[str, int]]]:
    """By the side that images must have (none for any side): by how much a model enlarges them, and the options with
    which it does so. A cascade may end at any of its stages."""
    if kind_of(model) == "cascade":
        return {
            one.low_size: {
                last.size // one.low_size: {"start": start, "stop": stop}
                for stop, last in enumerate(model.configs[start:], start + 1)
            }
            for start, one in enumerate(model.configs)
            if one.low_size
        }
    low = getattr(model, "low_size", None)
    return {} if low is None else {None if kind_of(model) == "latent" else low: {model.size // low: {}}}


def upscalers(engine: Engine) -> list[dict[str, Any]]:
    """The open models that enlarge images, as `/sdapi/v1/upscalers` lists them."""
    rows = []
    for name in engine.pool.loaded():
        if found := factors(engine.pool.open(name)):
            rows.append((name, max(factor for each in found.values() for factor in each)))
    return [
        {"name": name, "model_name": name, "model_path": None, "model_url": None, "scale": scale}
        for name, scale in rows
    ]


def read_enlarging(engine: Engine, body: Mapping[str, Any]) -> tuple[dict[str, Any], Image.Image]:
    """The fields of an `ImageRequest`, and the image to enlarge. Raises a `FieldError`."""
    for key in ("gfpgan_visibility", "codeformer_visibility", "extras_upscaler_2_visibility"):
        if number(body, key):
            raise FieldError(key, f"{key} is not supported here: leave it out")
    image = read_upload("image", from_base64("image", body.get("image")))
    name = text(body, "upscaler_1")
    try:
        name = engine.pool.name_of(None if name in ("", "None") else name)
    except FieldError as error:
        raise FieldError("upscaler_1", str(error)) from None
    found = factors(engine.pool.open(name))
    if not found:
        raise FieldError("upscaler_1", f"the model {name} enlarges no images: name one that does, or a cascade")
    side = min(image.size)
    each = found.get(side, found.get(None))
    if each is None:
        sides = " or ".join(str(one) for one in found)
        raise FieldError("image", f"{name} enlarges images of {sides} pixels a side, and this one has {side}")
    return {"model": name, "prompt": text(body, "prompt"), **each[read_factor(body, image, each, name)]}, image


def read_factor(body: Mapping[str, Any], image: Image.Image, factors: Collection[int], name: str) -> int:
    """By how much to enlarge an image. A `FieldError` where a client asks for another size than a model makes."""
    if number(body, "resize_mode") == 1:
        width, height = (number(body, f"upscaling_resize_{side}") or 512 for side in "wh")
        for factor in factors:
            if (width, height) == (image.width * factor, image.height * factor):
                return factor
        made = " or ".join(f"{image.width * factor} x {image.height * factor}" for factor in factors)
        raise FieldError("upscaling_resize_w", f"{name} makes {made} pixels of this image, and no other size")
    asked = number(body, "upscaling_resize")
    asked = FACTOR if asked is None else asked
    if asked not in factors:
        times = " or ".join(str(factor) for factor in factors)
        raise FieldError("upscaling_resize", f"{name} enlarges this image {times} times: ask for that")
    return int(asked)
