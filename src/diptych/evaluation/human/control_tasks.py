"""Control questions: tasks whose answer is known, built from the study's own images and mixed with the others.

- photorealism: a reference image against the same image degraded (`study_images.degrade`); the intact one is right.
- alignment: a reference image with the caption of another, which shares no word with its own where there is one;
  "no" is right. And, in turn, a reference image with its own caption; "no" is wrong. So no one passes who always
  answers the same.
- set-quality: a model's set against the same set degraded. set-alignment: a model's set for the prompt against its set
  for another prompt, chosen as above.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from diptych.core.errors import UserError
from diptych.evaluation.human.questions import REFERENCE, TASK_KINDS
from diptych.evaluation.human.study_file import Ask, Side, Task
from diptych.evaluation.human.study_images import StudyImages

if TYPE_CHECKING:
    from diptych.evaluation.human.make_study import Shown

STOP_WORDS = frozenset("a an and at by for from in is it its of on one or some the this to two with".split())
"""Words that two captions may share and yet be about different things."""


class Controls:
    """Makes the control tasks of batches, each other ones."""

    def __init__(self, images: StudyImages, seed: int) -> None:
        self.images, self.seed, self.made = images, seed, 0
        self.draw = np.random.Generator(np.random.PCG64([seed, 1]))

    def coco(self, part: str, shown: Sequence[Shown], count: int) -> list[Task]:
        """`count` controls of a batch, from pairs that it does not ask about where there are others."""
        tasks = []
        for turn, one in enumerate(self._some(shown, count)):
            (path,) = one.files[REFERENCE]
            intact = Side(source=REFERENCE, images=(self.images.add(path),))
            if part == "photorealism":
                worse = Side(source="degraded", images=(self.images.add(path, degraded=True),))
                how = "reference against itself degraded"
                tasks.append(self._task(one, one.prompt, (intact, worse), part, ("A",), how))
            elif turn % 2:
                how = "reference with its own caption"
                tasks.append(self._task(one, one.prompt, (intact,), part, ("yes", "somewhat"), how))
            else:
                how = "reference with the caption of another image"
                tasks.append(self._task(one, self._other(one, shown).prompt, (intact,), part, ("no",), how))
        return tasks

    def drawbench(self, shown: Sequence[Shown], models: Sequence[str], count: int) -> list[Task]:
        """`count` controls of a batch, from prompts of other categories where there are others."""
        tasks = []
        for turn, one in enumerate(self._some(shown, count)):
            model = models[turn // 2 % len(models)]
            own = Side(source=model, images=tuple(map(self.images.add, one.files[model])))
            if turn % 2:
                other = self._other(one, shown)
                foreign = Side(source="other prompt", images=tuple(map(self.images.add, other.files[model])))
                how = f"{model}'s set for the prompt against its set for another"
                tasks.append(self._task(one, one.prompt, (own, foreign), "set-alignment", ("A",), how))
            else:
                files = one.files[model]
                worse = Side(source="degraded", images=tuple(self.images.add(path, degraded=True) for path in files))
                how = f"{model}'s set against itself degraded"
                tasks.append(self._task(one, one.prompt, (own, worse), "set-quality", ("A",), how))
        return tasks

    def _some(self, shown: Sequence[Shown], count: int) -> list[Shown]:
        if count and len(shown) < 2:
            raise UserError("control questions need at least two prompts: give more, or --controls 0")
        order = [int(i) for i in self.draw.permutation(len(shown))]
        return [shown[order[n % len(order)]] for n in range(count)]

    def _other(self, one: Shown, shown: Sequence[Shown]) -> Shown:
        """One with another prompt, of those that share the fewest words with this one's."""
        mine = words_of(one.prompt)
        others = [other for other in shown if other.prompt.casefold() != one.prompt.casefold()]
        if not others:
            raise UserError(f"all prompts are {one.prompt!r}: give others too, or --controls 0")
        shared = [len(mine & words_of(other.prompt)) for other in others]
        nearest = [other for other, number in zip(others, shared, strict=True) if number == min(shared)]
        return nearest[int(self.draw.integers(len(nearest)))]

    def _task(
        self, one: Shown, prompt: str, sides: tuple[Side, ...], kind: str, correct: tuple[str, ...], how: str
    ) -> Task:
        name = opaque_id(self.seed, f"control {self.made}")
        self.made += 1
        # As many questions as other tasks have, one of them scored: else a control could be told from them.
        kinds = next(kinds for kinds in TASK_KINDS if kind in kinds)
        asks = tuple(
            Ask(id=f"{name}-{n}", kind=one, correct=correct if one == kind else ()) for n, one in enumerate(kinds, 1)
        )
        return Task(id=name, prompt=prompt, category=one.category, sides=sides, asks=asks, control=how)


def words_of(prompt: str) -> set[str]:
    """The words that say what a caption is about, without an s at their end."""
    words = re.findall(r"\w+", prompt.casefold())
    return {word.removesuffix("s") for word in words if word not in STOP_WORDS}


def opaque_id(seed: int, name: str) -> str:
    """Twelve letters that say nothing to a rater: a control looks like any other task."""
    return hashlib.sha256(f"{seed} {name}".encode()).hexdigest()[:12]
