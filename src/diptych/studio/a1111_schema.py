"""What /openapi.json says of A1111's routes, with examples."""

from __future__ import annotations

from typing import Any

IMAGE = {"type": "string", "description": "base64 of a PNG, JPEG or WebP, with or without data:image/png;base64,"}
TEXT, NUMBER, WHOLE, YES = ({"type": one} for one in ("string", "number", "integer", "boolean"))
COMMON: dict[str, Any] = {
    "prompt": TEXT,
    "negative_prompt": TEXT,
    "seed": {"type": "integer", "description": "-1: a random one"},
    "steps": WHOLE,
    "cfg_scale": NUMBER,
    "width": WHOLE,
    "height": WHOLE,
    "sampler_name": {"type": "string", "description": "One of /sdapi/v1/samplers"},
    "scheduler": {"type": "string", "description": "One of /sdapi/v1/schedulers"},
    "batch_size": {"type": "integer", "minimum": 1},
    "n_iter": {"type": "integer", "minimum": 1},
    "override_settings": {"type": "object", "description": "sd_model_checkpoint: the model"},
    "send_images": YES,
}
FROM_IMAGE: dict[str, Any] = {
    "init_images": {"type": "array", "items": IMAGE, "minItems": 1, "maxItems": 1},
    "denoising_strength": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "resize_mode": {"type": "integer", "enum": [0, 1, 2]},
    "mask": {**IMAGE, "description": "White where to generate; base64"},
    "mask_blur": NUMBER,
    "inpainting_mask_invert": WHOLE,
}
ERROR = {
    "type": "object",
    "properties": {"error": TEXT, "detail": TEXT, "body": TEXT, "errors": TEXT},
    "required": ["error", "detail"],
}
ERRORS: dict[int | str, Any] = {
    status: {
        "description": what,
        "content": {
            "application/json": {
                "schema": ERROR,
                "example": {"error": "Unprocessable", "detail": "steps must be a number", "body": "steps"},
            }
        },
    }
    for status, what in {
        400: "Generating failed",
        401: "No token, or not the right one",
        413: "Too large",
        422: "A field that cannot be taken",
        429: "Too many wait: see Retry-After",
    }.items()
}


def route(fields: dict[str, Any], required: list[str], example: Any, answer: Any) -> dict[str, Any]:
    """Keyword arguments of a FastAPI route."""
    schema = {"type": "object", "required": required, "properties": fields}
    body = {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}
    shown = {"description": "Done", "content": {"application/json": {"schema": {}, "example": answer}}}
    return {"openapi_extra": {"requestBody": body}, "responses": {200: shown, **ERRORS}}


PNG = "iVBORw0KGgo..."
MADE = {"images": [PNG], "parameters": {"prompt": "a red apple"}, "info": '{"seed": 3, "infotexts": ["..."]}'}
TXT2IMG = route(COMMON, ["prompt"], {"prompt": "a red apple", "steps": 10, "cfg_scale": 4, "seed": 3}, MADE)
IMG2IMG = route(
    {**COMMON, **FROM_IMAGE},
    ["init_images"],
    {"prompt": "a blue apple", "init_images": [PNG], "denoising_strength": 0.6},
    MADE,
)
EXTRA = route(
    {"image": IMAGE, "upscaler_1": TEXT, "upscaling_resize": NUMBER, "prompt": TEXT},
    ["image"],
    {"image": PNG, "upscaler_1": "cascade", "upscaling_resize": 4},
    {"html_info": "", "image": PNG},
)
PNG_INFO = route({"image": IMAGE}, ["image"], {"image": PNG}, {"info": "a red apple", "items": {}, "parameters": {}})
OPTIONS = route({"sd_model_checkpoint": TEXT}, [], {"sd_model_checkpoint": "latent"}, None)
