"""`study.json`: all that a study asks, of what, and the order of nothing: that is each rater's own."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from diptych.core.errors import UserError
from diptych.core.json_files import read_named_json
from diptych.evaluation.human.questions import QUESTIONS

FILE, IMAGES = "study.json", "images"
FORMAT = "diptych-human-study"
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Side:
    """What is on one side of a comparison, or what is rated."""

    source: str
    """A model's name, or `reference`; raters never see it."""
    images: tuple[str, ...]
    """Names of files in `images/` without their end."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """A question about a task."""

    id: str
    kind: str
    """Of `QUESTIONS`."""
    correct: tuple[str, ...] = ()
    """For a control: the answers that are correct, `A` being the first side; none for what is measured."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One screen: one or two sides, and one or two questions about them."""

    id: str
    prompt: str
    category: str
    sides: tuple[Side, ...]
    asks: tuple[Ask, ...]
    control: str = ""
    """For a control: how it was made, in words."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one rater is asked."""

    part: str
    """What its tasks are about, for people: "photorealism", "Colors"."""
    tasks: tuple[str, ...]
    controls: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class HumanStudy:
    """A whole study."""

    protocol: str
    models: tuple[str, ...]
    seed: int
    threshold: float
    settings: dict[str, Any]
    """What decided its tasks, for the report."""
    tasks: tuple[Task, ...]
    batches: tuple[Batch, ...]
    images: tuple[str, ...]
    task: dict[str, Task] = field(init=False, repr=False, compare=False)
    ask: dict[str, tuple[Task, Ask]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "task", {task.id: task for task in self.tasks})
        object.__setattr__(self, "ask", {ask.id: (task, ask) for task in self.tasks for ask in task.asks})

    @property
    def id(self) -> str:
        """A hash of all of it: answers name it, so that those of another study are refused."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        values = {one.name: getattr(self, one.name) for one in fields(self) if one.init}
        parts = {name: [asdict(one) for one in values[name]] for name in ("tasks", "batches")}
        return {"format": FORMAT, "version": VERSION, **values, **parts}


def read_study(folder: Path) -> HumanStudy:
    """The study in a folder. A `UserError` where there is none, or it is damaged."""
    path = folder / FILE
    values = read_named_json(path, "a study", f"{folder} holds no {FILE}: `diptych study make` makes a study")
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise UserError(f"{path} is no study that `diptych study make` made")
    if values.get("version") != VERSION:
        raise UserError(f"{path} is of version {values.get('version')!r}, and {VERSION} is read: use its diptych")
    try:
        study = from_json(values)
        complete(study)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}): make the study again") from None
    return study


def from_json(values: dict[str, Any]) -> HumanStudy:
    tasks = tuple(
        Task(
            **{
                **task,
                "sides": tuple(Side(source=side["source"], images=tuple(side["images"])) for side in task["sides"]),
                "asks": tuple(Ask(**{**ask, "correct": tuple(ask["correct"])}) for ask in task["asks"]),
            }
        )
        for task in values["tasks"]
    )
    batches = tuple(
        Batch(part=batch["part"], tasks=tuple(batch["tasks"]), controls=tuple(batch["controls"]))
        for batch in values["batches"]
    )
    return HumanStudy(
        protocol=values["protocol"],
        models=tuple(values["models"]),
        seed=values["seed"],
        threshold=values["threshold"],
        settings=values["settings"],
        tasks=tasks,
        batches=batches,
        images=tuple(values["images"]),
    )


def complete(study: HumanStudy) -> None:
    """Raise a `ValueError` where something is named that is not there."""
    images = set(study.images)
    for task in study.tasks:
        for side in task.sides:
            if missing := set(side.images) - images:
                raise ValueError(f"task {task.id} has the image {min(missing)}, which is not listed")
        for ask in task.asks:
            if ask.kind not in QUESTIONS or len(task.sides) != 1 + QUESTIONS[ask.kind].compares:
                raise ValueError(f"question {ask.id} is of no known kind")
    for batch in study.batches:
        if missing := {*batch.tasks, *batch.controls} - study.task.keys():
            raise ValueError(f"a batch has the task {min(missing)}, which is not there")
