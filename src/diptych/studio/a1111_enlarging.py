"""A1111's `extra-single-image`: super-resolution by a model of this server, or by a stage of a cascade."""

from __future__ import annotations

from collections.abc import Mapping
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


def factors(model: Any) -> dict[int | None, int]:
    """By how much a model enlarges images, by the side that they must have; none for any side."""
    if kind_of(model) == "cascade":
        return {one.low_size: model.configs[-1].size // one.low_size for one in model.configs if one.low_size}
    low = getattr(model, "low_size", None)
    return {} if low is None else {None if kind_of(model) == "latent" else low: model.size // low}


def upscalers(engine: Engine) -> list[dict[str, Any]]:
    """The open models that enlarge images, as `/sdapi/v1/upscalers` lists them."""
    rows = []
    for name in engine.pool.loaded():
        if found := factors(engine.pool.open(name)):
            rows.append((name, max(found.values())))
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
    name = engine.pool.name_of(None if name in ("", "None") else name)
    found = factors(engine.pool.open(name))
    if not found:
        raise FieldError("upscaler_1", f"the model {name} enlarges no images: name one that does, or a cascade")
    side = min(image.size)
    factor = found.get(side, found.get(None))
    if factor is None:
        sides = " or ".join(str(one) for one in found)
        raise FieldError("image", f"{name} enlarges images of {sides} pixels a side, and this one has {side}")
    check_factor(body, image, factor, name)
    fields: dict[str, Any] = {"model": name, "prompt": text(body, "prompt")}
    if len(found) > 1 or kind_of(engine.pool.open(name)) == "cascade":
        configs = engine.pool.open(name).configs
        fields["start"] = next(number for number, one in enumerate(configs) if one.low_size == side)
    return fields, image


def check_factor(body: Mapping[str, Any], image: Image.Image, factor: int, name: str) -> None:
    """Raise a `FieldError` where a client asks for another size than a model makes."""
    if number(body, "resize_mode") == 1:
        asked = [number(body, f"upscaling_resize_{side}") or 512 for side in "wh"]
        if asked != [image.width * factor, image.height * factor]:
            made = f"{image.width * factor} x {image.height * factor}"
            raise FieldError("upscaling_resize_w", f"{name} makes {made} pixels of this image, and no other size")
        return
    asked = number(body, "upscaling_resize")
    if (FACTOR if asked is None else asked) != factor:
        raise FieldError("upscaling_resize", f"{name} enlarges this image {factor} times: ask for that")
