"""What each rater is asked, in which order, and on which side each image is: drawn once, by a seed, and recorded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diptych.evaluation.human.questions import QUESTIONS
from diptych.evaluation.human.study_file import Batch, HumanStudy


@dataclass(frozen=True)
class RaterPlan:
    """The tasks of one rater, in order."""

    batch: int
    tasks: tuple[str, ...]
    flipped: tuple[bool, ...]
    """Of each task: whether the second side is shown first, as A."""

    def to_json(self) -> dict[str, Any]:
        return {"batch": self.batch, "tasks": list(self.tasks), "flipped": [int(one) for one in self.flipped]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RaterPlan:
        return cls(values["batch"], tuple(values["tasks"]), tuple(map(bool, values["flipped"])))


def plan_rater(study: HumanStudy, number: int) -> RaterPlan:
    """The plan of rater `number`, from 0. Raters take the batches in turn; a batch's tasks are shuffled, and its
    controls are spread among them. Of what has two sides half is flipped, one more or less, and half of the controls:
    who always answers A is right in half of them."""
    index = number % len(study.batches)
    draw = np.random.Generator(np.random.PCG64([study.seed, 2, number]))
    order = interleaved(study.batches[index], draw)
    flipped = [False] * len(order)
    for controls in (False, True):
        places = [n for n, name in enumerate(order) if bool(study.task[name].control) is controls]
        sided = [n for n in places if len(study.task[order[n]].sides) == 2]
        for n, flip in zip(sided, draw.permutation(np.arange(len(sided)) % 2 == draw.integers(2)), strict=True):
            flipped[n] = bool(flip)
    return RaterPlan(index, tuple(order), tuple(flipped))


def interleaved(batch: Batch, draw: np.random.Generator) -> list[str]:
    """A batch in random order: its controls fall into equal stretches of the tasks, one in each, anywhere in it."""
    tasks = [batch.tasks[i] for i in draw.permutation(len(batch.tasks))]
    controls = [batch.controls[i] for i in draw.permutation(len(batch.controls))]
    if not controls:
        return tasks
    order: list[str] = []
    for control, stretch in zip(controls, np.array_split(np.arange(len(tasks)), len(controls)), strict=True):
        part = [tasks[i] for i in stretch]
        part.insert(int(draw.integers(len(part) + 1)), control)
        order += part
    return order


def shown_tasks(study: HumanStudy, plan: RaterPlan) -> list[dict[str, Any]]:
    """A rater's screens as the page gets them: names of images, words of questions; nothing of models and controls."""
    screens = []
    for name, flipped in zip(plan.tasks, plan.flipped, strict=True):
        task = study.task[name]
        kinds = [QUESTIONS[ask.kind] for ask in task.asks]
        sides = [list(side.images) for side in task.sides]
        screens.append(
            {
                "id": name,
                "prompt": task.prompt if any(kind.shows_prompt for kind in kinds) else None,
                "sides": sides[::-1] if flipped else sides,
                "questions": [
                    {
                        "id": ask.id,
                        "text": kind.text.replace("{caption}", task.prompt),
                        "choices": [{"value": value, "label": label} for value, label in kind.choices],
                    }
                    for ask, kind in zip(task.asks, kinds, strict=True)
                ],
            }
        )
    return screens
