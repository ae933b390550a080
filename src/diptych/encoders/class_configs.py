"""Configs of the encoders of layouts and of classes.

`build` imports the encoder's module when it is called, as in `configs.py`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import nn

from diptych.core.config import Config
from diptych.core.errors import UserError
from diptych.networks.transformer_config import TextTransformerConfig

if TYPE_CHECKING:
    from diptych.encoders.classes import ClassLabels
    from diptych.encoders.layout import LayoutTransformer


class LearnedEncoderConfig(Config):
    """Base of the configs of encoders that are trained with the model."""

    network: TextTransformerConfig

    @property
    def width(self) -> int:
        return self.network.width

    def build_network(self) -> nn.Module:
        """The transformer with random weights."""
        return self.network.build()


@dataclass(frozen=True, kw_only=True)
class LayoutConfig(LearnedEncoderConfig):
    """An encoder of layouts. The defaults are the paper's: 30 boxes, 16 layers, 512 wide (table 17), and the grid and
    the numbers of the tokens as in its repository."""

    kind: Literal["layout"] = "layout"
    """Which encoder of prompts this is."""
    network: TextTransformerConfig = TextTransformerConfig(
        vocabulary=8192, max_tokens=92, width=512, layers=16, heads=8
    )
    """The transformer. `network.max_tokens` is three for each box, or two more: then the corners of the crop (always
    the whole image here) stand at the end, as the paper has them for its random crops."""
    classes: tuple[str, ...] = ()
    """Names of what boxes may hold; none for all that the layouts of the training data name."""
    boxes: int = 30
    """The most boxes of a layout."""
    grid: int = 90
    """Places of a corner from left to right, and from top to bottom."""
    shared: bool = True
    """Classes have the numbers of the first corners, and their place alone tells them apart, as published; else each
    has a token of its own."""
    joined: bool = False
    """A box is one token, the sum of the embeddings of its three, instead of three tokens in a row."""
    padded: bool = True
    """Pad every layout to `boxes` without a mask, as published."""

    @property
    def nothing(self) -> int:
        """The token of padding: a box that is not there."""
        return self.network.vocabulary - 1

    @property
    def first_class(self) -> int:
        """The token of class 0."""
        return 0 if self.shared else self.grid**2

    @property
    def room(self) -> int:
        """Classes for which there are tokens."""
        return self.nothing - self.first_class

    def fitting(self) -> Callable[[str], str]:
        """A function that cuts a layout to its `boxes` largest boxes; it raises a `UserError` where it is none."""
        from diptych.encoders.layout import fitted_layout

        return functools.partial(fitted_layout, boxes=self.boxes)

    def check(self) -> None:
        self.require_at_least(1, "boxes")
        self.require_at_least(2, "grid")
        allowed = (self.boxes,) if self.joined else (3 * self.boxes, 3 * self.boxes + 2)
        if self.network.max_tokens not in allowed:
            raise UserError(
                f"LayoutConfig.network.max_tokens must be {' or '.join(map(str, allowed))} for {self.boxes} boxes, "
                f"not {self.network.max_tokens}"
            )
        if self.grid**2 > self.nothing or self.room < len(self.classes):
            raise UserError(
                f"LayoutConfig.network.vocabulary ({self.network.vocabulary}) is too small for {self.grid**2} corners "
                f"and {len(self.classes)} classes"
            )
        unique = len({normalize_name(name) for name in self.classes}) == len(self.classes)
        self.require(unique, "classes", "name each class once")

    def build(self, folder: Path | None = None, device: str | torch.device = "cpu") -> LayoutTransformer:
        """The encoder; `folder` holds its classes and weights, which are random where it is none."""
        from diptych.encoders.layout import load_layout

        return load_layout(self, folder).to(device)

    def from_captions(self, captions: Callable[..., list[str]]) -> LayoutTransformer:
        """An encoder with random weights; its classes: named, or those in the layouts `captions()`."""
        from diptych.encoders.layout import LayoutTransformer, class_names

        return LayoutTransformer(self, () if self.classes else class_names(captions()))


@dataclass(frozen=True, kw_only=True)
class ClassConfig(Config):
    """The classes of a class-conditional model."""

    renamed: ClassVar[dict[str, str]] = {"named": "names_from_captions"}

    kind: Literal["class"] = "class"
    """Which encoder of prompts this is."""
    classes: int = 1000
    """Number of classes, which prompts name as 0, 1, ..."""
    null: int | None = None
    """Number of the null class of classifier-free guidance; none where the model has none and cannot be guided."""
    names: tuple[str, ...] = ()
    """A name for each class, if they have names."""
    names_from_captions: bool = False
    """Whether the captions of the training data, sorted, are the names: training puts them into `names`."""

    def check(self) -> None:
        self.require_at_least(1, "classes")
        self.require(self.null is None or self.null >= 0, "null", "be at least 0, or none")
        self.require(len(self.names) in (0, self.classes), "names", f"be one for each of the {self.classes} classes")

    def fitting(self) -> Callable[[str], str] | None:
        """A function that returns a class's name and raises a `UserError` for others; none before names are known."""
        return None if self.names_from_captions and not self.names else self.build().fit

    def build(self, folder: Path | None = None, device: str | torch.device = "cpu") -> ClassLabels:
        from diptych.encoders.classes import ClassLabels

        return ClassLabels(self)

    @property
    def entries(self) -> int:
        """Rows of the embedding that a network needs: the null class may stand behind the others."""
        return max(self.classes, 0 if self.null is None else self.null + 1)


def normalize_name(text: str) -> str:
    """A class's name as it is compared: single spaces, case folded."""
    return " ".join(text.split()).casefold()
