"""`diptych evaluate curves`: figures from stored results."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from diptych.cli.argument_values import Several
from diptych.cli.arguments import Parser, argument_type
from diptych.core.values import Text

EXAMPLES = """\
examples:
  diptych evaluate curves runs/small/sweep runs/large/sweep --figure unet --out out/unet
  diptych evaluate curves sweep-seed-0 sweep-seed-1 sweep-seed-2 --out out/curves
  diptych evaluate curves runs/efficient runs/plain --figure training --out out/training

RESULTS are folders that studies, `evaluate fid-30k` or trainings wrote, or their results.json. Nothing is generated.
docs/evaluation.md says what each figure is drawn from.
"""
FIGURES = (
    *("guidance", "thresholding", "text-encoder", "unet", "augmentation", "guides", "efficient-unet", "training"),
    *("compression", "unseen"),
)


def add_commands(commands: Any) -> None:
    """Add `evaluate curves`."""
    command: Parser = commands.add_parser(
        "evaluate curves",
        help="draw guidance curves, ablations and convergence from stored results",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    command.add_argument("results", metavar="RESULTS", nargs="+", type=Path, help="folders or files of results")
    command.add_argument(
        "--figure",
        metavar="F,F",
        dest="figures",
        type=argument_type(Several(Text())),
        help=f"of {', '.join(FIGURES)} (default: all that the results suffice for)",
    )
    command.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="folder of the figures")
    command.set_defaults(command=curves, more="results")


def curves(arguments: argparse.Namespace) -> None:
    from diptych.evaluation.curves.draw_curves import draw_curves

    draw_curves(arguments.results, arguments.out, arguments.figures or ())
