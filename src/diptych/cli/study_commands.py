"""`diptych study ...`: studies with human raters, as in the Imagen paper."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from diptych.cli.arguments import add_integer, add_kinds, add_seed, argument_type, given
from diptych.core.errors import UserError, pick
from diptych.core.terminal import print_out
from diptych.core.values import Value

PROTOCOLS = ("coco", "drawbench")
PORT = 8760
ONLY = {"coco": ("reference", "pairs", "batch"), "drawbench": ("prompts", "set_size")}
"""Arguments that one protocol alone has."""


class NamedFolder(Value):
    """`NAME=FOLDER`; a folder alone is named after itself."""

    def parse(self, text: str) -> tuple[str, Path]:
        name, equals, folder = text.partition("=")
        if equals and (not name or not folder):
            raise ValueError(f"must be NAME=FOLDER, not {text!r}")
        return (name, Path(folder)) if equals else (Path(text).resolve().name, Path(text))


def add_commands(commands: Any) -> None:
    """Add `study` and its kinds."""
    text = "studies with human raters: make, serve, export, import, report"
    kinds = add_kinds(commands, "study", text, "commands", "COMMAND")

    command = kinds.add_parser("make", help="make a study from folders of images")
    command.add_argument("folder", metavar="FOLDER", type=Path, help="new folder of the study")
    command.add_argument(
        "--protocol",
        metavar="P",
        required=True,
        help="coco: photorealism against reference images, and caption alignment; drawbench: models against each other",
    )
    command.add_argument(
        "--model",
        metavar="NAME=FOLDER",
        type=argument_type(NamedFolder()),
        action="append",
        dest="contestants",
        required=True,
        help="a model's images, with prompts as metadata, captions.jsonl or .csv, or .txt files; may be repeated",
    )
    add_seed(command, "seed of what is drawn: pairs, sides, orders (default: 0)", default=0)
    add_integer(
        command, "--size", 8, 4096, metavar="PIXELS", help="side of all images (default: as the largest model's)"
    )
    add_integer(command, "--controls", 0, 1000, help="control questions in a batch (default: coco 10, drawbench 0)")
    group = command.add_argument_group("coco")
    group.add_argument("--reference", metavar="FOLDER", type=Path, help="real images with captions")
    add_integer(group, "--pairs", 1, help="image-caption pairs (default: 200)")
    add_integer(group, "--batch", 1, help="images in a batch, which one rater is shown (default: 50)")
    group = command.add_argument_group("drawbench")
    group.add_argument("--prompts", metavar="FILE", type=Path, help="file of prompts with their category")
    add_integer(group, "--set-size", 1, 16, help="images in a set (default: 8)")
    command.set_defaults(command=make, warns=True)

    command = add_kind(kinds, "serve", "serve the study's page; each rater has a link")
    command.add_argument("--host", metavar="H", default="127.0.0.1", help="address to listen at (default: 127.0.0.1)")
    add_integer(command, "--port", 0, 65535, default=PORT, help=f"0 takes any that is free (default: {PORT})")
    command.add_argument("--url", metavar="URL", help="address that raters see, where a proxy or tunnel leads here")
    add_raters(command)
    command.set_defaults(command=serve)

    command = add_kind(kinds, "export", "write the study as pages that need no server")
    command.add_argument("out", metavar="OUT", type=Path, help="new folder, to be sent to raters")
    add_raters(command)
    command.set_defaults(command=export)

    command = add_kind(kinds, "import", "take in the answers of exported pages")
    command.add_argument("files", metavar="ANSWERS.json", type=Path, nargs="+", help="files that raters saved")
    command.set_defaults(command=import_files)

    command = add_kind(kinds, "report", "shares with 95 %% intervals, charts, all answers as a table")
    command.add_argument("--out", metavar="FOLDER", type=Path, help="where to write (default: FOLDER/report)")
    add_integer(command, "--resamples", 100, 100_000, help="of the bootstrap (default: 2000)")
    command.set_defaults(command=report, warns=True)


def add_kind(kinds: Any, name: str, text: str) -> Any:
    """A command for a study that there is."""
    command = kinds.add_parser(name, help=text)
    command.add_argument("folder", metavar="FOLDER", type=Path, help="a study")
    return command


def add_raters(command: Any) -> None:
    text = "add raters until there are so many; they take the batches in turn (default: one for each batch)"
    add_integer(command, "--raters", 1, 10_000, help=text)


def make(arguments: argparse.Namespace) -> None:
    from diptych.evaluation.human.make_study import make_coco, make_drawbench

    protocol = pick("protocol", arguments.protocol, PROTOCOLS)
    for other, names in ONLY.items():
        for name in names if other != protocol else ():
            if getattr(arguments, name) is not None:
                raise UserError(f"--{name.replace('_', '-')} is for the protocol {other}, not {protocol}")
    models = dict(arguments.contestants)
    if len(models) < len(arguments.contestants):
        raise UserError("two models have the same name: give them as NAME=FOLDER")
    settings = given(arguments, "seed", "size", "controls", *ONLY[protocol])
    if protocol == "coco":
        if arguments.reference is None:
            raise UserError("coco compares with real images: give their folder as --reference")
        study = make_coco(arguments.folder, models, **settings)
    else:
        study = make_drawbench(arguments.folder, models, **settings)
    questions = sum(len(task.asks) for task in study.tasks if not task.control)
    controls = sum(bool(task.control) for task in study.tasks)
    size = "x".join(map(str, study.settings["size"]))
    batches = "1 batch" if len(study.batches) == 1 else f"{len(study.batches)} batches"
    what = f"{questions:,} questions and {controls:,} controls in {batches}"
    print_out(f"{arguments.folder}: {what}, {len(study.images):,} images of {size}; `diptych study serve` asks them")


def serve(arguments: argparse.Namespace) -> None:
    from diptych.evaluation.human.study_server import serve_study

    serve_study(arguments.folder, arguments.host, arguments.port, arguments.url, arguments.raters)


def export(arguments: argparse.Namespace) -> None:
    from diptych.evaluation.human.static_export import export_study

    pages = export_study(arguments.folder, arguments.out, arguments.raters)
    print_out(f"{arguments.out}: {len(pages)} pages, {pages[0].name} and on; each rater opens one, all need images/")


def import_files(arguments: argparse.Namespace) -> None:
    from diptych.evaluation.human.static_export import import_answers

    for path, rater, count, new in import_answers(arguments.folder, arguments.files):
        print_out(f"{path}: rater {rater}, {count} answers, {new} new")


def report(arguments: argparse.Namespace) -> None:
    from diptych.evaluation.human.study_report import write_report

    out = arguments.out or arguments.folder / "report"
    print_out(write_report(arguments.folder, out, **given(arguments, "resamples")))
