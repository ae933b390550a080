"""A request of A1111's API as the fields of an `ImageRequest` and the images with it.

What a client leaves out is the model's own, not the web UI's default. What cannot be done is refused; what changes
little (`inpainting_fill`, `inpaint_full_res`: the whole image is always used, and the masked part begins as it is) is
named in the answer's `ignored`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from diptych.studio.a1111_names import WITH_ETA, read_sampler
from diptych.studio.limits import FieldError
from diptych.studio.read_upload import read_upload
from diptych.studio.sent_images import from_base64, grey_mask

TEXTS = {"prompt": "prompt", "negative": "negative_prompt"}
"""Texts of a request, our names first."""
NUMBERS = {"steps": "steps", "cfg_scale": "guidance", "s_churn": "s_churn", "s_tmin": "s_tmin", "s_tmax": "s_tmax",
           "s_noise": "s_noise"}  # fmt: skip
"""Numbers of a request, by our names."""
NAMES = {ours: key for key, ours in NUMBERS.items()} | {
    "negative": "negative_prompt",
    "count": "batch_size",
    "sampler": "sampler_name",
    "schedule_type": "scheduler",
    "strength": "denoising_strength",
    "fit": "resize_mode",
    "paste": "mask",
    "image": "init_images",
    "low_res": "image",
    "size": "width",
    "style": "styles",
    "model": "override_settings.sd_model_checkpoint",
}
"""Our names -> the client's, for errors."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "s_churn": (0,),
    "s_tmin": (0,),
    "s_tmax": (0, math.inf),
    "s_noise": (1,),
}
"""Values that are the same as none."""
ONLY: dict[str, tuple[Any, ...]] = {
    "subseed_strength": (None, 0),
    "seed_resize_from_h": (None, 0, -1),
    "seed_resize_from_w": (None, 0, -1),
    "restore_faces": (None, False),
    "tiling": (None, False),
    "enable_hr": (None, False),
    "script_name": (None, ""),
    "initial_noise_multiplier": (None, 1, 0),
    "refiner_checkpoint": (None, "", "None"),
    "firstpass_image": (None, ""),
    "infotext": (None, ""),
}
"""Fields of what is not done here, and the values that ask for nothing."""
EMPTY = ("alwayson_scripts",)
"""Likewise, objects."""
SETTINGS: dict[str, tuple[Any, ...]] = {
    "CLIP_stop_at_last_layers": (None, 0, 1),
    "sd_vae": (None, "", "None", "Automatic"),
    "eta_noise_seed_delta": (None, 0),
}
"""Settings that would change an image, and the values that change nothing. Others are about the web UI itself."""
FITS = ("stretch", "crop", "pad")
"""By `resize_mode`."""
IMAGES = ("init_images", "mask", "mask_image", "latent_mask", "image")
"""Fields that are not echoed."""


@dataclass(frozen=True, kw_only=True)
class WebUICall:
    """What a client asks for."""

    fields: Mapping[str, Any]
    """Of an `ImageRequest`."""
    images: Mapping[str, Image.Image] = field(default_factory=dict)
    """Image, mask or low_res."""
    send_images: bool = True
    batch_size: int = 1
    echo: Mapping[str, Any] = field(default_factory=dict)
    """The request without its images."""
    ignored: tuple[str, ...] = ()


def read_text_call(body: Mapping[str, Any], model: str | None) -> WebUICall:
    """Of txt2img; `model` is the one that the client chose before, if any. Raises a `FieldError`."""
    fields = read_fields(body, model)
    if not fields["prompt"]:
        raise FieldError("prompt", "say what the image should show")
    return call_of(body, fields)


def read_image_call(body: Mapping[str, Any], model: str | None) -> WebUICall:
    """Of img2img."""
    fields, sent = read_fields(body, model), body.get("init_images")
    if not isinstance(sent, list) or len(sent) != 1:
        raise FieldError("init_images", "init_images is a list with one image in base64")
    images = {"image": read_upload("init_images", from_base64("init_images", sent[0]))}
    strength = number(body, "denoising_strength")
    fields |= {"strength": 0.75 if strength is None else strength}
    mode = number(body, "resize_mode") or 0
    if mode not in range(len(FITS)):
        raise FieldError("resize_mode", "resize_mode must be 0 (resize), 1 (crop and resize) or 2 (resize and fill)")
    if "size" in fields:
        fields["fit"] = FITS[int(mode)]
    if body.get("mask") is not None:
        blurs = [number(body, key) for key in ("mask_blur", "mask_blur_x", "mask_blur_y")]
        blur = max((one for one in blurs[1:] if one is not None), default=4 if blurs[0] is None else blurs[0])
        invert = bool(number(body, "inpainting_mask_invert") or 0)
        images["mask"] = grey_mask("mask", from_base64("mask", body["mask"]), invert, blur)
        fields["paste"] = True
    ignored = [key for key in ("inpainting_fill", "inpaint_full_res") if body.get(key) and "mask" in images]
    return call_of(body, fields, images, ignored)


