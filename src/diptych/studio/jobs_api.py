"""The studio's own API: models, jobs with their events, what clients send, and the history of images."""

# Without annotations as strings: FastAPI could not look up what is named within a function.
import asyncio
import io
import json
import zipfile
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

from diptych.core.errors import UserError
from diptych.studio.engine import Engine
from diptych.studio.image_request import INPUTS, ImageRequest
from diptych.studio.job import Job
from diptych.studio.json_body import body_of
from diptych.studio.limits import FieldError
from diptych.studio.model_schema import describe_model
from diptych.studio.prompt_check import check_prompt
from diptych.studio.read_upload import read_upload
from diptych.studio.restore import fields_of

HEARTBEAT = 15.0
"""Seconds after which a stream without news says that it is alive."""
IMMUTABLE = {"cache-control": "private, max-age=31536000, immutable"}
MOST_ZIPPED = 1000
FOLLOWERS, ALL_FOLLOWERS = 32, 512
"""Streams of events of one job, and of all: fewer than the requests that the server answers at once."""


def add_routes(application: Any, engine: Engine) -> None:
    """Add `/api/...` to a FastAPI application."""
    from fastapi import HTTPException, Request
    from fastapi.concurrency import run_in_threadpool
    from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse

    history, pool, limits = engine.history, engine.pool, engine.limits

    def job_of(id: str) -> Job:
        found = engine.jobs.get(id)  # at once: another thread may forget it
        if found is None:
            raise HTTPException(404, "there is no such job")
        return found

    @application.get("/api/models")
    def models() -> list[dict[str, Any]]:
        loaded = pool.loaded()
        return [
            {"name": name, "title": name, "loaded": name in loaded, "default": name == pool.default}
            for name in pool.sources
        ]

    @application.get("/api/models/{name}")
    def model(name: str) -> dict[str, Any]:
        row = {"name": pool.name_of(name), "title": name, "styles": list(pool.styles[pool.name_of(name)])}
        return row | describe_model(pool.open(name))

    @application.post("/api/check")
    async def check(request: Request) -> dict[str, Any]:
        values = await body_of(request)
        prompt, size = values.get("prompt", ""), values.get("size")
        if not isinstance(prompt, str):
            raise FieldError("prompt", "prompt must be a text")
        limits.check_prompt("prompt", prompt)
        sides = isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
        if size is not None and not sides:
            raise FieldError("size", "size is width and height in pixels, as [64, 64]")
        name = pool.name_of(values.get("model"))
        return await run_in_threadpool(lambda: check_prompt(pool.open(name), prompt, size))

    @application.post("/api/uploads")
    async def upload(request: Request) -> dict[str, Any]:
        data = await request.body()
        image = await run_in_threadpool(read_upload, "image", data)
        name = await run_in_threadpool(history.add_input, image, limits.uploads)
        return {"id": name, "width": image.width, "height": image.height}

    @application.get("/api/uploads/{id}")
    def uploaded(id: str) -> Response:
        return FileResponse(history.input("image", id), media_type="image/png", headers=IMMUTABLE)

    @application.post("/api/jobs", status_code=202)
    async def submit(request: Request) -> dict[str, Any]:
        values = await body_of(request)
        options = values.pop("options", None)
        if not isinstance(options, Mapping | None):
            raise FieldError("options", "options is an object")
        fields = {**(options or {}), **{name: one for name, one in values.items() if name not in INPUTS}}
        client = client_of(request)

        def submitted() -> Job:
            given = {name: values[name] for name in INPUTS if values.get(name) is not None}
            inputs = {name: history.kept_input(name, id, limits.uploads) for name, id in given.items()}
            return engine.submit(ImageRequest.read(pool, limits, fields, inputs), client)

        return (await run_in_threadpool(submitted)).to_json()

    @application.get("/api/jobs")
    def jobs(request: Request) -> list[dict[str, Any]]:
        client = client_of(request)
        open_jobs = [job.to_json() for job in list(engine.jobs.values()) if job.client == client and not job.ended]
        return [*open_jobs, *history.jobs("lost", client)]

    @application.get("/api/jobs/{id}")
    def job(id: str) -> dict[str, Any]:
        if id not in engine.jobs and (row := history.job(id)) is not None:  # of before the last start, or long ago
            return {**row, "position": None}
        found = job_of(id)
        return {**found.to_json(), "position": None if found.state != "queued" else engine.position(found)}

    @application.delete("/api/jobs/{id}")
    def cancel(id: str) -> dict[str, Any]:
        if id not in engine.jobs and history.forget_lost(id):
            return {"id": id, "state": "lost"}
        if id not in engine.jobs and (row := history.job(id)) is not None:
            return row
        found = job_of(id)
        engine.cancel(found)
        return found.to_json()

    @application.get("/api/jobs/{id}/events")
    def events(id: str, request: Request) -> Response:
        last = request.headers.get("last-event-id", "0")
        after = int(last) if last.isascii() and last.isdigit() and len(last) < 10 else 0
        if id not in engine.jobs and (row := history.job(id)) is not None:
            return Response(last_events(row, after), media_type="text/event-stream")
        following = job_of(id)
        everyone = sum(job.followers for job in list(engine.jobs.values()))
        if following.followers >= FOLLOWERS or everyone >= ALL_FOLLOWERS:
            raise HTTPException(429, "too many follow already", {"retry-after": "5"})
        return StreamingResponse(event_stream(following, after), media_type="text/event-stream")

    @application.get("/api/images")
    def images(search: str = "", favourite: bool = False, before: int | None = None, limit: int = 60) -> Any:
        if len(search) > 1000:
            raise FieldError("search", "at most 1000 letters to search for")
        if not 1 <= limit <= 500:
            raise FieldError("limit", "limit must be from 1 to 500")
        if before is not None and not 0 <= before < 2**62:
            raise FieldError("before", "before is the sequence of an image")
        return history.images(search, favourite, before, limit)

    @application.post("/api/images/zip")
    async def bundle(request: Request) -> Response:
        ids = (await body_of(request)).get("ids")
        if not isinstance(ids, list) or not 1 <= len(ids) <= MOST_ZIPPED or not all(isinstance(id, str) for id in ids):
            raise FieldError("ids", f"ids is a list of 1 to {MOST_ZIPPED} images")
        named = dict.fromkeys(ids)
        files = await run_in_threadpool(lambda: [path for id in named if (path := history.png(id)) is not None])
        if not files:
            raise HTTPException(404, "none of these images is there any more")
        headers = {"content-disposition": 'attachment; filename="diptych-images.zip"'}
        return StreamingResponse(zipped(files), media_type="application/zip", headers=headers)

    @application.get("/api/images/{id}.png")
    def png(id: str, stage: int | None = None) -> Response:
        path = history.png(id, stage)
        if path is None:
            raise HTTPException(404, "there is no such image")
        return FileResponse(path, media_type="image/png", headers=IMMUTABLE)

    @application.get("/api/images/{id}/thumbnail")
    def thumbnail(id: str) -> Response:
        data = history.thumbnail(id)
        if data is None:
            raise HTTPException(404, "there is no such image")
        return Response(data, media_type="image/webp", headers=IMMUTABLE)

    @application.get("/api/images/{id}/steps")
    def steps(id: str) -> list[dict[str, Any]]:
        return history.strip(id)

    @application.get("/api/images/{id}")
    def image(id: str) -> dict[str, Any]:
        row = history.image(id)
        if row is None:
            raise HTTPException(404, "there is no such image")
        return row

    @application.patch("/api/images/{id}")
    async def favour(id: str, request: Request) -> dict[str, Any]:
        favourite = (await body_of(request)).get("favourite")
        if not isinstance(favourite, bool):
            raise FieldError("favourite", "favourite is true or false")
        if not await run_in_threadpool(history.set_favourite, id, favourite):
            raise HTTPException(404, "there is no such image")
        return {"id": id, "favourite": favourite}

    @application.delete("/api/images/{id}")
    def delete(id: str) -> dict[str, Any]:
        if not history.delete(id):
            raise HTTPException(404, "there is no such image")
        return {"id": id, "deleted": True}

    @application.post("/api/read")
    async def read(request: Request) -> Response:
        data = await request.body()
        try:
            return JSONResponse(await run_in_threadpool(fields_of, engine, data))
        except FieldError:
            raise
        except UserError as error:
            raise FieldError("image", str(error)) from None


