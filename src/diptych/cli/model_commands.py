"""`diptych info`, `convert`, `recipes` and `options`: what there is, and models in other layouts."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from diptych.cli.arguments import FLAG, OPENING, add_integer, add_opening, argument_type, given
from diptych.core.errors import UserError
from diptych.core.terminal import print_out
from diptych.core.values import Size


def add_commands(commands: Any) -> None:
    """Add the commands about models and recipes."""
    command = commands.add_parser("info", help="networks and parameters of a recipe or model, or an image's metadata")
    command.add_argument(
        "name", metavar="RECIPE|MODEL|PNG", help="a recipe, a model as in generate, or a generated PNG"
    )
    add_opening(command)
    command.add_argument("--json", action="store_true", help="print JSON")
    group = command.add_argument_group("memory", "counted without weights or a GPU; docs/memory.md explains it")
    group.add_argument("--memory", **FLAG, help="what sampling takes of a GPU, by parts and by the ways to run them")
    add_integer(group, "--batch", 1, 4096, help="images at a time (default: 1)")
    group.add_argument("--size", metavar="WxH", type=argument_type(Size()), help="width and height (default: trained)")
    add_integer(group, "--tile", 1, help="pixels a side of the tiles that are decoded")
    command.set_defaults(command=info)

    command = commands.add_parser("convert", help="convert a Stable Diffusion model to another layout")
    command.add_argument("source", metavar="SRC", help="a model as in generate")
    command.add_argument("target", metavar="DST", type=Path, help="a folder, or a file that ends in .safetensors")
    command.add_argument(
        "--to",
        metavar="LAYOUT",
        help="diptych, diffusers or single-file (default: the last if DST ends in .safetensors, else diptych for a "
        "published SRC and diffusers for one of ours)",
    )
    command.add_argument("--overwrite", **FLAG, help="replace DST if it exists")
    add_opening(command, dtype="precision to write: stored (default), float32, float16 or bfloat16")
    command.set_defaults(command=convert)

    command = commands.add_parser("recipes", help="list the recipes, or where their values come from")
    command.add_argument(
        "--sources",
        nargs="?",
        const="",
        metavar="NAME",
        help="print the source of each value as Markdown, for one recipe or for all",
    )
    command.set_defaults(command=list_recipes)

    command = commands.add_parser("options")  # without help: not listed
    command.add_argument("--markdown", action="store_true", help="as docs/options.md has it")
    command.set_defaults(command=list_options)


def info(arguments: argparse.Namespace) -> None:
    if Path(arguments.name).suffix.lower() in (".png", ".jpg", ".jpeg", ".webp"):
        from diptych.models.metadata import infotext, read_metadata

        row = read_metadata(Path(arguments.name))
        print_out(json.dumps(row, indent=2) if arguments.json else infotext(row))
        return

    if arguments.memory:
        return info_memory(arguments)
    if given(arguments, "batch", "size", "tile"):
        raise UserError("--batch, --size and --tile go with --memory: give that too")
    from diptych.cli.describe import describe, print_networks

    described = describe(arguments.name, **given(arguments, *OPENING))
    if arguments.json:
        print_out(json.dumps(described, indent=2))
    else:
        print_networks(described)


def info_memory(arguments: argparse.Namespace) -> None:
    import torch

    from diptych.cli.memory_report import as_values, memory_of, print_memory
    from diptych.core.errors import pick
    from diptych.core.progress import waiting
    from diptych.engines.sampling_memory import Sampling
    from diptych.pretrained.load import DTYPES

    dtype = getattr(torch, pick("dtype", arguments.dtype or "float32", DTYPES))
    sampling = Sampling(dtype=dtype, **given(arguments, "batch", "size", "tile"))
    opening = {name: value for name, value in given(arguments, *OPENING).items() if name != "dtype"}
    with waiting(f"counting what {arguments.name} takes"):
        found = memory_of(arguments.name, sampling, **opening)
    if arguments.json:
        print_out(json.dumps(as_values(found), indent=2))
    else:
        print_memory(found)


def convert(arguments: argparse.Namespace) -> None:
    from diptych.pretrained import load
    from diptych.pretrained.convert import convert

    path = load.find(arguments.source, **given(arguments, "revision", "offline", "allow_pickle"))
    options = load.read_options(**given(arguments, "allow_pickle", "tokenizer", "ema", "prediction"))
    overwrite, dtype = bool(arguments.overwrite), arguments.dtype or "stored"
    for line in convert(path, arguments.target, arguments.to, dtype, options, overwrite):
        print_out(f"left out: {line}")
    print_out(str(arguments.target))


def list_recipes(arguments: argparse.Namespace) -> None:
    from diptych.recipes import all_recipes

    if arguments.sources is not None:
        from diptych.recipes.sources import document, table

        for line in (table(arguments.sources) if arguments.sources else document()).splitlines():
            print_out(line)
        return
    recipes = all_recipes()
    for name, recipe in recipes.items():
        print_out(f"{name:<{max(map(len, recipes))}}  {recipe.description}")


def list_options(arguments: argparse.Namespace) -> None:
    from diptych.cli.options_page import listing, markdown

    print_out((markdown() if arguments.markdown else listing()).rstrip("\n"))
