"""The parser of the whole command line. Its commands are in the modules `*_commands.py`."""

from __future__ import annotations

import argparse
from typing import Any

from diptych.cli import (
    calibrate_commands,
    curves_commands,
    data_commands,
    evaluate_commands,
    generate_commands,
    measure_commands,
    model_commands,
    plan_commands,
    prompts_commands,
    protocol_commands,
    serve_commands,
    study_commands,
    train_commands,
)
from diptych.cli.arguments import Parser
from diptych.core.terminal import print_out

COMMANDS = (
    generate_commands,
    serve_commands,
    prompts_commands,
    train_commands,
    plan_commands,
    evaluate_commands,
    measure_commands,
    protocol_commands,
    curves_commands,
    study_commands,
    model_commands,
    calibrate_commands,
    data_commands,
)
"""Modules of commands, in the order of the help."""


class Version(argparse.Action):
    """`--version`, looked up only where it is asked for, because that takes longer than all else."""

    def __init__(self, option_strings: list[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *arguments: Any) -> None:
        from diptych.core.version import version

        print_out(f"diptych {version()}")
        parser.exit()


def build_parser() -> Parser:
    """The parser with all commands; the chosen one's function is `arguments.command`."""
    parser = Parser(prog="diptych", description="Text to image: latent diffusion and cascaded pixel diffusion.")
    parser.add_argument("--version", action=Version, help="show the version and exit")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in COMMANDS:
        module.add_commands(commands)
    parser.commands = commands.choices.keys()
    return parser
