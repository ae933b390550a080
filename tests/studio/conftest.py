"""A studio over small untrained models, asked in process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")

from diptych.serving.addresses import Address
from diptych.studio.application import studio_application
from diptych.studio.engine import Engine
from diptych.studio.history import History
from diptych.studio.limits import Limits
from diptych.studio.model_pool import ModelPool
from tests.models import latents, stages

ADDRESS = Address("127.0.0.1", 80)
LIMITS = Limits(pixels=256 * 256, steps=200, count=8, queue=40, client_queue=24, uploads=8)


def pool(**options: Any) -> ModelPool:
    """`latent`, of 16 px, and `cascade`, of three stages; untrained."""
    models = {"latent": latents.system, "cascade": stages.cascade}
    return ModelPool({name: name for name in models}, lambda source: models[source](), **options)


def opened(folder: Path, limits: Limits = LIMITS, **options: Any) -> Engine:
    """An engine that is not started."""
    return Engine(pool(), History(folder), limits, **options)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = opened(tmp_path_factory.mktemp("studio"))
    engine.start()
    yield engine
    engine.close()
    engine.history.close()


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[Any]:
    from starlette.testclient import TestClient

    with TestClient(studio_application(engine, ADDRESS), base_url="http://127.0.0.1") as client:  # type: ignore[arg-type]
        yield client
