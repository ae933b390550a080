"""Progress where there is no terminal: lines, neither none nor a flood."""

from __future__ import annotations

import threading

import pytest

from diptych.core import progress
from diptych.core.progress import bar, clock, track, waiting


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clocked(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_short_work_is_silent(clocked: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in track(range(100), "short"):
        clocked.now += 0.015
    assert capsys.readouterr().err == ""


def test_long_work_says_what_how_far_how_fast_and_how_long_still(
    clocked: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in track(range(40), "painting"):
        clocked.now += 0.5
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "painting: 4 of 40, 2/s, 0:18 left"
    assert lines[-1] == "painting: 40 of 40, 2/s, 0:00 left"
    assert len(lines) == 5, "every five seconds, and at the end"


def test_a_day_of_work_is_no_flood_and_never_silent_for_long(
    clocked: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in track(range(86_400), "training"):
        clocked.now += 1
    assert 86_400 / 61 < len(capsys.readouterr().err.splitlines()) < 86_400 / 50


def test_what_was_done_before_does_not_count_for_the_rate(clocked: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with bar() as display:
        task = display.add_task("encoding", total=1000)
        display.reached(task, 800)
        for _ in range(8):
            clocked.now += 1
            display.advance(task, 10)
    assert "encoding: 820 of 1,000, 10/s, 0:18 left" in capsys.readouterr().err


def test_work_of_unknown_length_is_counted(clocked: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in track(iter(range(10)), "reading"):
        clocked.now += 1
    assert capsys.readouterr().err.splitlines()[0] == "reading: 2, 1/s"


def test_times_are_read_at_a_glance() -> None:
    assert [clock(seconds) for seconds in (0, 75, 3700)] == ["0:00", "1:15", "1:01:40"]


@pytest.mark.parametrize(("terminal", "in_files", "said"), [(0, True, True), (0, False, False), (1, False, True)])
def test_what_is_waited_for_is_said_where_somebody_waits(
    terminal: int, in_files: bool, said: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "FIRST", 0.0)
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: bool(terminal))
    before = set(threading.enumerate())
    with waiting("loading latent", in_files=in_files):
        for thread in set(threading.enumerate()) - before:
            thread.join()
    assert capsys.readouterr().err == ("loading latent\n" if said else "")
    monkeypatch.setenv("RANK", "1")
    with waiting("loading latent", in_files=False):
        assert not set(threading.enumerate()) - before
    monkeypatch.setattr(progress, "FIRST", 60.0)
    with waiting("loading latent"):
        pass
    assert capsys.readouterr().err == ""
