"""`diptych plan`: what a training run needs, before it is started."""

from __future__ import annotations

import argparse
from typing import Any

from diptych.cli.arguments import add_integer, add_recipe, argument_type
from diptych.core.errors import UserError
from diptych.core.values import Number

MANY = 10**15
"""More images than anybody trains on."""
EXAMPLES = """\
examples:
  diptych plan sd1 --gpus 256 --gpu a100 --hour-price 2
  diptych plan sd1 system.precomputed=cache/sd1 training.accumulation=2 --gpus 64 --examples 170000000
  diptych plan imagen-base training.batch_size=1024 --gpus 32 --gpu h200 --utilisation 0.35 --days 14 --json
"""


def add_commands(commands: Any) -> None:
    """Add the command."""
    command = commands.add_parser(
        "plan",
        help="what training a recipe takes: FLOPs, memory, days, price",
        description="Parameters, FLOPs of an image, memory of each process, images a second, days, price and storage "
        "of a recipe's training. All is counted from the recipe's own step, but for the utilisation, which is assumed.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_recipe(command)
    add_integer(command, "--gpus", 1, 10**6, default=1, help="number of GPUs (default: 1)")
    command.add_argument(
        "--gpu", metavar="NAME", default="h100", help="a100, h100 (default), h200, b200, l40s, 4090, v100, ..."
    )
    command.add_argument(
        "--utilisation",
        metavar="X",
        type=argument_type(Number(0, 1, above=True)),
        default=0.4,
        help="share of the GPU's peak that training reaches (default: 0.4)",
    )
    command.add_argument(
        "--hour-price", metavar="X", type=argument_type(Number(0, 1e6)), help="price of a GPU for an hour"
    )
    add_integer(command, "--images", 1, MANY, help="images to train on (default: training.steps x training.batch_size)")
    command.add_argument(
        "--days", metavar="X", type=argument_type(Number(0, 1e5, above=True)), help="days to train, instead of --images"
    )
    add_integer(command, "--examples", 1, MANY, help="examples of the data set, for the storage of what is precomputed")
    add_integer(command, "--caption-tokens", 1, 10**6, default=20, help="mean tokens of a caption (default: 20)")
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(command=plan)


def plan(arguments: argparse.Namespace) -> None:
    from diptych.cli.plan_report import print_plan
    from diptych.core.progress import waiting
    from diptych.recipes import get
    from diptych.training.planning.cards import card
    from diptych.training.planning.plan import Cluster, make_plan

    if arguments.images is not None and arguments.days is not None:
        raise UserError("--images and --days both say how long to train: give one of them")
    recipe = get(arguments.recipe).override(arguments.assignments)
    cluster = Cluster(arguments.gpus, card(arguments.gpu), arguments.utilisation, arguments.hour_price)
    tokens = arguments.caption_tokens
    with waiting(f"counting a step of {arguments.recipe}"):
        made = make_plan(recipe, cluster, arguments.images, arguments.days, arguments.examples, caption_tokens=tokens)
    print_plan(arguments.recipe, made, as_json=arguments.json)
