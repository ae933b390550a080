"""Class conditioning: a prompt is the number or the name of a class (ADM, latent-diffusion)."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diptych.core.devices import sent
from diptych.core.errors import UserError
from diptych.encoders.class_configs import ClassConfig, normalize_name


class LabelEmbedding(NamedTuple):
    """Class labels of prompts."""

    label: Tensor
    """(B,) int64."""
    nothing: int | None = None
    """The null class, or none."""

    def zeroed(self, dropped: Tensor, tokens: str = "all") -> LabelEmbedding:
        """The rows that dropped (B,) bool marks become the null class. Raises a `UserError` where there is none.

        tokens: as for text; a class is one.
        """
        if self.nothing is None:
            if dropped.any():  # labels and what is dropped are on the CPU
                raise UserError("there is no null class: set its number as text.null, or drop none")
            return self
        dropped = sent(dropped, self.label.device)
        return LabelEmbedding(self.label.masked_fill(dropped, self.nothing), self.nothing)

    def null(self) -> LabelEmbedding:
        """As many null classes."""
        return self.zeroed(torch.ones(len(self.label), dtype=torch.bool))

    def cond(self, shape: Any, device: torch.device) -> dict[str, Tensor]:
        """The keyword arguments of a network of this config; none where it is not class-conditional."""
        return {"label": sent(self.label, device)} if getattr(shape, "classes", None) is not None else {}


class ClassLabels:
    """The encoder of prompts as class labels; it has no parameters."""

    def __init__(self, config: ClassConfig) -> None:
        self.config = config
        self._numbers = {normalize_name(name): number for number, name in reversed(list(enumerate(config.names)))}

    def encode(self, prompts: Sequence[str]) -> LabelEmbedding:
        """Each prompt a number ("207") or a name, in any case; "" is the null class. A `UserError` names what is no
        class."""
        return LabelEmbedding(torch.tensor([self.number(prompt) for prompt in prompts]), self.config.null)

    def fit(self, prompt: str) -> str:
        """The prompt, if it names a class; a `UserError` where it does not."""
        self.number(prompt)
        return prompt

    def number(self, prompt: str) -> int:
        """The number of the class that a prompt names. A `UserError` where it names none."""
        config, word = self.config, normalize_name(prompt)
        if not word:
            if config.null is None:
                raise UserError(f"the empty prompt is no class: this model was trained on one of {config.classes}")
            return config.null
        if word in self._numbers:
            return self._numbers[word]
        if re.fullmatch("[0-9]{1,9}", word) and int(word) < config.classes:
            return int(word)
        allowed = f"a number from 0 to {config.classes - 1}" + (" or a name" if config.names else "")
        near = difflib.get_close_matches(word, self._numbers, n=3)
        hint = f" such as {', '.join(repr(config.names[self._numbers[one]]) for one in near)}" if near else ""
        raise UserError(f"{prompt!r} is no class of this model: give {allowed}{hint}")


def with_names(config: ClassConfig, captions: Iterable[str]) -> ClassConfig:
    """The config with the captions as names, where `names_from_captions` asks for that. A `UserError` unless there are
    as many as classes."""
    if not config.names_from_captions or config.names:
        return config
    names = sorted(set(captions))
    if len(names) != config.classes:
        raise UserError(
            f"the training data name {len(names)} classes and the model has {config.classes}: set text.classes, "
            "text.null and the network's classes, or choose other data"
        )
    return dataclasses.replace(config, names=tuple(names))
