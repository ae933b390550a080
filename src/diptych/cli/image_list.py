"""The images that `generate` and `demo` are asked for: each prompt with each seed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from diptych.cli.argument_values import SEED_LIMIT
from diptych.core.errors import UserError
from diptych.core.values import unicode_text

MOST_IMAGES = 1_000_000
"""Of one command: more is a slip of the keyboard."""
VARIATION_STRENGTH = 0.6
SET_OPTIONS = ("images_per_prompt", "shard", "format", "quality", "limit")
"""Arguments that are for a set of images alone."""


class ImageList(Sequence[tuple[str, int]]):
    """Each prompt with each seed, in order, as (prompt, seed). No list is made, however many there are."""

    def __init__(self, prompts: Sequence[str], seeds: Sequence[range]) -> None:
        self.prompts, self.seeds = prompts, seeds
        self.per_prompt = sum(part.stop - part.start for part in seeds)  # len() of a range ends at 2^63 - 1
        """Images of each prompt."""
        if (count := len(prompts) * self.per_prompt) > MOST_IMAGES:
            raise UserError(f"these are {count:,} images: ask for at most {MOST_IMAGES:,} at once")

    def __len__(self) -> int:
        return len(self.prompts) * self.per_prompt

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        prompt, place = divmod(range(len(self))[index], self.per_prompt)
        for part in self.seeds:
            if place < len(part):
                return self.prompts[prompt], part[place]
            place -= len(part)
        raise IndexError(index)


def apply_variations(arguments: argparse.Namespace) -> None:
    """Replace `--variations N` by what it stands for: `--count N`, and a strength that keeps the image's subject."""
    if arguments.variations is None:
        return
    if arguments.image is None:
        raise UserError("--variations are those of an image: give it as --image")
    if arguments.count:
        raise UserError("--variations N already says how many: leave --count out")
    arguments.count = arguments.variations
    if arguments.strength is None and arguments.mask is None:
        arguments.strength = VARIATION_STRENGTH


def read_image_list(arguments: argparse.Namespace) -> ImageList:
    """Each prompt with each seed. With an image to start from, no prompt is the empty one."""
    for name in SET_OPTIONS:
        if getattr(arguments, name, None) is not None:
            raise UserError(f"--{name.replace('_', '-')} is for a set of images: give a file of prompts as --prompts")
    if not arguments.prompts and any(getattr(arguments, name, None) for name in ("image", "low_res")):
        arguments.prompts = [""]
    elif not arguments.prompts:
        raise UserError('give a PROMPT, for example "a red apple", or an image as --image')
    elif any(not prompt.strip() for prompt in arguments.prompts):
        raise UserError('the prompt is empty: say what to draw, for example "a red apple"')
    for prompt in arguments.prompts:
        unicode_text(prompt)
    seeds = arguments.seed or [range(1)]
    if arguments.count:
        if sum(map(len, seeds)) > 1:
            raise UserError("--count goes with one --seed: leave it out to use the seeds given")
        first = seeds[0].start
        if first + arguments.count > SEED_LIMIT:
            raise UserError(f"seeds end at {SEED_LIMIT - 1}: --count {arguments.count} from {first} on are too many")
        seeds = [range(first, first + arguments.count)]
    return ImageList(arguments.prompts, seeds)
