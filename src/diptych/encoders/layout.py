"""Layouts as prompts: boxes with the names of their objects (Rombach et al. 2022, section 4.3.1, appendix E.2.1).

A layout is written as text, a box after a name, boxes with `;` or on lines of their own:
`"dog 0.1 0.2 0.5 0.9; house 0.5 0.3 1 1"`. So it goes wherever a prompt goes. Each box is three tokens, its class, its
top left and its bottom right corner, and the transformer over them is trained with the U-Net.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diptych.core.config import read_json
from diptych.core.devices import sent
from diptych.core.disk import write_text
from diptych.core.errors import UserError
from diptych.encoders.base import TextEmbedding
from diptych.encoders.class_configs import LayoutConfig, normalize_name
from diptych.networks.transformer import TextTransformer
from diptych.weights.lazy import load_module

EXAMPLE = "dog 0.1 0.2 0.5 0.9; house 0.5 0.3 1 1"
NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
BOX = re.compile(rf"(.*\S)\s+({NUMBER})\s+({NUMBER})\s+({NUMBER})\s+({NUMBER})")


class Box(NamedTuple):
    """An object of a layout; left, top, right, bottom as fractions of the image's width and height."""

    name: str
    left: float
    top: float
    right: float
    bottom: float

    @property
    def area(self) -> float:
        return (self.right - self.left) * (self.bottom - self.top)

    def __str__(self) -> str:
        return " ".join([self.name, *(f"{side:.4g}" for side in self[1:])])


def parse_layout(text: str) -> list[Box]:
    """The boxes of a layout, in the order in which they are written; none of an empty text.

    Raises a `UserError` that names the box which is not `name left top right bottom`, leaves the image, or is empty.
    """
    boxes = []
    for part in re.split("[;\n]", text):
        if not part.strip():
            continue
        match = BOX.fullmatch(part.strip())
        if match is None:
            raise UserError(f"cannot read the box {part.strip()!r}: write it as {EXAMPLE!r}")
        box = Box(" ".join(match[1].split()), *map(float, match.groups()[1:]))
        if not all(0 <= side <= 1 for side in box[1:]):
            raise UserError(
                f"the box {part.strip()!r} leaves the image: left, top, right and bottom are fractions of its width "
                "and height from 0 to 1, not pixels"
            )
        if box.left >= box.right or box.top >= box.bottom:
            raise UserError(f"the box {part.strip()!r} is empty: its order is left, top, right, bottom")
        boxes.append(box)
    return boxes


def largest_first(layout: str) -> list[Box]:
    """The boxes of a layout, the largest first."""
    return sorted(parse_layout(layout), key=lambda box: (-box.area, box))


def fitted_layout(layout: str, boxes: int) -> str:
    """A layout as it is, or its largest boxes where it has more than `boxes`."""
    ordered = largest_first(layout)
    texts = (f"{b.name} {b.left:g} {b.top:g} {b.right:g} {b.bottom:g}" for b in ordered[:boxes])
    return layout if len(ordered) <= boxes else "; ".join(texts)


def class_names(layouts: Iterable[str]) -> tuple[str, ...]:
    """The names in layouts, each once, sorted."""
    return tuple(sorted({box.name for layout in layouts for box in parse_layout(layout)}))


