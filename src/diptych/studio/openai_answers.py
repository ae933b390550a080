"""Answers of OpenAI's images API: images, models, and the events of a stream."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

from PIL import Image

from diptych.models.exif import encoded
from diptych.studio.api_errors import OPENAI, error_body
from diptych.studio.client_jobs import image_bytes
from diptych.studio.engine import Engine
from diptych.studio.job import Job
from diptych.studio.openai_fields import ImagesCall


def images_answer(engine: Engine, job: Job, call: ImagesCall, text_tokens: int, link: Callable[[str], str]) -> Any:
    """The answer once a job is done. `link` makes the address of an image of its id."""
    files = [image_bytes(engine, image.id) for image in job.images if image.error is None]
    if call.as_url:
        data = [{"url": link(image.id)} for image in job.images if image.id is not None]
    else:
        data = [{"b64_json": base64_of(in_format(engine, file, call))} for file in files]
    return {
        "created": int(job.created),
        "data": data,
        **looks(call),
        "size": size_of(files[0]),
        "usage": usage(text_tokens),
    }


def looks(call: ImagesCall) -> dict[str, Any]:
    return {"background": "opaque", "output_format": call.output_format, "quality": "auto"}


def usage(text_tokens: int) -> dict[str, Any]:
    """Tokens of the prompt; images take none here."""
    return {
        "input_tokens": text_tokens,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": text_tokens},
        "output_tokens": 0,
        "output_tokens_details": {"image_tokens": 0, "text_tokens": 0},
        "total_tokens": text_tokens,
    }


def in_format(engine: Engine, png: bytes, call: ImagesCall) -> bytes:
    """A PNG in the format that was asked for, its metadata too, signed as it is."""
    if call.output_format == "png":
        return png
    format = "webp" if call.output_format == "webp" else "jpeg"
    data, signer = encoded(png, format, call.compression), engine.history.signer
    return data if signer is None else signer.sign(data, format)


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def size_of(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        return f"{image.width}x{image.height}"


def preview_bytes(preview: str, call: ImagesCall) -> bytes:
    """A preview, which is a `data:` URL, in the format that was asked for."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(preview.partition(",")[2]))) as image:
        options = {} if call.output_format == "png" else {"quality": call.compression}
        image.convert("RGB").save(file, call.output_format.upper(), **options)
    return file.getvalue()


class Partials:
    """Which previews of a job's images become partial images: the latest one each time another share is done."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.sent: dict[int, int] = {}
        self.latest: dict[int, str] = {}

    def of_step(self, event: dict[str, Any]) -> tuple[int, str] | None:
        """The number of the partial image, from 0, and its preview, where a step gives one."""
        image, sent = event["image"], self.sent.get(event["image"], 0)
        if event.get("preview"):
            self.latest[image] = event["preview"]
        due = sent < self.most and event["step"] * (self.most + 1) >= (sent + 1) * event["steps"]
        if not due or image not in self.latest or event["step"] >= event["steps"]:
            return None
        self.sent[image] = sent + 1
        return sent, self.latest.pop(image)


async def event_stream(engine: Engine, job: Job, call: ImagesCall, text_tokens: int, kind: str) -> AsyncIterator[bytes]:
    """Server-sent events: partial images, each image when it is complete, an error. The job is cancelled where the
    client leaves. kind: image_generation or image_edit."""
    partials = Partials(call.partial_images)
    try:
        async for event in job.follow():
            if event["type"] == "step" and (partial := partials.of_step(event)):
                data = preview_bytes(partial[1], call)
                values = {"partial_image_index": partial[0], **image_values(job, data, call)}
                yield server_event(f"{kind}.partial_image", values)
            elif event["type"] == "image":
                data = in_format(engine, image_bytes(engine, event["id"]), call)
                yield server_event(f"{kind}.completed", {**image_values(job, data, call), "usage": usage(text_tokens)})
            elif event["type"] in ("failed", "cancelled", "lost"):
                message = (job.error or {}).get("message", "the request was cancelled")
                yield server_event("error", error_body(OPENAI, 500, message))
        yield b"data: [DONE]\n\n"
    finally:
        if not job.ended:
            engine.cancel(job)


def image_values(job: Job, data: bytes, call: ImagesCall) -> dict[str, Any]:
    return {"b64_json": base64_of(data), "created_at": int(job.created), "size": size_of(data), **looks(call)}


def server_event(kind: str, values: dict[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **values})}\n\n".encode()


def model_row(name: str, created: int) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": created, "owned_by": "diptych"}
