"""Shares of one work by processes that torchrun starts: the first goes on when all are done, and never before."""

from __future__ import annotations

import itertools
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from diptych.core.errors import UserError
from diptych.training.distributed import Shares


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)


def three() -> list[Shares]:
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(lambda rank: Shares(rank, 3), range(3)))


def test_the_first_goes_on_when_all_are_done(place: None) -> None:
    first, *others = three()
    events: list[Any] = []
    waiter = threading.Thread(target=lambda: events.append(first.done(itertools.count().__next__, pause=0.005)))
    waiter.start()
    for number, other in enumerate(others):
        time.sleep(0.05)
        events.append(number)
        assert other.done(lambda: 0) is False, "who is not the first leaves at once"
    waiter.join(10)
    assert events == [0, 1, True]


def test_who_waits_for_others_that_do_nothing_says_which(place: None) -> None:
    first, second, _ = three()
    second.done(lambda: 0)
    with pytest.raises(UserError, match=r"of 3 processes, 2 have done nothing for 0\.001 minutes: give the same"):
        first.done(lambda: 7, patience=0.06, pause=0.01)


def test_progress_of_others_is_waited_for_however_long_it_takes(place: None) -> None:
    first, *others = three()
    until = time.monotonic() + 0.2
    timer = threading.Timer(0.2, lambda: [other.done(lambda: 0) for other in others])
    timer.start()
    assert first.done(itertools.count().__next__, patience=0.05, pause=0.01) and time.monotonic() >= until


def test_one_process_waits_for_nobody() -> None:
    assert Shares(0, 1).done(lambda: 0) is True


def test_processes_without_an_address_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert "MASTER_ADDR" not in os.environ
    with pytest.raises(UserError, match="start all processes by torchrun"):
        Shares(1, 2)
