"""What all tests share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from diptych.core import devices


def pytest_collection_finish() -> None:
    """What was imported and collected stays: the garbage collector need not look through all of it again and again. And
    it looks less often: in tests of models, it took a tenth of the processor's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 20)  # by default 700, 10, 10


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests keep text embeddings and downloads apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIPTYCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def same_arithmetic() -> Iterator[None]:
    """Where a processor has bfloat16, tests compute in float32 all the same, as they do elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "CPU_BF16", ())
        yield
