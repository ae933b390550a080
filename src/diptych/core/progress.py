"""How far long work has come, on standard error: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from diptych.core.terminal import say

T = TypeVar("T")

FIRST = 2.0
"""Seconds of work after which it is told of in a line: less is over before one reads it."""
OFTEN, SELDOM = 5.0, 60.0
"""Seconds between two lines, at first and after hours."""


class Display(Progress):
    """A bar where standard error is a terminal. Elsewhere, in a log file say, lines: what, how far, how fast, how long
    still. They come with the work's own steps, ever more seldom the longer it takes."""

    def __init__(self, *columns: Any, console: Console) -> None:
        super().__init__(*columns, console=console, disable=not console.is_terminal)
        self.began: dict[TaskID, tuple[float, float]] = {}
        """When each task began, and with how much done already."""
        self.told: dict[TaskID, float] = {}

    def add_task(self, description: str, *arguments: Any, **options: Any) -> TaskID:
        task = super().add_task(description, *arguments, **options)
        self.began[task] = time.monotonic(), self._tasks[task].completed
        return task

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self.tell(task_id)

    def update(self, task_id: TaskID, **changes: Any) -> None:
        super().update(task_id, **changes)
        self.tell(task_id)

    def reached(self, task_id: TaskID, completed: float) -> None:
        """So much is done, of it perhaps some by an earlier run, which does not count for the rate."""
        since, before = self.began[task_id]
        self.began[task_id] = since, before + max(0, completed - self._tasks[task_id].completed)
        self.update(task_id, completed=completed)

    def tell(self, task_id: TaskID) -> None:
        """A line, if there is no bar and it is time for one."""
        if not self.disable:
            return
        (since, _), now, task = self.began[task_id], time.monotonic(), self._tasks[task_id]
        done = task.total is not None and task.completed >= task.total
        last = self.told.get(task_id)
        if last is None:
            due = now - since >= FIRST
        else:
            due = now - last >= (0.5 if done else min(max(OFTEN, (now - since) / 20), SELDOM))
        if due and task.completed:
            self.told[task_id] = now
            say(self.line(task, now))

    def line(self, task: Task, now: float) -> str:
        """`embedding captions: 1,280 of 41,000, 31.2/s, 21:13 left`."""
        since, before = self.began[task.id]
        rate = (task.completed - before) / max(now - since, 1e-9)
        told = f"{task.description}: {task.completed:,.0f}"
        if task.total is not None:
            told += f" of {task.total:,.0f}"
        told += f", {rate:.3g}/s" if rate < 100 else f", {rate:,.0f}/s"
        if task.total is not None and rate > 0:
            told += f", {clock((task.total - task.completed) / rate)} left"
        return told


def clock(seconds: float) -> str:
    """75 seconds -> `1:15`, 3700 -> `1:01:40`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def bar() -> Display:
    """A display for tasks whose steps are counted by hand: `with bar() as progress: progress.add_task(...)`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Display(*columns, console=Console(stderr=True))


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield each item and count them; `total` where `items` has no length."""
    with bar() as progress:
        if total is None and hasattr(items, "__len__"):
            total = len(items)  # type: ignore[arg-type]
        task = progress.add_task(description, total=total)
        for item in items:
            yield item
            progress.advance(task)
