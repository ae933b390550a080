"""`diptych train`, `precompute` and `assemble`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from diptych.cli.arguments import FLAG, add_recipe, given


def add_commands(commands: Any) -> None:
    """Add the commands that make models."""
    command = commands.add_parser("train", help="train a recipe, or resume a run")
    add_recipe(command)
    # Not --run: torchrun takes every abbreviation of its own options, here --run-path, for itself.
    command.add_argument("--run-dir", metavar="FOLDER", type=Path, help="run folder (default: runs/RECIPE)")
    command.add_argument("--run", dest="run_dir", type=Path, help=argparse.SUPPRESS)
    command.set_defaults(command=train, shared=True)

    command = commands.add_parser(
        "precompute",
        help="compute a recipe's latents and text embeddings in advance",
        description="Compute a recipe's latents or codes and text embeddings once, for system.precomputed. The same "
        "command goes on after an interruption, alone or under torchrun. With system.embed_text=online no text is "
        "embedded: train with the same, and the text encoder reads the captions of each step.",
    )
    add_recipe(command)
    command.add_argument("--out", metavar="FOLDER", type=Path, help="output folder (default: cache/RECIPE)")
    command.set_defaults(command=precompute, shared=True)

    command = commands.add_parser("assemble", help="put trained stages together into one cascade")
    command.add_argument("stages", metavar="STAGE", nargs="+", help="run or model folders, the base first")
    command.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="new folder, or an earlier cascade")
    command.add_argument("--allow-pickle", **FLAG, help="of published stages, read .pt too: its tensors, never code")
    command.set_defaults(command=assemble, more="stages")


def train(arguments: argparse.Namespace) -> None:
    from diptych.core.progress import waiting

    with waiting("loading PyTorch", in_files=False):
        from diptych.recipes import get
        from diptych.training import experiment

    recipe = get(arguments.recipe).override(arguments.assignments)
    experiment.train(recipe, arguments.run_dir or Path("runs") / arguments.recipe)


def precompute(arguments: argparse.Namespace) -> None:
    from diptych.core.progress import waiting

    with waiting("loading PyTorch", in_files=False):
        from diptych.recipes import get
        from diptych.training import experiment

    recipe = get(arguments.recipe).override(arguments.assignments)
    experiment.precompute(recipe, arguments.out or Path("cache") / arguments.recipe)


def assemble(arguments: argparse.Namespace) -> None:
    from diptych.cli.describe import describe, print_networks
    from diptych.training import experiment

    experiment.assemble(arguments.stages, arguments.out, **given(arguments, "allow_pickle"))
    print_networks(describe(arguments.out))
