"""What all tests share."""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Iterator

import pytest

from diptych.core import devices


def pytest_collection_finish() -> None:
    """What was imported and collected stays: the garbage collector need not look through all of it again and again. And
    it looks less often: in tests of models, it took a tenth of the processor's time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 20)  # by default 700, 10, 10


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`@pytest.mark.every(3)` leaves each third case of a test among the fast ones and marks the others slow.

    Of two `parametrize` the upper one turns faster: its number of cases and n must have no common divisor, or some of
    them are never fast. A case that is asked for by its name is always fast."""
    cases = defaultdict[tuple[pytest.Item | None, str], list[tuple[pytest.Item, pytest.Mark]]](list)
    for item in items:
        if mark := item.get_closest_marker("every"):
            cases[item.parent, getattr(item, "originalname", item.name)].append((item, mark))
    for several in cases.values():
        for number, (item, mark) in enumerate(several):
            step, first = (*mark.args, 0)[:2]
            if len(several) > 1 and number % step != first:
                item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests keep text embeddings and downloads apart from the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIPTYCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("DIPTYCH_ENGINE", "pytorch")  # most models here are used once: compiling them takes longer
        yield


@pytest.fixture(scope="session", autouse=True)
def same_arithmetic() -> Iterator[None]:
    """Where a processor has bfloat16, tests compute in float32 all the same, as they do elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "CPU_BF16", ())
        yield
