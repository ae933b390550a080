"""Jobs of clients that wait for the answer: cancelled where the client leaves, and read from the history when done."""

from __future__ import annotations

import asyncio
from typing import Any

from diptych.core.errors import UserError
from diptych.studio.engine import REFUSED, Engine
from diptych.studio.job import Job
from diptych.studio.limits import FieldError


class ClientLeft(Exception):
    """Nobody is there to answer."""


async def finished(engine: Engine, job: Job, request: Any) -> Job:
    """Wait until a job has ended. Cancels it where the client leaves, and then raises `ClientLeft`; a `FieldError`
    where the safety check refused its images.

    request: of Starlette, its body read.
    """
    waiting, leaving = asyncio.ensure_future(job.wait()), asyncio.ensure_future(left(request))
    try:
        await asyncio.wait((waiting, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        leaving.cancel()
        if not job.ended:
            engine.cancel(job)
    if job.error is not None and job.error["code"] == REFUSED:
        raise FieldError("prompt", job.error["message"])
    if job.state == "cancelled" and leaving.done() and not leaving.cancelled():
        raise ClientLeft
    return job


async def left(request: Any) -> None:
    """Return when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def image_bytes(engine: Engine, id: str | None) -> bytes:
    """The PNG of a finished image. Raises a `UserError` where somebody deleted it meanwhile."""
    path = None if id is None else engine.history.png(id)
    try:
        assert path is not None
        return path.read_bytes()
    except (AssertionError, OSError):
        raise UserError("the image was deleted before it could be sent") from None
