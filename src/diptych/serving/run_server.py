"""Running an application: what must be installed, and uvicorn with few settings."""

from __future__ import annotations

import importlib.util
import socket
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from diptych.core.errors import UserError

NEEDS = ("fastapi", "uvicorn", "python_multipart")
HOW = "make install, or pip install 'diptych[serve]'"
MOST_REQUESTS = 1024
"""Requests at once; more get status 503."""


def require_serve() -> None:
    """Raise a `UserError` where what serves is not installed."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"a server needs {' and '.join(missing).replace('_', '-')}: {HOW}")


def run(application: Any, listening: socket.socket, on_exit: Callable[[], None] | None = None) -> None:
    """Answer requests on a socket until interrupted. Nothing of a request is logged: links hold tokens.

    on_exit: called in a thread of its own at the first signal to end, so that answers that wait for something end.
    """
    import uvicorn

    class Server(uvicorn.Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            if on_exit is not None and not self.should_exit:
                threading.Thread(target=on_exit, daemon=True).start()
            super().handle_exit(sig, frame)

    config = uvicorn.Config(
        application,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        limit_concurrency=MOST_REQUESTS,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=3,
    )
    Server(config).run(sockets=[listening])