def client_of(request: Any) -> str:
    """Who asks, for fairness among clients: the id that a page made for itself, or else the address."""
    named = request.headers.get("x-client", "")
    if named.isascii() and named.replace("-", "").isalnum() and len(named) <= 64:
        return named
    return request.client.host if request.client else "unknown"


def server_event(event: Mapping[str, Any]) -> bytes:
    return f"id: {event['number']}\nevent: {event['type']}\ndata: {json.dumps(event)}\n\n".encode()


def last_events(row: Mapping[str, Any], after: int) -> bytes:
    """What is known of a job that is not in memory any more: its images and how it ended."""
    images = [{"type": "image", "image": one["index"], "id": one["id"], "seed": one["seed"]} for one in row["images"]]
    events = [*images, {"type": row["state"], **({"error": row["error"]} if row["error"] else {})}]
    return b"".join(server_event({"number": after + place, **event}) for place, event in enumerate(events, 1))


async def event_stream(job: Job, after: int) -> AsyncIterator[bytes]:
    """The events of a job as server-sent events; a comment where nothing happens for long."""
    following = job.follow(after)
    coming: asyncio.Future[Any] | None = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(following, None))
            done, _ = await asyncio.wait((coming,), timeout=HEARTBEAT)
            if not done:
                yield b": alive\n\n"
                continue
            event, coming = coming.result(), None
            if event is None:
                return
            yield server_event(event)
    finally:
        if coming is not None:
            coming.cancel()


def zipped(files: list[Path]) -> Iterator[bytes]:
    """A .zip of files, one at a time in memory; PNG is compressed already."""
    buffer = io.BytesIO()

    def drained() -> bytes:
        data = buffer.getvalue()
        buffer.seek(0)
        buffer.truncate()
        return data

    with zipfile.ZipFile(Unseekable(buffer), "w", zipfile.ZIP_STORED) as archive:
        for file in files:
            try:
                archive.write(file, file.name)
            except FileNotFoundError:  # deleted meanwhile
                continue
            yield drained()
    yield drained()


class Unseekable:
    """A file that can only be written to, so that a .zip is written front to back."""

    def __init__(self, file: io.BytesIO) -> None:
        self.file = file

    def write(self, data: bytes) -> int:
        return self.file.write(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass
