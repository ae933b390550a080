"""`diptych prompts ...`: prompts of benchmarks, drawn or written into a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from diptych.cli.arguments import (
    add_device,
    add_integer,
    add_kinds,
    add_models,
    add_options,
    add_seed,
    argument_type,
    given,
    opening_given,
    options_given,
)
from diptych.core.errors import UserError
from diptych.core.terminal import print_out
from diptych.core.values import Integer

SAMPLING = (
    *("steps", "guidance", "sampler", "schedule_type", "eta", "threshold", "negative", "prompt_weights"),
    *("long_prompts", "size", "stop", "temperature", "top_k", "top_p"),
)
"""Options of `generate` that `evaluate drawbench` takes."""


class OrAll(Integer):
    """A whole number, or "all"."""

    def parse(self, text: str) -> Any:
        return "all" if text == "all" else super().parse(text)


def add_commands(commands: Any) -> None:
    """Add `prompts` and its kinds."""
    text = "prompts of benchmarks, for generate --prompts"
    kinds = add_kinds(commands, "prompts", text, "which prompts", "KIND")

    command = kinds.add_parser("coco", help="draw captions of COCO, as for FID-30K")
    command.add_argument("annotations", metavar="FILE", type=Path, help="COCO's captions_val2014.json, or another year")
    command.add_argument(
        "--number", metavar="N", type=argument_type(OrAll(1)), default=30_000, help="prompts, or all (default: 30000)"
    )
    command.add_argument(
        "--per-image",
        metavar="N",
        type=argument_type(OrAll(1, 1000)),
        default=1,
        help="captions of each image (default: 1), or all: draw among all captions",
    )
    command.add_argument(
        "--caption", metavar="C", choices=("random", "first"), help="of an image: random (default) or first"
    )
    add_seed(command, "seed of the draw (default: 0)")
    command.add_argument("--out", metavar="FILE", type=Path, required=True, help="the prompts, as .jsonl")
    command.set_defaults(command=coco)

    command = kinds.add_parser(
        "drawbench", help="200 prompts of diptych's own in DrawBench's categories, or a check of the published table"
    )
    command.add_argument("--out", metavar="FILE", type=Path, help="write diptych's prompts, as .csv")
    command.add_argument("--check", metavar="FILE", type=Path, help="count the categories of the published table")
    command.set_defaults(command=drawbench)

    command = commands.add_parser(
        "evaluate drawbench", help="images of prompts by category, scored, on a page to look at"
    )
    add_models(command, "a model, as in generate; may be given twice, to compare two (default: latent)")
    command.add_argument(
        "--prompts", metavar="FILE", type=Path, help="table with the columns Prompts,Category (default: diptych's own)"
    )
    add_integer(command, "--images", 1, help="images of each prompt (default: 8)")
    command.add_argument(
        "--scorer", metavar="M", help="judge (default), a judge's folder, or a CLIP: a folder or its id on the hub"
    )
    command.add_argument(
        "--ocr",
        metavar="WHEN",
        choices=("auto", "on", "off"),
        help="read the words that prompts of the category Text ask for: auto (default), where RapidOCR is installed; "
        "on or off",
    )
    add_seed(command, "seed of the images (default: 0)")
    add_integer(command, "--batch", 1, help="batch size (default: 8)")
    add_device(command)
    command.add_argument(
        "--out", metavar="FOLDER", type=Path, required=True, help="output folder of images and results"
    )
    add_options(command, *SAMPLING)
    command.set_defaults(command=evaluate_drawbench)


def coco(arguments: argparse.Namespace) -> None:
    from diptych.evaluation.prompt_draws import draw_captions, record_path, write_prompts

    number, per_image = (None if value == "all" else value for value in (arguments.number, arguments.per_image))
    rows, record = draw_captions(arguments.annotations, number, per_image, **given(arguments, "caption", "seed"))
    write_prompts(rows, arguments.out, record)
    choice = {None: "", "random": ", drawn at random", "first": ", the first"}[record["caption"]]
    print_out(
        f"{arguments.out}: {len(rows):,} of {record['captions']:,} captions of {record['images']:,} images, "
        f"{record['per_image']} of each image{choice}, seed {record['seed']}; {record_path(arguments.out)} records this"
    )


def drawbench(arguments: argparse.Namespace) -> None:
    from diptych.data.prompt_files import read_prompts
    from diptych.evaluation.prompt_draws import OWN_PROMPTS, against_drawbench, category_counts

    if (arguments.out is None) == (arguments.check is None):
        raise UserError("give --out FILE to write diptych's own prompts, or --check FILE to check the published table")
    rows = read_prompts(arguments.check or OWN_PROMPTS)
    if arguments.check is not None and (wrong := against_drawbench(rows)):
        raise UserError(f"{arguments.check} is not DrawBench as published ({wrong})")
    if arguments.out is not None:
        text = OWN_PROMPTS.read_text(encoding="utf-8")
        write_own(text, arguments.out)
    counts = ", ".join(f"{name} {count}" for name, count in category_counts(rows).items())
    print_out(
        f"{arguments.out or arguments.check}: {len(rows)} prompts in {len(category_counts(rows))} categories: {counts}"
    )


def write_own(text: str, out: Path) -> None:
    """Write a table. A `UserError` where there is another file."""
    from diptych.core.disk import write_text

    if out.suffix != ".csv":
        raise UserError(f"{out}: these prompts are a table, to a file that ends in .csv")
    if out.is_dir() or (out.exists() and out.read_bytes() != text.encode()):
        raise UserError(f"{out} is there already and holds something else: name another file")
    write_text(out, text)


def evaluate_drawbench(arguments: argparse.Namespace) -> None:
    import diptych
    from diptych.cli.option_checks import accepted_options, check_options
    from diptych.evaluation.benchmarks.drawbench import evaluate_drawbench, read_categories
    from diptych.evaluation.folder import require_same
    from diptych.evaluation.text_image_scorer import open_scorer
    from diptych.evaluation.written_text import open_reader, require_reader

    names = arguments.models or ["latent"]
    if len(names) > 2 or len(set(names)) < len(names):
        raise UserError("give one --model, or two different ones to compare")
    options = options_given(arguments)
    check_options(options)
    require_same(arguments.out, "drawbench")
    read_categories(arguments.prompts)
    reader = {"on": require_reader, "off": lambda: None}.get(arguments.ocr or "auto", open_reader)()
    opening = opening_given(arguments)
    where = given(arguments, "revision", "offline", "allow_pickle") if arguments.scorer else {}
    scorer = open_scorer(arguments.scorer or "judge", arguments.device, **where)

    def opener(name: str) -> Any:
        def opened() -> tuple[Any, dict[str, Any]]:
            model = diptych.load(name, arguments.device, **opening)
            return model, accepted_options(model, name, options)

        return opened

    models = {name: opener(name) for name in names}
    settings = given(arguments, "prompts", "images", "seed", "batch")
    evaluate_drawbench(models, arguments.out, scorer, reader=reader, options=options, **settings)
