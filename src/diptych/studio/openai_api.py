"""OpenAI's images API in front of the engine: `/v1/models`, `/v1/images/generations`, `edits` and `variations`.

What differs from OpenAI's: models are this server's; `seed` and the options of `generate` are fields too; what cannot
be done (transparent backgrounds, SVG) is refused, and what changes nothing (moderation, user) ignored.
"""

# Without annotations as strings: FastAPI could not look up what is named within a function.
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diptych.encoders.tokenizers import encode_text
from diptych.studio import openai_schema
from diptych.studio.client_jobs import ClientLeft, finished
from diptych.studio.engine import Engine
from diptych.studio.image_request import ImageRequest
from diptych.studio.jobs_api import client_of
from diptych.studio.json_body import body_of
from diptych.studio.limits import FieldError
from diptych.studio.model_schema import kind_of, low_sizes
from diptych.studio.openai_answers import event_stream, images_answer, model_row
from diptych.studio.openai_fields import ImagesCall, read_call
from diptych.studio.read_upload import read_upload
from diptych.studio.sent_images import alpha_mask

MOST_FIELDS, MOST_FILES = 64, 4
"""Parts of a form."""


def add_openai_routes(application: Any, engine: Engine) -> None:
    """Add `/v1/...` to a FastAPI application."""
    from fastapi import HTTPException, Request
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import JSONResponse, Response, StreamingResponse
    from starlette.datastructures import UploadFile

    began = int(time.time())

    async def read_form(request: Request) -> tuple[dict[str, Any], dict[str, list[bytes]]]:
        """The fields of a multipart form, and its files."""
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise FieldError("image", "send the image as multipart/form-data")
        values: dict[str, Any] = {}
        files: dict[str, list[bytes]] = {}
        async with request.form(max_files=MOST_FILES, max_fields=MOST_FIELDS) as form:
            for key, value in form.multi_items():
                key = key.removesuffix("[]")
                if isinstance(value, UploadFile):
                    files.setdefault(key, []).append(await value.read())
                else:
                    values[key] = value
        return values, files

    async def answer(request: Request, call: ImagesCall, files: Mapping[str, list[bytes]], kind: str) -> Response:
        wanted, text_tokens = await run_in_threadpool(read_images, engine, call, files)
        job = await run_in_threadpool(engine.submit, wanted, client_of(request))
        if call.stream:
            return StreamingResponse(event_stream(engine, job, call, text_tokens, kind), media_type="text/event-stream")
        try:
            await finished(engine, job, request)
        except ClientLeft:
            return Response(status_code=499)
        if job.state != "done":
            status = 503 if job.state == "lost" else 500
            raise HTTPException(status, (job.error or {}).get("message", "the request was cancelled"))
        root = str(request.base_url).rstrip("/")
        link = lambda id: f"{root}/api/images/{id}.png"  # noqa: E731
        return JSONResponse(await run_in_threadpool(images_answer, engine, job, call, text_tokens, link))

    @application.get("/v1/models", tags=["OpenAI"], responses=openai_schema.MODELS)
    def models() -> dict[str, Any]:
        """The models of this server."""
        return {"object": "list", "data": [model_row(name, began) for name in engine.pool.sources]}

    @application.get("/v1/models/{model}", tags=["OpenAI"], responses=openai_schema.ERRORS)
    def model(model: str) -> dict[str, Any]:
        """One of them."""
        return model_row(engine.pool.name_of(model), began)

    @application.post("/v1/images/generations", tags=["OpenAI"], **openai_schema.GENERATIONS)
    async def generations(request: Request) -> Response:
        """Generate images of a prompt."""
        body = await body_of(request)
        if not body.get("prompt"):
            raise FieldError("prompt", "say what the image should show")
        return await answer(request, read_call(body), {}, "image_generation")

    @application.post("/v1/images/edits", tags=["OpenAI"], **openai_schema.EDITS)
    async def edits(request: Request) -> Response:
        """Change an image by a prompt, all of it or where a mask is transparent."""
        values, files = await read_form(request)
        return await answer(request, read_call(values, text=True), require_image(files), "image_edit")

    @application.post("/v1/images/variations", tags=["OpenAI"], **openai_schema.VARIATIONS)
    async def variations(request: Request) -> Response:
        """Images like one that is given."""
        values, files = await read_form(request)
        values.pop("stream", None)
        files.pop("mask", None)
        return await answer(request, read_call(values, text=True), require_image(files), "image_edit")


def require_image(files: dict[str, list[bytes]]) -> dict[str, list[bytes]]:
    """The files of a form, in which there must be one image."""
    count = len(files.get("image", ()))
    if count != 1:
        why = "there is no image" if count == 0 else f"give one image, not {count}: none is made of several here"
        raise FieldError("image", f"{why}")
    if "markup" in files:
        raise FieldError("markup", "markup is not supported: leave it out")
    return files


def read_images(engine: Engine, call: ImagesCall, files: Mapping[str, list[bytes]]) -> tuple[ImageRequest, int]:
    """What a client asks for, with its images kept, and the tokens of the prompt. Raises a `FieldError` about a field
    by the client's name."""
    try:
        name = engine.pool.name_of(call.fields.get("model"))
        model, fields = engine.pool.open(name), dict(call.fields)
        inputs = read_inputs(engine, model, fields, files)
        wanted = ImageRequest.read(engine.pool, engine.limits, fields, inputs)
    except FieldError as error:
        raise call.named(error) from None
    tokenizer = getattr(getattr(model, "text", None), "tokenizer", None)
    return wanted, 0 if tokenizer is None else len(encode_text(tokenizer, wanted.prompt).ids)


def read_inputs(
    engine: Engine, model: Any, fields: dict[str, Any], files: Mapping[str, list[bytes]]
) -> dict[str, Path]:
    """The images of a form, kept. A model that enlarges one and does nothing else gets it as that. Pixels outside a
    mask stay as they are unless `paste` says otherwise."""
    inputs: dict[str, Path] = {}
    if "image" not in files:
        return inputs
    image = read_upload("image", files["image"][0])
    enlarges = kind_of(model) != "cascade" and bool(low_sizes(model))
    key = "low_res" if enlarges else "image"
    images = {key: image}
    if "mask" in files:
        images["mask"] = alpha_mask("mask", files["mask"][0])
        if images["mask"].size != image.size:
            size, mask = (f"{one.width} x {one.height}" for one in (image, images["mask"]))
            raise FieldError("mask", f"the mask has {mask} pixels and the image {size}: they must be the same")
        fields.setdefault("paste", True)
    for name, one in images.items():
        id = engine.history.add_input(one, engine.limits.uploads)
        inputs[name] = engine.history.input(name, id)
    return inputs