def call_of(
    body: Mapping[str, Any], fields: dict[str, Any], images: Any = None, ignored: list[str] | None = None
) -> WebUICall:
    return WebUICall(
        fields=fields,
        images=images or {},
        send_images=body.get("send_images") is not False,
        batch_size=whole(body, "batch_size", 1),
        echo={key: None if key in IMAGES else value for key, value in body.items()},
        ignored=tuple(ignored or ()),
    )


def read_fields(body: Mapping[str, Any], model: str | None) -> dict[str, Any]:
    """The fields that both kinds of requests have."""
    refuse_what_is_not_here(body)
    fields: dict[str, Any] = {key: text(body, theirs) for key, theirs in TEXTS.items()}
    chosen = settings(body).get("sd_model_checkpoint") or model
    if chosen is not None:
        fields["model"] = model_of(chosen)
    for key, ours in NUMBERS.items():
        value = number(body, key)
        if value is not None and value not in NEUTRAL.get(key, ()):
            fields[ours] = int(value) if ours == "steps" and float(value).is_integer() else value
    seed = whole(body, "seed", -1)
    if seed != -1:
        fields["seed"] = seed
    if body.get("styles"):
        fields["style"] = body["styles"]
    fields["count"] = whole(body, "batch_size", 1) * whole(body, "n_iter", 1)
    if (size := read_size(body)) is not None:
        fields["size"] = size
    asked = body.get("sampler_name") or body.get("sampler_index")
    sampler, times = read_sampler(asked, body.get("scheduler"))
    fields |= {key: value for key, value in (("sampler", sampler), ("schedule_type", times)) if value is not None}
    if (eta := number(body, "eta")) is not None and sampler in WITH_ETA:
        fields["eta"] = eta
    return fields


def read_size(body: Mapping[str, Any]) -> list[int] | None:
    sides = [number(body, key) for key in ("width", "height")]
    if sides == [None, None]:
        return None
    for key, side in zip(("width", "height"), sides, strict=True):
        if side is None or side != int(side):
            raise FieldError(key, "give width and height in pixels, or neither")
    return [int(side) for side in sides if side is not None]


def refuse_what_is_not_here(body: Mapping[str, Any]) -> None:
    """Raise a `FieldError` for what would be a lie to ignore."""
    for key, values in ONLY.items():
        if body.get(key) and body[key] not in values:
            raise FieldError(key, f"{key} is not supported here: leave it out")
    for key in EMPTY:
        if body.get(key):
            raise FieldError(key, f"there are no {key} here: leave it out")
    for key, value in settings(body).items():
        if key in SETTINGS and value not in SETTINGS[key]:
            raise FieldError(f"override_settings.{key}", f"{key} cannot be set here: leave it out")


def settings(body: Mapping[str, Any]) -> Mapping[str, Any]:
    values = body.get("override_settings") or {}
    if not isinstance(values, Mapping):
        raise FieldError("override_settings", "override_settings is an object")
    return values


def model_of(title: Any) -> str:
    """The name of a model in its title: "latent [0123456789]"."""
    if not isinstance(title, str):
        raise FieldError("model", "a model's name must be a text")
    name, bracket, rest = title.rpartition(" [")
    return name if bracket and rest.endswith("]") else title


def text(body: Mapping[str, Any], key: str) -> str:
    value = body.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise FieldError(key, f"{key} must be a text")
    return value


def number(body: Mapping[str, Any], key: str) -> float | None:
    value = body.get(key)
    if value is None:
        return None
    if isinstance(value, bool) and key == "inpainting_mask_invert":
        return int(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 2**63:
        raise FieldError(key, f"{key} must be a number")
    return value


def whole(body: Mapping[str, Any], key: str, unset: int) -> int:
    value = number(body, key)
    if value is None:
        return unset
    if value != int(value) or (key != "seed" and value < 1):
        raise FieldError(key, f"{key} must be a whole number" + ("" if key == "seed" else " above 0"))
    return int(value)


def named(error: FieldError) -> FieldError:
    """An error about one of our fields, about the client's."""
    theirs, words = NAMES.get(error.field, error.field), str(error)
    if theirs != error.field and words.startswith(f"{error.field} "):
        words = theirs + words[len(error.field) :]
    return FieldError(theirs, words)
