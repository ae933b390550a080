"""`diptych calibrate`: measure a model for `--precision int8`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from diptych.cli.arguments import (
    Parser,
    add_model,
    add_opening,
    add_options,
    given,
    opening_given,
    options_given,
)
from diptych.cli.generate_commands import loading, lora_files, open_guides
from diptych.core.terminal import print_out


def add_commands(commands: Any) -> None:
    """Add `calibrate`."""
    command: Parser = commands.add_parser(
        "calibrate",
        help="measure a model for --precision int8, on prompts of your own",
        description="Measure what the layers of a model read while it generates, for --precision int8, and keep that "
        "in the cache. Other models than the defaults do so by themselves at their first use; this is for prompts of "
        "your own, for LoRA files, and for models that start from an image. One image of each prompt is generated.",
    )
    add_model(command)
    command.add_argument(
        "--prompts", metavar="FILE", type=Path, dest="prompt_file", help="prompts, as for generate (default: a few)"
    )
    command.add_argument("--out", metavar="FOLDER", type=Path, help="where to put the files (default: the cache)")
    add_options(command)
    add_opening(command)
    command.set_defaults(command=calibrate, warns=True)


def calibrate(arguments: argparse.Namespace) -> None:
    from diptych.data.prompt_files import read_prompts

    prompts = arguments.prompt_file and [row.prompt for row in read_prompts(arguments.prompt_file)]
    with loading(arguments.model or "latent", "pytorch"):
        import diptych
        from diptych.cli.option_checks import accepted_options, check_options
        from diptych.engines.calibration import calibrate

        options = options_given(arguments)
        check_options(options, lora_files(arguments))
        how = {**opening_given(arguments), **given(arguments, "lora")}
        model = diptych.load(arguments.model, "cpu", engine="pytorch", **how)
        options = accepted_options(model, arguments.model or "latent", options | open_guides(arguments))
    for path in calibrate(model, prompts, arguments.out, **options):
        print_out(str(path))
