"""What every system's `generate` takes and gives, read and checked in one place."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from diptych.core.checks import said, texts, wholes
from diptych.core.errors import UserError, warn
from diptych.encoders.base import PromptOptions
from diptych.weights.identity import named_file

MOST_STEPS, LONGEST_SIDE, MOST_GUIDANCE = 10_000, 8192, 1000
"""Beyond these a number is a slip of the keyboard."""
FAR = 1.5
"""Sides, on average, from which on a model repeats or loses what it shows."""
Callback = Callable[[int, int, Tensor], None]
"""Called after each step with (step, steps, estimate of x0); raise to cancel."""


@dataclass
class Result:
    """What `generate` gives: pictures, and for each of them all that is needed to make it again."""

    images: list[Image.Image]
    metadata: list[dict[str, Any]] = field(default_factory=list)
    stages: list[list[Image.Image]] = field(default_factory=list)
    """A cascade's pictures of each of its stages, smallest first, where they were asked for."""

    def _repr_html_(self) -> str:
        """What a notebook shows: the images, each above its prompt and seed."""
        rows = zip(self.images, [*self.metadata, *({} for _ in self.images)], strict=False)
        return "".join(
            '<figure style="display: inline-block; margin: 4px">'
            f'<img src="data:image/png;base64,{_png(image)}" width="{image.width}" height="{image.height}">'
            f"<figcaption>{html.escape(str(values.get('prompt', '')))} {values.get('seed', '')}</figcaption></figure>"
            for image, values in rows
        )

    def __repr__(self) -> str:
        return f"Result({len(self.images)} images: {said([values.get('prompt') for values in self.metadata])})"


def _png(image: Image.Image) -> str:
    """An image as PNG in base64."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode("ascii")


class OneLineRepr:
    """A model that shows itself in one line: `LatentDiffusion(64 px; unet 10.2 M, autoencoder 3.8 M; cpu)`."""

    def __repr__(self) -> str:
        configs = getattr(self, "configs", None) or [getattr(self, "config")]  # noqa: B009
        low = getattr(configs[0], "low_size", None)
        sizes = [*([] if low is None else [low]), *(config.size for config in configs)]
        parts = dict(self.named_children()) if isinstance(self, nn.Module) else {}
        if (first_stage := getattr(self, "autoencoder", None)) is not None:
            parts["autoencoder"] = first_stage
        counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
        told = [
            " -> ".join(map(str, sizes)) + " px",
            ", ".join(f"{name} {n / 1e6:.1f} M" for name, n in counts.items()),
        ]
        device = next(self.parameters()).device if isinstance(self, nn.Module) else getattr(self, "device", "")
        return f"{type(self).__name__}({'; '.join(filter(None, [*told, str(device)]))})"

    @property
    def size(self) -> int:
        """Side of its images, as it was trained."""
        return (getattr(self, "configs", None) or [getattr(self, "config")])[-1].size  # noqa: B009

    @property
    def classes(self) -> tuple[str, ...]:
        """The class names of a class-conditional model; none of any other."""
        text = (getattr(self, "configs", None) or [getattr(self, "config")])[0].text  # noqa: B009
        return tuple(text.names) if getattr(text, "kind", None) == "class" else ()


PLAIN = PromptOptions()
"""Without weights; a prompt that is too long is refused."""


@dataclass(frozen=True)
class Request:
    """Which pictures are wanted: one prompt, one negative prompt ("" for none) and one seed for each."""

    prompts: list[str]
    negatives: list[str]
    seeds: list[int]
    reading: PromptOptions = PLAIN
    notes: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What is to be known of prompts, by their text, once they are read: words that are not, what was cut."""

    @classmethod
    def read(
        cls, prompts: Any, seeds: Any, negative: Any, silent: bool = False, *, reading: PromptOptions = PLAIN
    ) -> Request:
        """From what a user gave; a `UserError` names what is wrong. Seeds are 0, 1, ... where none are given. Where
        `silent`, a picture says what to paint, and a prompt may be empty.

        A negative prompt of spaces says nothing, as an empty one does.
        """
        prompts = texts("prompts", prompts)
        negatives = [""] * len(prompts) if negative is None else texts("negative", negative)
        if isinstance(negative, str):
            negatives = [negative] * len(prompts)
        seeds = wholes("seeds", range(len(prompts)) if seeds is None else seeds)
        if not prompts or not (silent or all(prompt.strip() for prompt in prompts)):
            raise UserError("a prompt is empty: say what the picture should show")
        prompts = [prompt if prompt.strip() else "" for prompt in prompts]
        if len(prompts) == 1 and len(seeds) > 1:  # several images of one prompt
            prompts, negatives = prompts * len(seeds), negatives * len(seeds) if len(negatives) == 1 else negatives
        if len(seeds) != len(prompts):
            raise UserError(f"give one seed for each prompt: {len(prompts)} prompts, {len(seeds)} seeds")
        if any(not 0 <= seed < 2**63 for seed in seeds):
            raise UserError("a seed is a whole number from 0 to 2^63 - 1")
        if len(negatives) != len(prompts):
            raise UserError(f"give one negative prompt for all or one for each of the {len(prompts)} prompts")
        return cls(prompts, [negative if negative.strip() else "" for negative in negatives], seeds, reading)

    def __len__(self) -> int:
        return len(self.prompts)

    def metadata(self, model: dict[str, Any], common: dict[str, Any], **given: Any) -> list[dict[str, Any]]:
        """All that makes each image again: `model` says which model it was, `common` are the settings of all, `given`
        the images and the noise that a user handed in, one or one for each, None where there are none.
        """
        common = {**common, **self.reading.metadata(), **({"model": model} if model else {})}
        handed = {key: handed_in(value, len(self)) for key, value in given.items() if value is not None}
        rows = []
        for i, (prompt, negative, seed) in enumerate(zip(self.prompts, self.negatives, self.seeds, strict=True)):
            row = {"prompt": prompt, "negative": negative or None, "seed": seed, **common}
            row |= {key: each[i] for key, each in handed.items()}
            notes = {"prompt": self.notes.get(prompt), "negative": self.notes.get(negative) if negative else None}
            rows.append(row | ({"notes": told} if (told := {k: note for k, note in notes.items() if note}) else {}))
        return rows


def handed_in(value: Any, count: int) -> list[dict[str, Any]]:
    """What a user handed in for `count` images, as metadata: a file's name and the SHA-256 of its content, or of what
    is in memory that of its values.
    """
    if isinstance(value, Tensor):
        rows = [described(one) for one in value]
    else:
        rows = [described(one) for one in (value if isinstance(value, (list, tuple)) else [value])]
    return rows * count if len(rows) == 1 else rows


def described(one: Any) -> dict[str, Any]:
    if isinstance(one, (str, Path)):
        return named_file(one)
    if isinstance(one, Tensor):
        values, shape = one.detach().float().cpu().contiguous().numpy().tobytes(), list(one.shape)
    else:
        image = one.convert("RGBA")
        values, shape = image.tobytes(), list(image.size)
    return {"sha256": hashlib.sha256(values).hexdigest(), "in_memory": shape}


def read_steps(steps: Any) -> int:
    """A number of sampling steps."""
    (steps,) = wholes("steps", [steps])
    if steps < 1:
        raise UserError(f"steps must be at least 1, not {steps}")
    if steps > MOST_STEPS:
        raise UserError(f"steps must be at most {MOST_STEPS}, not {said(steps)}")
    return steps


def read_number(name: str, value: Any) -> float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        raise UserError(f"{name} must be a finite number, not {said(value)}")
    return float(value)


def read_guidance(value: Any) -> float:
    """A weight of classifier-free guidance."""
    guidance = read_number("guidance", value)
    if abs(guidance) > MOST_GUIDANCE:
        raise UserError(f"guidance must lie between -{MOST_GUIDANCE} and {MOST_GUIDANCE}, not {guidance:g}")
    return guidance


def read_size(size: Sequence[int], multiple: int) -> list[int]:
    """Width and height in pixels, multiples of what the networks can halve."""
    sides = wholes("size", size)
    if len(sides) != 2 or any(not 1 <= side <= LONGEST_SIDE or side % multiple for side in sides):
        raise UserError(
            f"size is width and height, both multiples of {multiple} up to {LONGEST_SIDE}, not {said(sides)}"
        )
    return sides


def warn_of_size(sides: Sequence[int], trained: int) -> None:
    """Warn of a width and height that a model which was trained on squares of one side has no idea of."""
    across, down = sides
    ratio = math.sqrt(across * down) / trained
    if not 1 / FAR <= ratio <= FAR or max(sides) > 2 * trained:
        warn(
            f"{across} x {down} pixels are far from the {trained} x {trained} that this model was trained on: expect "
            "things repeated or lost"
        )


def one_each(name: str, value: Any, numbers: range, count: int) -> dict[int, Any]:
    """One value for all of a cascade's `count` stages, or a list with one for each (of those that run, or of all), by
    the number of the stage that runs.
    """
    values = list(value) if isinstance(value, (list, tuple)) else [value] * count
    if len(values) == count:
        values = [values[number] for number in numbers]
    if len(values) != len(numbers):
        raise UserError(f"{name}: give one value for all stages, or a list of {len(numbers)}, not {said(value)}")
    return dict(zip(numbers, values, strict=True))


def counted(callback: Callback | None, done: int, total: int) -> Callback | None:
    """A callback for one stage of several, of whose `total` steps so many are done."""
    return None if callback is None else lambda step, steps, x0: callback(done + step, total, x0)
