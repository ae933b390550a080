"""Classes in the place of text: a prompt is a number, or a name that stands for one (ADM, latent-diffusion)."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from diptych.core.config import Config
from diptych.core.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ClassConfig(Config):
    """Which classes a model knows."""

    renamed: ClassVar[dict[str, str]] = {"named": "names_from_captions"}

    kind: Literal["class"] = "class"
    """Which reader of prompts this is."""
    classes: int = 1000
    """How many may be asked for, by the numbers 0, 1, ..."""
    null: int | None = None
    """Number of the class that stands for none, which the model saw where the class was dropped; none if it has none,
    and then nothing can be guided."""
    names: tuple[str, ...] = ()
    """A name for each class, if they have names."""
    names_from_captions: bool = False
    """Whether the captions of the training data, sorted, are the names: training puts them into `names`."""

    def check(self) -> None:
        self.require(self.classes >= 1, "classes", "be at least 1")
        self.require(self.null is None or self.null >= 0, "null", "be at least 0, or none")
        self.require(len(self.names) in (0, self.classes), "names", f"be one for each of the {self.classes} classes")

    def learned(self, captions: Iterable[str]) -> ClassConfig:
        """With the names that captions say, if it has none and they are to be learned. A `UserError` where they are not
        as many as the classes."""
        if not self.names_from_captions or self.names:
            return self
        found = sorted(set(captions))
        if len(found) != self.classes:
            raise UserError(
                f"the training data name {len(found)} classes and the model has {self.classes}: set text.classes, "
                "text.null and the network's classes, or choose other data"
            )
        return dataclasses.replace(self, names=tuple(found))

    def fitting(self) -> Callable[[str], str]:
        """What gives a prompt back if it is a class; a `UserError` where it is none."""
        labels = ClassLabels(self)

        def fit(prompt: str) -> str:
            labels.number(prompt)
            return prompt

        return fit

    def reader(self, folder: Path | None = None, device: str | torch.device = "cpu") -> ClassLabels:
        """As `build_reader`."""
        return ClassLabels(self)

    @property
    def entries(self) -> int:
        """Rows of the embedding that a network needs: the null class may stand behind the others."""
        return max(self.classes, 0 if self.null is None else self.null + 1)


class LabelEmbedding(NamedTuple):
    """Prompts as numbers of classes."""

    label: Tensor
    """(B,) int64."""
    nothing: int | None = None
    """The null class, or none."""

    def zeroed(self, dropped: Tensor, tokens: str = "all") -> LabelEmbedding:
        """The rows that dropped (B,) bool marks become the null class. Raises a `UserError` where there is none.

        tokens: as for text; a class is one.
        """
        dropped = dropped.to(self.label.device)
        if self.nothing is None:
            if dropped.any():
                raise UserError(
                    "these classes have none that stands for no class: set its number as text.null, or drop none"
                )
            return self
        return LabelEmbedding(self.label.masked_fill(dropped, self.nothing), self.nothing)

    def null(self) -> LabelEmbedding:
        """As many null classes."""
        return self.zeroed(torch.ones(len(self.label), dtype=torch.bool))

    def cond(self, shape: Any, device: torch.device) -> dict[str, Tensor]:
        """The keyword arguments of a network; nothing for one that was not built to be told a class."""
        return {"label": self.label.to(device)} if getattr(shape, "classes", None) is not None else {}


class ClassLabels:
    """Reads prompts as classes; nothing in it is learned."""

    def __init__(self, config: ClassConfig) -> None:
        self.config = config
        self._numbers = {plain(name): number for number, name in reversed(list(enumerate(config.names)))}

    def encode(self, prompts: Sequence[str]) -> LabelEmbedding:
        """Each prompt a number ("207") or a name, in any case; "" is the null class. A `UserError` names what is no
        class."""
        return LabelEmbedding(torch.tensor([self.number(prompt) for prompt in prompts]), self.config.null)

    def number(self, prompt: str) -> int:
        """The class that a prompt means."""
        config, word = self.config, plain(prompt)
        if not word:
            if config.null is None:
                raise UserError(f"the empty prompt is no class: this model was always told one of {config.classes}")
            return config.null
        if word in self._numbers:
            return self._numbers[word]
        if re.fullmatch("[0-9]{1,9}", word) and int(word) < config.classes:
            return int(word)
        known = f"a number from 0 to {config.classes - 1}" + (" or a name" if config.names else "")
        near = difflib.get_close_matches(word, self._numbers, n=3)
        hint = f" such as {', '.join(repr(config.names[self._numbers[one]]) for one in near)}" if near else ""
        raise UserError(f"{prompt!r} is no class of this model: give {known}{hint}")


def plain(text: str) -> str:
    """A name or prompt as it is looked up."""
    return " ".join(text.split()).casefold()
