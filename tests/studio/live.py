"""A studio that listens on a port of this machine, for clients that bring their own HTTP."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from diptych.serving.addresses import Address, listen
from diptych.studio.application import studio_application
from diptych.studio.engine import Engine
from tests.studio.conftest import opened


@dataclass(frozen=True)
class Live:
    """A server in a thread."""

    engine: Engine
    address: Address

    @property
    def url(self) -> str:
        return self.address.url


@contextlib.contextmanager
def live_studio(folder: Path, token: str | None = None) -> Iterator[Live]:
    import uvicorn

    engine = opened(folder)
    listening, address = listen(Address("127.0.0.1", 0))
    application = studio_application(engine, address, token)
    config = uvicorn.Config(application, log_level="error", access_log=False, ws="none", lifespan="off")  # type: ignore[arg-type]
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: server.run(sockets=[listening]), daemon=True)
    thread.start()
    engine.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield Live(engine, address)
    finally:
        server.should_exit = True
        thread.join(timeout=10)
        engine.close()
        engine.history.close()
