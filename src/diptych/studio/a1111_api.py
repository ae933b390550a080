"""A1111's API in front of the engine: the routes of `/sdapi/v1` that clients call.

No setting is written over HTTP. The checkpoint that a client chooses by `options` is kept in memory, for that client's
requests alone.
"""

# Without annotations as strings: FastAPI could not look up what is named within a function.
import base64
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image

from diptych.studio import a1111_schema as schema
from diptych.studio.a1111_answers import images_answer, memory, model_row, progress
from diptych.studio.a1111_enlarging import read_enlarging, upscalers
from diptych.studio.a1111_fields import WebUICall, model_of, named, read_image_call, read_text_call
from diptych.studio.a1111_names import parse_infotext, samplers, schedulers
from diptych.studio.client_jobs import ClientLeft, finished, image_bytes
from diptych.studio.engine import Engine
from diptych.studio.image_request import ImageRequest
from diptych.studio.job import Job
from diptych.studio.jobs_api import client_of
from diptych.studio.json_body import body_of
from diptych.studio.limits import FieldError
from diptych.studio.sent_images import from_base64, sent_texts

CHOICES = 1024
"""Clients whose choice of a checkpoint is kept."""
LISTS: dict[str, Any] = {
    **{name: [] for name in ("loras", "hypernetworks", "face-restorers", "realesrgan-models")},
    **{name: [] for name in ("sd-vae", "sd-modules", "latent-upscale-modes", "script-info", "extensions")},
    "embeddings": {"loaded": {}, "skipped": {}},
    "scripts": {"txt2img": [], "img2img": []},
    "cmd-flags": {"api": True},
}
"""What is always the same: there is none of it here."""


class Checkpoints:
    """The models that clients chose, the latest ones."""

    def __init__(self) -> None:
        self._chosen: OrderedDict[str, str] = OrderedDict()

    def get(self, client: str) -> str | None:
        return self._chosen.get(client)

    def choose(self, client: str, model: str) -> None:
        self._chosen[client] = model
        self._chosen.move_to_end(client)
        while len(self._chosen) > CHOICES:
            self._chosen.popitem(last=False)


