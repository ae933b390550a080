"""Images that wait, bounded, and taken in turn from each client."""

from __future__ import annotations

import itertools
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Any

from diptych.studio.job import QueuedImage


class QueueOverflow(Exception):
    """There is no place for so many more."""


class FairQueue:
    """Round robin: the next image is of the client whose last one lies furthest back, so that who asks for many images
    does not hold up who asks for one. Who comes while images are generated is next after those who had none of them."""

    def __init__(self, most: int, most_of_client: int) -> None:
        self.most, self.most_of_client = most, most_of_client
        self._clients: OrderedDict[str, deque[QueuedImage]] = OrderedDict()
        self._turns: dict[str, int] = {}
        """Of each client that waits: which call of `take` gave it an image last."""
        self._turn = 0
        self._ready = threading.Condition()
        self._closed = False

    def __len__(self) -> int:
        with self._ready:
            return sum(map(len, self._clients.values()))

    def put(self, client: str, images: Iterable[QueuedImage]) -> None:
        """Append images of a client, all or none. Raises `QueueOverflow`."""
        images = list(images)
        with self._ready:
            waiting = self._clients.get(client, ())
            if len(self) + len(images) > self.most or len(waiting) + len(images) > self.most_of_client:
                raise QueueOverflow
            if images:
                self._turns.setdefault(client, self._turn - 1)
                self._clients.setdefault(client, deque()).extend(images)
            self._ready.notify()

    def take(self, most: int, key: Callable[[QueuedImage], Any]) -> list[QueuedImage]:
        """Wait for an image, and take with it up to `most` in all that have the same key, in turn from each client.
        Empty when the queue is closed."""
        with self._ready:
            while not self._clients and not self._closed:
                self._ready.wait()
            if self._closed:
                return []
            self._turn += 1
            taken = [self._next(lambda image: True)]
            wanted = key(taken[0])  # type: ignore[arg-type]
            while len(taken) < most and (more := self._next(lambda image: key(image) == wanted)) is not None:
                taken.append(more)
            return [image for image in taken if image is not None]

    def _next(self, fits: Callable[[QueuedImage], bool]) -> QueuedImage | None:
        """The first image that fits, of the first client who has one; that client then is last in turn."""
        for client in self._in_turn():
            waiting = self._clients[client]
            for image in waiting:
                if fits(image):
                    waiting.remove(image)
                    self._clients.move_to_end(client)
                    self._turns[client] = self._turn
                    if not waiting:
                        self._forget(client)
                    return image
        return None

    def _in_turn(self) -> list[str]:
        return sorted(self._clients, key=self._turns.__getitem__)

    def _forget(self, client: str) -> None:
        del self._clients[client], self._turns[client]

    def remove(self, fits: Callable[[QueuedImage], bool]) -> list[QueuedImage]:
        """Take out all images that fit."""
        with self._ready:
            removed = [image for waiting in self._clients.values() for image in waiting if fits(image)]
            for client in list(self._clients):
                left = deque(image for image in self._clients[client] if not fits(image))
                if left:
                    self._clients[client] = left
                else:
                    self._forget(client)
            return removed

    def position(self, fits: Callable[[QueuedImage], bool]) -> int:
        """How many images stand before the first that fits, at most: all those that wait without it."""
        with self._ready:
            queues = [list(self._clients[client]) for client in self._in_turn()]
        turns = (image for turn in itertools.zip_longest(*queues) for image in turn if image is not None)
        return next((place for place, image in enumerate(turns) if fits(image)), 0)

    def close(self) -> None:
        with self._ready:
            self._closed = True
            self._ready.notify_all()
