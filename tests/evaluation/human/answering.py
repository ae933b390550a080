"""Raters who answer as a function says."""

from __future__ import annotations

import secrets
from collections.abc import Callable

from diptych.evaluation.human.answer_store import AnswerStore, GivenAnswer
from diptych.evaluation.human.study_file import Ask, Task

FLIP = {"A": "B", "B": "A"}
Choose = Callable[[int, Task, Ask], str]
"""(rater from 1, task, question) -> choice in the study's order, as if nothing were flipped."""


def correct_or(choice: Choose) -> Choose:
    """Controls are answered correctly, all else by `choice`."""
    return lambda rater, task, ask: ask.correct[0] if ask.correct else choice(rater, task, ask)


def answer_all(store: AnswerStore, raters: int, choose: Choose, as_shown: bool = False) -> int:
    """All questions of so many raters, as their pages would send them; returns how many answers there are.

    as_shown: whether `choose` names the side where it was shown, not that of the study's order.
    """
    count = 0
    for rater in store.raters(raters):
        given = []
        for name, flipped in zip(rater.plan.tasks, rater.plan.flipped, strict=True):
            task = store.study.task[name]
            for ask in task.asks:
                choice = choose(rater.number + 1, task, ask)
                shown = FLIP.get(choice, choice) if flipped and not as_shown else choice
                given.append(GivenAnswer(secrets.token_hex(16), ask.id, shown, 1000))
        count += store.add(rater, given)
    return count
