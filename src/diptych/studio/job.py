"""A job: the images of one request, their progress as events that any number of clients may follow."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from diptych.studio.image_request import ImageRequest, exact

State = Literal["queued", "running", "done", "failed", "cancelled", "lost"]
ENDED = ("done", "failed", "cancelled", "lost")
"""States of which nothing follows."""
PREVIEWS_KEPT = 2
"""Events with a preview that a client who comes late is sent."""


@dataclass(eq=False)
class QueuedImage:
    """One image of a job, while it waits and is made."""

    job: Job
    index: int
    state: State = "queued"
    step: int = 0
    id: str | None = None
    """Of the finished image, in the history."""
    strip: list[dict[str, Any]] = field(default_factory=list)
    """What was seen in each step: previews and measures."""
    error: str | None = None
    """Why it is not there, where others of its job are."""

    @property
    def seed(self) -> int:
        return self.job.request.seeds[self.index]

    def to_json(self) -> dict[str, Any]:
        row = {"index": self.index, "seed": exact(self.seed), "state": self.state, "step": self.step, "id": self.id}
        return {**row, "error": self.error} if self.error else row


class Job:
    """What was asked for, and what became of it. Its methods may be called from any thread."""

    def __init__(self, request: ImageRequest, client: str, on_end: Callable[[Job], None] = lambda job: None) -> None:
        self.id, self.request, self.client, self.created = secrets.token_hex(12), request, client, time.time()
        self.state: State = "queued"
        self.images = [QueuedImage(self, index) for index in range(len(request.seeds))]
        self.error: dict[str, Any] | None = None
        self.warnings: list[str] = []
        self.seconds_left: float | None = None
        self.cancelled = threading.Event()
        self.on_end = on_end
        self._events: list[dict[str, Any]] = []
        self._changed: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
        self._lock = threading.Lock()

    @property
    def ended(self) -> bool:
        return self.state in ENDED

    def to_json(self) -> dict[str, Any]:
        row: dict[str, Any] = {"id": self.id, "state": self.state, "created": self.created}
        row |= {"request": self.request.to_json(), "images": [one.to_json() for one in self.images]}
        return row | {"warnings": self.warnings, "error": self.error, "seconds_left": self.seconds_left}

    def publish(self, kind: str, **values: Any) -> None:
        """Append an event and wake those who follow. Of events with previews the last few keep them, and the last of
        each stage of a cascade."""
        with self._lock:
            number = self._events[-1]["number"] + 1 if self._events else 1
            self._events.append({"type": kind, "number": number, **values})
            shown = [event for event in self._events[-64:] if event.get("preview")]
            last = {(event["image"], event.get("stage")): event["number"] for event in shown}
            for event in shown[: -PREVIEWS_KEPT * max(len(self.images), 1)]:
                if event["number"] < last[event["image"], event.get("stage")]:
                    event["preview"] = None
            for loop, changed in self._changed:
                with contextlib.suppress(RuntimeError):  # a loop that is closed
                    loop.call_soon_threadsafe(changed.set)

    def end(self, state: State, **values: Any) -> None:
        """The last event."""
        with self._lock:
            if self.ended:
                return
            self.state, self.seconds_left = state, None
        for one in self.images:
            one.state, one.strip = state if one.state not in ENDED else one.state, []
        self.on_end(self)
        self.publish(state, **values)

    def events(self, after: int = 0) -> list[dict[str, Any]]:
        """Those with a number above `after`."""
        with self._lock:
            first = bisect.bisect_right(self._events, after, key=lambda event: event["number"])
            return [dict(event) for event in self._events[first:]]

    @property
    def _end_published(self) -> bool:
        """Whether the last event is there: it follows the state, once the history has been written."""
        with self._lock:
            return bool(self._events) and self._events[-1]["type"] in ENDED

    def forget_steps(self) -> None:
        """Of a job that has ended keep what it came to: its steps are in the history."""
        with self._lock:
            self._events = [event for event in self._events if event["type"] != "step"]

    @property
    def followers(self) -> int:
        """How many follow it now."""
        return len(self._changed)

    async def follow(self, after: int = 0) -> AsyncIterator[dict[str, Any]]:
        """All events from `after` on, as they come, to the last."""
        here = (asyncio.get_running_loop(), asyncio.Event())
        with self._lock:
            self._changed.add(here)
        try:
            while True:
                here[1].clear()
                ended = self._end_published  # before the events, of which the end is the last
                for event in self.events(after):
                    after = event["number"]
                    yield event
                if ended:
                    return
                await here[1].wait()
        finally:
            with self._lock:
                self._changed.discard(here)

    async def wait(self) -> Job:
        """Until it has ended."""
        async for _ in self.follow(self._events[-1]["number"] if self._events else 0):
            pass
        return self
