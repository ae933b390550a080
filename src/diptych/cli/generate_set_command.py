"""`diptych generate --prompts FILE`: a set of images for evaluation, by one process or many."""

from __future__ import annotations

import argparse
import os
import re
from typing import Any

import diptych
from diptych.cli.arguments import given, opening_given, options_given
from diptych.cli.option_checks import accepted_options, check_options
from diptych.core.errors import UserError
from diptych.core.terminal import print_err, print_out
from diptych.data.prompt_files import PromptRow, read_prompts


def share_of(shard: str | None) -> tuple[int, int, bool]:
    """The share that this process takes, from 0, of how many, and whether torchrun started it."""
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if shard is None:
        return rank, size, size > 1
    if size > 1:
        raise UserError("--shard is for processes that are started one by one: torchrun divides the set itself")
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", shard)
    number, shares = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= number <= shares:
        raise UserError(f"--shard is i/n, from 1/n to n/n, such as 1/4, not {shard!r}")
    return number - 1, shares, False


def generate_set(arguments: argparse.Namespace) -> None:
    """Read the prompts, open the model, and generate what is missing."""
    place, shares, torchrun = share_of(arguments.shard)
    seed = base_seed(arguments)
    if arguments.quality is not None and arguments.format != "jpeg":
        raise UserError("--quality goes with --format jpeg")
    options = options_given(arguments)
    from diptych.cli.generate_commands import lora_files, open_guides, tell_peak
    from diptych.evaluation.set_files import require_ours

    check_options(options, lora_files(arguments))
    require_ours(arguments.out)
    rows = read_prompts(arguments.prompt_file)

    from diptych.evaluation import generated_set
    from diptych.evaluation.prompt_draws import draw_record
    from diptych.training.distributed import own_device

    device = str(own_device(arguments.device)) if torchrun else arguments.device
    model = diptych.load(arguments.model, device, **opening_given(arguments), **given(arguments, "lora"))
    options = accepted_options(model, arguments.model or "latent", options | open_guides(arguments))
    done = generated_set.generate_set(
        model,
        rows,
        arguments.out,
        seed=seed,
        shard=(place, shares),
        source=arguments.prompt_file.name,
        drawn=draw_record(arguments.prompt_file),
        counted=torchrun,
        quiet=place > 0 and torchrun,
        **given(arguments, "images_per_prompt", "batch", "limit", "format", "quality"),
        **options,
    )
    if not torchrun or place == 0 or done.complete:
        print_out(summary(done))
    if place == 0 and done.generated:
        say_duplicates(rows)
    for name in done.damaged:
        print_err(f"{done.out / name} was damaged: it was made again")
    if not torchrun or place == 0:
        tell_peak(model, bool(arguments.peak_memory))


def base_seed(arguments: argparse.Namespace) -> int:
    """The seed of a set. Raises a `UserError` for arguments that are for single images."""
    refused: dict[str, Any] = {
        "PROMPT": arguments.prompts,
        "--from": arguments.from_png,
        "--count": arguments.count,
        "--variations": arguments.variations,
        "--keep-stages": arguments.keep_stages,
        "--safety": arguments.safety,
        "--c2pa-certificate": arguments.c2pa_certificate,
        "--c2pa-key": arguments.c2pa_key,
    }
    for name, value in refused.items():
        if value:
            instead = ": give --images-per-prompt" if name in ("--count", "--variations") else ": leave it out"
            raise UserError(f"{name} does not go with --prompts{instead}")
    if sum(len(part) for part in arguments.seed) > 1:
        raise UserError("a set has one --seed, from which those of its images follow")
    return arguments.seed[0].start if arguments.seed else 0


def say_duplicates(rows: list[PromptRow]) -> None:
    """A line about prompts that occur more than once."""
    if again := len(rows) - len({row.prompt for row in rows}):
        seeds = "each was generated, with a seed of its own"
        if any(row.seed is not None for row in rows):
            seeds = "each was generated, and where the seed is the same too, the image is"
        print_err(f"{again:,} of {len(rows):,} prompts are repetitions: {seeds}")


def summary(done: Any) -> str:
    """`out: 30,000 images, 12 made now`."""
    share = done.generated + done.kept
    text = f"{done.out}: {done.generated:,} images made now, {done.kept:,} were there"
    if done.complete:
        text += f"; all {done.total:,} are there, {done.out / 'manifest.jsonl'} lists them"
    elif share < done.total:
        text += f"; of {done.total:,}, other processes make the rest"
    if done.notes:
        words = {"unread": "words that the encoder cannot read", "cut": "a cut prompt"}
        words |= {"likeness": "a prompt far from the training prompts"}
        text += "; " + ", ".join(f"{count:,} with {words.get(kind, kind)}" for kind, count in done.notes.items())
    return text
