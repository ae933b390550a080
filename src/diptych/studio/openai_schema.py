"""What /openapi.json says of OpenAI's routes, with examples."""

from __future__ import annotations

from typing import Any

from diptych.studio.openai_fields import FORMATS, MOST_PARTIAL

ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code", "param"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "code": {"type": ["string", "null"]},
                "param": {"type": ["string", "null"]},
            },
        }
    },
}
STATUSES = {
    400: ("A field that cannot be taken", "steps must be from 1 to 10,000", "invalid_request_error", "steps"),
    401: ("No token, or not the right one", "a token is needed", "authentication_error", None),
    404: ("No such model", "no model 'dall-e-3': there are latent", "invalid_request_error", "model"),
    413: ("Too large", "at most 25165824 bytes", "invalid_request_error", None),
    429: ("Too many wait: see Retry-After", "too many images are waiting: try again in 9 s", "rate_limit_error", None),
    500: ("Generating failed", "generating failed", "server_error", None),
}


def described(description: str, schema: Any, example: Any, media: str = "application/json") -> dict[str, Any]:
    return {"description": description, "content": {media: {"schema": schema, "example": example}}}


ERRORS: dict[int | str, Any] = {
    status: described(what, ERROR, {"error": {"message": text, "type": kind, "code": None, "param": param}})
    for status, (what, text, kind, param) in STATUSES.items()
}
MODELS: dict[int | str, Any] = {
    200: described(
        "The models",
        {"type": "object"},
        {"object": "list", "data": [{"id": "latent", "object": "model", "created": 1780000000, "owned_by": "diptych"}]},
    ),
    401: ERRORS[401],
}
IMAGES = {
    "type": "object",
    "required": ["created", "data"],
    "properties": {
        "created": {"type": "integer"},
        "data": {"type": "array", "items": {"type": "object"}},
        "background": {"type": "string"},
        "output_format": {"type": "string"},
        "quality": {"type": "string"},
        "size": {"type": "string"},
        "usage": {"type": "object"},
    },
}
ANSWERS: dict[int | str, Any] = {
    200: {
        "description": "The images, or with stream=true server-sent events",
        "content": {
            "application/json": {
                "schema": IMAGES,
                "example": {"created": 1780000000, "size": "64x64", "data": [{"b64_json": "iVBORw0KGgo..."}]},
            },
            "text/event-stream": {"schema": {"type": "string"}},
        },
    },
    **ERRORS,
}
FIELDS: dict[str, Any] = {
    "prompt": {"type": "string", "description": "What the image should show"},
    "model": {"type": "string", "description": "A model of this server; the first one if there is none"},
    "n": {"type": "integer", "minimum": 1, "description": "Images"},
    "size": {"type": "string", "description": "auto, or width and height in pixels: 64x64"},
    "response_format": {"type": "string", "enum": ["b64_json", "url"]},
    "output_format": {"type": "string", "enum": list(FORMATS)},
    "output_compression": {"type": "integer", "minimum": 0, "maximum": 100, "description": "Quality of JPEG and WebP"},
    "background": {"type": "string", "enum": ["auto", "opaque"]},
    "stream": {"type": "boolean", "description": "Answer with server-sent events"},
    "partial_images": {"type": "integer", "minimum": 0, "maximum": MOST_PARTIAL, "description": "With stream"},
    "seed": {"type": "integer", "minimum": 0, "description": "The same seed gives the same image"},
    "negative_prompt": {"type": "string"},
    "num_inference_steps": {"type": "integer", "minimum": 1},
    "guidance_scale": {"type": "number"},
    "sampler": {"type": "string"},
}
PART = {"type": "string", "format": "binary"}
EXAMPLE = {"prompt": "a red apple", "n": 1, "seed": 3, "num_inference_steps": 10, "guidance_scale": 4}


def route(media: str, fields: dict[str, Any], required: list[str], example: dict[str, Any]) -> dict[str, Any]:
    """Keyword arguments of a FastAPI route."""
    schema = {"type": "object", "required": required, "properties": fields}
    body = {"required": True, "content": {media: {"schema": schema, "example": example}}}
    return {"openapi_extra": {"requestBody": body}, "responses": ANSWERS}


GENERATIONS = route("application/json", FIELDS, ["prompt"], EXAMPLE)
EDITS = route(
    "multipart/form-data", {"image": PART, "mask": PART, **FIELDS}, ["image", "prompt"], {"prompt": "a blue apple"}
)
VARIATIONS = route(
    "multipart/form-data", {"image": PART, **{k: v for k, v in FIELDS.items() if k != "stream"}}, ["image"], {"n": 2}
)
