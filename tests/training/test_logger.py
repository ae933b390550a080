"""What a run says between its steps."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from diptych.core import progress
from diptych.training.logger import Journal


def test_a_bar_says_what_is_done_between_steps(tmp_path: Path) -> None:
    journal = Journal(tmp_path, step=3, steps=8)
    journal.bar.disable = False  # as on a terminal
    journal.advance(4, loss=0.5, images=8)
    before = journal.bar.tasks[journal.task].description
    with journal.doing("validating") as counted:
        assert journal.bar.tasks[journal.task].description == "validating"
        counted(32, 1024)
        assert journal.bar.tasks[journal.task].description == "validating (32 of 1,024)"
    assert journal.bar.tasks[journal.task].description == before and before.startswith("loss 0.5")


@pytest.mark.parametrize("main", [True, False])
def test_a_line_says_it_where_there_is_no_bar(
    main: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the main process alone."""
    monkeypatch.setattr(progress, "FIRST", 0.0)
    journal, before = Journal(tmp_path if main else None, step=0, steps=8), set(threading.enumerate())
    with journal.doing("validating"):
        for thread in set(threading.enumerate()) - before:
            thread.join()
    assert capsys.readouterr().err == ("validating\n" if main else "")


@pytest.mark.parametrize("main", [True, False])
def test_lines_count_it_where_there_is_no_bar(
    main: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "FIRST", 0.0)
    with Journal(tmp_path if main else None, step=0, steps=8).doing("validating") as counted:
        counted(32, 1024)
    assert ("validating: 32 of 1,024, " in capsys.readouterr().err) == main