class LayoutTransformer(nn.Module):
    """Tokens of boxes and a transformer that the U-Net's loss trains: `encode` is differentiable."""

    def __init__(self, config: LayoutConfig, classes: Sequence[str] = ()) -> None:
        super().__init__()
        self.config = config
        self.width, self.max_tokens = config.width, config.network.max_tokens
        self.classes = tuple(config.classes or classes)
        if len(self.classes) > config.room:
            raise UserError(
                f"the layouts name {len(self.classes)} classes, and text.network.vocabulary has room for {config.room}"
            )
        self.numbers = {normalize_name(name): number for number, name in enumerate(self.classes)}
        self.network = TextTransformer(config.network)
        if not config.shared:
            with torch.no_grad():  # so that near corners start with similar embeddings
                self.network.token.weight[: config.grid**2] = 0.3 * corner_features(config.grid, config.width)

    @torch.no_grad()
    def init_classes(self, features: Tensor) -> None:
        """Initialise the tokens of classes with features (classes + 1, width) of their names, the last of no name.

        The transformer starts as the identity, so a U-Net that was trained with those features' encoder understands the
        classes from the first step.
        """
        middle = features.mean(0)
        spread = (features - middle).square().mean().sqrt()
        tokens, first, network = (features - middle) / spread, self.config.first_class, self.network
        network.token.weight[first : first + len(self.classes)] = tokens[:-1]
        network.token.weight[self.config.nothing] = tokens[-1]
        network.norm.weight.fill_(spread)
        network.norm.bias.copy_(middle)
        for block in network.blocks:
            for layer in (block.attention.out, block.mlp[-1]):  # type: ignore[union-attr, index]
                nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def encode(self, prompts: list[str]) -> TextEmbedding:
        """The embeddings of layouts; an empty one is a padding box. `pooled` is the mean over the boxes."""
        rows = [self.tokens(prompt) for prompt in prompts]
        longest = self.config.boxes if self.config.padded else max(1, *map(len, rows))
        nothing, device = (self.config.nothing,) * 3, self.network.position.device
        ids = sent(torch.tensor([row + [nothing] * (longest - len(row)) for row in rows]), device)  # (B, N, 3)
        counts = sent(torch.tensor([max(1, len(row)) for row in rows]), device)
        valid = torch.arange(longest, device=device) < counts[:, None]  # (B, N)
        mask = torch.ones_like(valid) if self.config.padded else valid
        if not self.config.joined:
            ids, mask = ids.flatten(1), mask.repeat_interleave(3, 1)  # (B, 3 N)
        if not self.config.joined and self.config.network.max_tokens > 3 * self.config.boxes:  # the crop's corners
            ends = sent(torch.tensor([0, self.config.grid**2 - 1]), device).expand(len(ids), 2)
            ids, mask = torch.cat([ids, ends], 1), nn.functional.pad(mask, (0, 2), value=True)  # (B, 3 N + 2)
        sequence = self.network(ids, mask).float()  # (B, L, width)
        held = sequence[:, :longest] if self.config.joined else sequence[:, : 3 * longest : 3]  # (B, N, width)
        return TextEmbedding(sequence, mask, TextEmbedding.from_sequence(held, valid).pooled)

    def tokens(self, layout: str) -> list[tuple[int, int, int]]:
        """Class, top left and bottom right of each box, the largest first: the order of writing says nothing.

        Raises a `UserError` where a box cannot be read, holds what the model does not know, or there are too many.
        """
        boxes = largest_first(layout)
        if len(boxes) > self.config.boxes:
            raise UserError(f"a layout of {len(boxes)} boxes is too long: this model reads {self.config.boxes} at most")
        return [(self.number(b.name), self.corner(b.left, b.top), self.corner(b.right, b.bottom)) for b in boxes]

    def fit(self, layout: str) -> str:
        """As much of a layout as is read, all of it or its largest boxes. Raises a `UserError` as `tokens` does."""
        shorter = self.config.fitting()(layout)
        for box in parse_layout(shorter):
            self.number(box.name)
        return shorter

    def corner(self, x: float, y: float) -> int:
        """The token of the place of the grid that is nearest to a corner, row by row."""
        last = self.config.grid - 1
        return math.floor(y * last + 0.5) * self.config.grid + math.floor(x * last + 0.5)

    def number(self, name: str) -> int:
        """The token of a class."""
        if (number := self.numbers.get(normalize_name(name))) is not None:
            return self.config.first_class + number
        if not self.classes:
            raise UserError("this model has learned no classes yet: name them as text.classes, or train it on layouts")
        near = difflib.get_close_matches(normalize_name(name), self.numbers, n=3)
        near = [self.classes[self.numbers[one]] for one in near] or [*self.classes[:3], "..."]
        raise UserError(f"no box of this model can hold {name!r}: choose such as {', '.join(near)}")

    def save(self, folder: Path) -> None:
        """Write the classes; the weights belong to the system's own state."""
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "classes.json", json.dumps(self.classes, ensure_ascii=False, indent=0) + "\n")


def load_layout(config: LayoutConfig, folder: Path | None) -> LayoutTransformer:
    """The encoder with classes and weights from a folder, or with random weights where that is none."""
    encoder = LayoutTransformer(config, () if folder is None or config.classes else read_classes(folder))
    if folder is not None:
        load_module(encoder, folder)
    return encoder


def read_classes(folder: Path) -> list[str]:
    """The classes that `LayoutTransformer.save` wrote. A `UserError` where there are none."""
    names = read_json(folder / "classes.json")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{folder / 'classes.json'} is no list of names")
    return names


def corner_features(grid: int, width: int) -> Tensor:
    """A wave for each place (grid^2, width), of deviation 1: sines of x and y, from half a wave to grid / 2 of them."""
    place = torch.linspace(0, 1, grid)
    waves = torch.pi * torch.logspace(0, math.log2(grid), max(1, width // 4), base=2)
    angles = place[:, None] * waves  # (grid, width / 4)
    one = 2**0.5 * torch.cat([angles.sin(), angles.cos()], 1)  # (grid, width / 2)
    both = torch.cat([one.expand(grid, *one.shape), one[:, None].expand(grid, *one.shape)], -1)  # (y, x, width)
    return nn.functional.pad(both.flatten(0, 1), (0, width - both.shape[-1]))
