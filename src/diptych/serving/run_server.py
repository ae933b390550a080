"""Running an application: what must be installed, and uvicorn with few settings."""

from __future__ import annotations

import importlib.util
import socket
from typing import Any

from diptych.core.errors import UserError

NEEDS = ("fastapi", "uvicorn")
HOW = "make install, or pip install 'diptych[serve]'"
MOST_REQUESTS = 1024
"""Requests at once; more get status 503."""


def require_serve() -> None:
    """Raise a `UserError` where what serves is not installed."""
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"a server needs {' and '.join(missing)}: {HOW}")


def run(application: Any, listening: socket.socket) -> None:
    """Answer requests on a socket until interrupted. Nothing of a request is logged: links hold tokens."""
    import uvicorn

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
    uvicorn.Server(config).run(sockets=[listening])