def add_a1111_routes(application: Any, engine: Engine) -> None:
    """Add `/sdapi/v1/...` to a FastAPI application."""
    from fastapi import HTTPException, Request
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import JSONResponse, Response

    pool, chosen = engine.pool, Checkpoints()
    root, tags = "/sdapi/v1", ["A1111"]

    async def done(request: Request, fields: Mapping[str, Any], images: Mapping[str, Image.Image]) -> Job | None:
        """The job of a request, ended; none where the client left."""
        wanted = await run_in_threadpool(read_request, engine, fields, images)
        job = await run_in_threadpool(engine.submit, wanted, client_of(request))
        try:
            await finished(engine, job, request)
        except ClientLeft:
            return None
        if job.state in ("failed", "lost"):
            status = 503 if job.state == "lost" else 500
            raise HTTPException(status, (job.error or {}).get("message", "generating failed"))
        return job

    async def answer(request: Request, read: Callable[[Mapping[str, Any], str | None], WebUICall]) -> Response:
        body = await body_of(request, engine.limits.upload_bytes)
        call = await run_in_threadpool(read, body, chosen.get(client_of(request)))
        job = await done(request, call.fields, call.images)
        if job is None:
            return Response(status_code=499)
        return JSONResponse(await run_in_threadpool(images_answer, engine, job, call))

    def jobs_of(request: Request) -> list[Job]:
        """The client's jobs that have not ended, the oldest first."""
        client = client_of(request)
        return [job for job in list(engine.jobs.values()) if job.client == client and not job.ended]

    @application.post(f"{root}/txt2img", tags=tags, **schema.TXT2IMG)
    async def txt2img(request: Request) -> Response:
        """Generate images of a prompt."""
        return await answer(request, read_text_call)

    @application.post(f"{root}/img2img", tags=tags, **schema.IMG2IMG)
    async def img2img(request: Request) -> Response:
        """Change an image, all of it or where a mask is white."""
        return await answer(request, read_image_call)

    @application.post(f"{root}/extra-single-image", tags=tags, **schema.EXTRA)
    async def extra(request: Request) -> Response:
        """Enlarge an image by a model that does so."""
        body = await body_of(request, engine.limits.upload_bytes)
        fields, image = await run_in_threadpool(read_enlarging, engine, body)
        job = await done(request, fields, {"low_res": image})
        if job is None:
            return Response(status_code=499)
        data = await run_in_threadpool(image_bytes, engine, job.images[0].id)
        return JSONResponse({"html_info": "", "image": base64.b64encode(data).decode("ascii")})

    @application.post(f"{root}/png-info", tags=tags, **schema.PNG_INFO)
    async def png_info(request: Request) -> dict[str, Any]:
        """The texts in an image."""
        body = await body_of(request, engine.limits.upload_bytes)
        texts = await run_in_threadpool(sent_texts, "image", from_base64("image", body.get("image")))
        text = texts.get("parameters", "")
        return {"info": text, "items": texts, "parameters": parse_infotext(text) if text else {}}

    @application.get(f"{root}/progress", tags=tags)
    def show_progress(request: Request, skip_current_image: bool = False) -> dict[str, Any]:
        """How far the client's request is, with a preview."""
        return progress(jobs_of(request), not skip_current_image)

    @application.post(f"{root}/interrupt", tags=tags)
    @application.post(f"{root}/skip", tags=tags, operation_id="skip")
    def interrupt(request: Request) -> dict[str, Any]:
        """Stop the client's request that runs: it is answered with the images that are done."""
        if jobs := jobs_of(request):
            engine.cancel(next((job for job in jobs if job.state == "running"), jobs[0]))
        return {}

    def options_of(request: Request) -> dict[str, Any]:
        model = chosen.get(client_of(request)) or pool.default
        row = model_row(model, sha256_of(engine, model))
        return {
            "sd_model_checkpoint": row["title"],
            "sd_checkpoint_hash": row["sha256"],
            "sd_vae": "Automatic",
            "CLIP_stop_at_last_layers": 1,
            "eta_noise_seed_delta": 0,
            "samples_format": "png",
        }

    @application.get(f"{root}/options", tags=tags)
    def options(request: Request) -> dict[str, Any]:
        """What cannot be changed here, but for the checkpoint."""
        return options_of(request)

    @application.post(f"{root}/options", tags=tags, **schema.OPTIONS)
    async def set_options(request: Request) -> None:
        """Choose the checkpoint of this client's requests. Other settings may only be what they are."""
        body, now = await body_of(request, engine.limits.upload_bytes), options_of(request)
        model = body.pop("sd_model_checkpoint", None)
        for key, value in body.items():
            if key not in now or (value != now[key] and key != "sd_checkpoint_hash"):
                raise FieldError(key, f"{key[:80]} cannot be changed over HTTP: leave it out")
        if model is not None:
            chosen.choose(client_of(request), pool.name_of(model_of(model)))

    @application.get(f"{root}/sd-models", tags=tags)
    def models() -> list[dict[str, Any]]:
        """The models of this server."""
        return [model_row(name, sha256_of(engine, name)) for name in pool.sources]

    @application.post(f"{root}/refresh-checkpoints", tags=tags)
    @application.post(f"{root}/refresh-loras", tags=tags, operation_id="refresh_loras")
    def refresh() -> None:
        """Nothing: the models are those that the server was started with."""

    @application.get(f"{root}/samplers", tags=tags)
    def list_samplers() -> list[dict[str, Any]]:
        return samplers()

    @application.get(f"{root}/schedulers", tags=tags)
    def list_schedulers() -> list[dict[str, Any]]:
        return schedulers()

    @application.get(f"{root}/upscalers", tags=tags)
    def list_upscalers() -> list[dict[str, Any]]:
        """The open models that enlarge images."""
        return upscalers(engine)

    @application.get(f"{root}/prompt-styles", tags=tags)
    def list_styles(request: Request) -> list[dict[str, Any]]:
        """The styles of the client's checkpoint."""
        styles = pool.styles[chosen.get(client_of(request)) or pool.default].items()
        return [{"name": name, "prompt": one.prompt, "negative_prompt": one.negative} for name, one in styles]

    @application.get(f"{root}/memory", tags=tags)
    def show_memory() -> dict[str, Any]:
        return memory()

    for name, value in LISTS.items():
        application.get(f"{root}/{name}", tags=tags, operation_id=name)(constant(value))


def constant(value: Any) -> Callable[[], Any]:
    """A route that always answers the same."""

    def same() -> Any:
        return value

    return same


def read_request(engine: Engine, fields: Mapping[str, Any], images: Mapping[str, Image.Image]) -> ImageRequest:
    """The request, its images kept. Raises a `FieldError` about a field by the client's name."""
    inputs = {}
    try:
        for name, image in images.items():
            id = engine.history.add_input(image, engine.limits.uploads)
            inputs[name] = engine.history.input(name, id)
        return ImageRequest.read(engine.pool, engine.limits, fields, inputs)
    except FieldError as error:
        raise named(error) from None


def sha256_of(engine: Engine, name: str) -> str | None:
    """The hash of an open model; none for one that is closed or was made in memory."""
    if name not in engine.pool.loaded():
        return None
    return getattr(getattr(engine.pool.open(name), "origin", None), "sha256", None)
