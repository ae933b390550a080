"""SIGTERM and SIGINT, kept until the step is done."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

NUMBERS = (signal.SIGTERM, signal.SIGINT)


class Interrupt:
    """`number` is the signal that came, or 0. A second signal acts at once, as if there were no handler."""

    def __init__(self) -> None:
        self.number = 0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():  # only there Python allows handlers
            yield
            return
        before = {number: signal.getsignal(number) for number in NUMBERS}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def note(number: int, frame: object) -> None:
            self.number = number
            restore()

        for number in NUMBERS:
            signal.signal(number, note)
        try:
            yield
        finally:
            restore()
