"""All ratings of a study as rows, and which raters are kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from diptych.evaluation.human.answer_store import AnswerStore, Rater
from diptych.evaluation.human.questions import POINTS, QUESTIONS, SHARES

FLIP = {"A": "B", "B": "A"}


@dataclass(frozen=True, kw_only=True)
class Rating:
    """One answer that counts, with all that is known of it."""

    rater: int
    part: str
    task: str
    category: str
    prompt: str
    kind: str
    """Of `QUESTIONS`."""
    control: str
    sides: tuple[str, ...]
    """The sources, in the study's order."""
    flipped: bool
    """Whether the second was shown first."""
    choice: str
    """In the study's order: `A` is the first of `sides`, wherever it was shown."""
    correct: bool | None
    """Of a control question; none elsewhere."""
    milliseconds: int
    at: str
    came: str

    @property
    def chosen(self) -> str:
        """The source that was preferred, `indifferent`, or the answer about alignment."""
        return {"A": self.sides[0], "B": self.sides[-1]}.get(self.choice, self.choice)

    @property
    def score(self) -> float:
        """Points of alignment from 0 to 100, or the first side's share of the win."""
        return SHARES[self.choice] if QUESTIONS[self.kind].compares else POINTS[self.choice]


@dataclass(frozen=True, kw_only=True)
class RaterScore:
    """What one rater has done."""

    rater: int
    """From 1."""
    part: str
    asked: int
    answered: int
    controls: int
    """Answered."""
    correct: int
    kept: bool
    seconds: float
    """Median of an answer."""


def read_ratings(store: AnswerStore) -> list[Rating]:
    """The answers that count, in the order in which they came."""
    study, raters = store.study, {rater.number: rater for rater in store.raters()}
    rows = []
    for number, question, choice, milliseconds, at, came in store.last_answers():
        task, ask = study.ask[question]
        plan = raters[number].plan
        flipped = plan.flipped[plan.tasks.index(task.id)]
        plain = FLIP.get(choice, choice) if flipped else choice
        rows.append(
            Rating(
                rater=number + 1,
                part=study.batches[plan.batch].part,
                task=task.id,
                category=task.category,
                prompt=task.prompt,
                kind=ask.kind,
                control=task.control,
                sides=tuple(side.source for side in task.sides),
                flipped=flipped,
                choice=plain,
                correct=plain in ask.correct if ask.correct else None,
                milliseconds=milliseconds,
                at=at,
                came=came,
            )
        )
    return rows


def score_raters(store: AnswerStore, ratings: Iterable[Rating]) -> list[RaterScore]:
    """The raters who answered anything. One is kept who answered controls, and the study's share of them correctly;
    where a batch has no controls, everyone is (Saharia et al. 2022, sections 4.1 and 4.3)."""
    study = store.study
    given: dict[int, list[Rating]] = defaultdict(list)
    for rating in ratings:
        given[rating.rater].append(rating)
    scores = []
    for rater in store.raters():
        own = given.get(rater.number + 1)
        if not own:
            continue
        controls = [rating.correct for rating in own if rating.correct is not None]
        correct = sum(controls)
        scores.append(
            RaterScore(
                rater=rater.number + 1,
                part=own[0].part,
                asked=questions_of(store, rater),
                answered=len(own),
                controls=len(controls),
                correct=correct,
                kept=not study.batches[rater.plan.batch].controls
                or (bool(controls) and correct >= study.threshold * len(controls)),
                seconds=median(rating.milliseconds for rating in own) / 1000,
            )
        )
    return scores


def questions_of(store: AnswerStore, rater: Rater) -> int:
    """How many questions a rater is asked, controls among them."""
    return sum(len(store.study.task[name].asks) for name in rater.plan.tasks)


def measured(ratings: Iterable[Rating], raters: Iterable[RaterScore]) -> list[Rating]:
    """The ratings that are results: by raters who are kept, of tasks that are no controls."""
    kept = {score.rater for score in raters if score.kept}
    return [rating for rating in ratings if rating.rater in kept and not rating.control]


def of_kind(ratings: Sequence[Rating], kind: str) -> list[Rating]:
    return [rating for rating in ratings if rating.kind == kind]
