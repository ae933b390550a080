"""Progress on standard error: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from diptych.core.terminal import print_err

T = TypeVar("T")

FIRST = 2.0
"""Seconds before the first line."""
OFTEN, SELDOM = 5.0, 60.0
"""Least and greatest number of seconds between two lines."""


class Display(Progress):
    """A bar where standard error is a terminal. Elsewhere, as in a log file, lines with description, count, rate and
    time left, printed less often the longer the task runs."""

    def __init__(self, *columns: Any, console: Console) -> None:
        super().__init__(*columns, console=console, disable=not console.is_terminal)
        self.began: dict[TaskID, tuple[float, float]] = {}
        """Start time of each task, and its count then."""
        self.printed: dict[TaskID, float] = {}
        """Time of each task's last line."""

    def add_task(self, description: str, *arguments: Any, **options: Any) -> TaskID:
        task = super().add_task(description, *arguments, **options)
        self.began[task] = time.monotonic(), self._tasks[task].completed
        return task

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self.print_line(task_id)

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self.print_line(task_id)

    def reached(self, task_id: TaskID, completed: float) -> None:
        """Set the count. What an earlier run has done is left out of the rate."""
        since, before = self.began[task_id]
        self.began[task_id] = since, before + max(0, completed - self._tasks[task_id].completed)
        self.update(task_id, completed=completed)

    def print_line(self, task_id: TaskID) -> None:
        """Print a line, where there is no bar and the last line is old enough."""
        if not self.disable:
            return
        (since, _), now, task = self.began[task_id], time.monotonic(), self._tasks[task_id]
        done = task.total is not None and task.completed >= task.total
        last = self.printed.get(task_id)
        if last is None:
            due = now - since >= FIRST
        else:
            due = now - last >= (0.5 if done else min(max(OFTEN, (now - since) / 20), SELDOM))
        if due and task.completed:
            self.printed[task_id] = now
            print_err(self.line(task, now))

    def rate(self, task: Task, now: float) -> float:
        """Steps a second since the task began; what was done before is left out."""
        since, before = self.began[task.id]
        return (task.completed - before) / max(now - since, 1e-9)

    def line(self, task: Task, now: float) -> str:
        """`embedding captions: 1,280 of 41,000, 31.2/s, 21:13 left`."""
        rate = self.rate(task, now)
        text = f"{task.description}: {task.completed:,.0f}"
        if task.total is not None:
            text += f" of {task.total:,.0f}"
        text += f", {per_second(rate)}"
        if task.total is not None and rate > 0:
            text += f", {clock((task.total - task.completed) / rate)} left"
        return text


class RateColumn(ProgressColumn):
    """`31.2/s`, since the task began."""

    def __init__(self, display: Display) -> None:
        super().__init__()
        self.display = display

    def render(self, task: Task) -> Text:
        return Text(per_second(self.display.rate(task, time.monotonic())))


def per_second(rate: float) -> str:
    """`0.0312/s`, `31.2/s`, `1,234/s`."""
    return f"{rate:.3g}/s" if rate < 100 else f"{rate:,.0f}/s"


def clock(seconds: float) -> str:
    """75 seconds -> `1:15`, 3700 -> `1:01:40`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def bar(rate: bool = False) -> Display:
    """A display for tasks whose steps are counted by hand: `with bar() as progress: progress.add_task(...)`.

    rate: show steps a second beside the bar; lines always have them.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    display = Display(*columns, console=Console(stderr=True))
    if rate:
        display.columns = (*columns, RateColumn(display))
    return display


@contextlib.contextmanager
def waiting(description: str, *, in_files: bool = True) -> Iterator[None]:
    """Within, a line says what is waited for, if that takes longer than the first line of a count would; without
    `in_files` only on a terminal, where somebody waits, and of torchrun's processes by the first."""
    if not in_files and (os.environ.get("RANK", "0") != "0" or not sys.stderr.isatty()):
        yield
        return
    timer = threading.Timer(FIRST, print_err, [description])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield each item and count them; `total` where `items` has no length."""
    with bar() as progress:
        if total is None and hasattr(items, "__len__"):
            total = len(items)  # type: ignore[arg-type]
        task = progress.add_task(description, total=total)
        for item in items:
            yield item
            progress.advance(task)
