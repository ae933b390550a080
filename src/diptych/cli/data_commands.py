"""`diptych data ...`: training data made, described and checked."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from diptych.cli.arguments import Parser, add_integer, add_kinds, add_seed, argument_type, given
from diptych.core.errors import UserError
from diptych.core.terminal import print_out
from diptych.core.values import Number


def add_commands(commands: Any) -> None:
    """Add `data` and its kinds."""
    kinds = add_kinds(commands, "data", "make or check training data", "commands", "COMMAND")
    command = kinds.add_parser("emoji", help="captioned shards from six open emoji sets")
    command.add_argument("--out", metavar="FOLDER", type=Path, help="output folder (default: data/emoji-SIZE)")
    add_integer(command, "--size", 16, 1024, metavar="PIXELS", default=64, help="side of the images (default: 64)")
    add_integer(command, "--scenes", 0, default=0, help="number of composed scenes, in addition to the single drawings")
    add_seed(command, "(default: 0)", default=0)
    add_integer(command, "--workers", 1, 1024, help="processes (default: one for each core)")
    command.set_defaults(command=emoji)

    command = kinds.add_parser("layouts", help="layouts as captions of images, from the boxes of COCO or OpenImages")
    command.add_argument("annotations", metavar="FILE", type=Path, help="instances_*.json, or *-bbox.csv")
    add_images(command)
    command.add_argument("--classes", metavar="CSV", type=Path, help="OpenImages' class-descriptions-boxable.csv")
    add_integer(command, "--boxes", 1, help="largest number of boxes of an image (default: 30)")
    command.set_defaults(command=layouts)

    command = kinds.add_parser("captions", help="captions of images, from COCO's annotations")
    command.add_argument("annotations", metavar="FILE", type=Path, help="captions_*.json")
    add_images(command)
    command.set_defaults(command=captions)

    command = kinds.add_parser(
        "familiar", help="add to models what they need to warn of prompts that are far from this data"
    )
    command.add_argument("path", metavar="PATH", help="a folder of shards or images")
    text = "run or model folder; may be repeated"
    command.add_argument(
        "--model", metavar="FOLDER", type=Path, action="append", dest="models", required=True, help=text
    )
    fraction = argument_type(Number(0, 1))
    command.add_argument("--least", metavar="X", type=fraction, help="similarity below which a prompt gives a warning")
    command.set_defaults(command=familiar)

    command = kinds.add_parser(
        "check", help="read all data and list what training would skip; exit code 1 if there is any"
    )
    command.add_argument("path", metavar="PATH", help="a folder of shards or images")
    command.add_argument("assignments", metavar="a.b=c", nargs="*", help="settings of the recipe to change")
    command.add_argument(
        "--recipe", metavar="RECIPE", help="check for this recipe: with or without captions, limit of its text encoder"
    )
    command.add_argument("--json", action="store_true", help="print JSON")
    command.set_defaults(command=check, more="assignments")


def add_images(command: Parser) -> None:
    """`--images`, also under its old name."""
    names = command.add_mutually_exclusive_group(required=True)
    names.add_argument("--images", metavar="FOLDER", type=Path, help="image folder, gets a metadata.jsonl")
    names.add_argument("--pictures", dest="images", type=Path, help=argparse.SUPPRESS)


def emoji(arguments: argparse.Namespace) -> None:
    from diptych.data.emoji import build

    out = arguments.out or Path("data") / f"emoji-{arguments.size}"
    manifest = build.build(out, **given(arguments, "size", "scenes", "seed", "workers"))
    kinds = ", ".join(f"{count:,} {kind}s" for kind, count in manifest["counts"]["kind"].items())
    print_out(f"{out}: {kinds} in {len(manifest['shards'])} shards; manifest.json has licences and hashes")


def layouts(arguments: argparse.Namespace) -> None:
    from diptych.data.annotations import MAX_BOXES, write_layouts

    folder = arguments.images
    counts = write_layouts(arguments.annotations, folder, arguments.classes, arguments.boxes or MAX_BOXES)
    boxes = f"{counts['boxes']:,} boxes of {len(counts['classes']):,} classes in {counts['pictures']:,} images"
    print_out(f"{folder}: {boxes}; train with data.path={folder} data.caption_field=layout")


def captions(arguments: argparse.Namespace) -> None:
    from diptych.data.annotations import write_captions

    folder = arguments.images
    counts = write_captions(arguments.annotations, folder)
    captions = f"{counts['captions']:,} captions of {counts['pictures']:,} images"
    print_out(f"{folder}: {captions}; train with data.path={folder}")


def familiar(arguments: argparse.Namespace) -> None:
    from diptych.evaluation.training_prompts import write_familiar

    for path in write_familiar(arguments.path, arguments.models, **given(arguments, "least")):
        print_out(str(path))


def check(arguments: argparse.Namespace) -> int:
    from diptych.data.check import check_dataset
    from diptych.data.dataset import DataConfig, open_dataset
    from diptych.data.quarantine import silent

    settings = {"path": arguments.path, "split": "all", "max_failure_rate": 1.0, "quarantine": None}
    if arguments.recipe is None and arguments.assignments:
        raise UserError(f"{arguments.assignments[0]} is a setting of a recipe: name it as --recipe")
    with silent():  # the report says it, once
        if arguments.recipe is None:
            dataset = open_dataset(DataConfig(**settings))
        else:
            from diptych.recipes import get
            from diptych.training import experiment_data

            dataset = experiment_data.open_all(get(arguments.recipe).override(arguments.assignments), settings)
        report = check_dataset(dataset)
    print_out(json.dumps({**report._asdict(), "whole": report.whole}, indent=2) if arguments.json else report.text())
    return 0 if report.whole else 1
