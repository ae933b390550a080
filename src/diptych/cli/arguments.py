"""The parser, and arguments that several commands share; those of `generate` come from `models.options`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from diptych.cli.argument_values import SEED_LIMIT, Seeds
from diptych.core.errors import UserError, hint, unknown
from diptych.core.option_fields import Option, options_of
from diptych.core.values import Flag, Integer, ScaledFile, Value
from diptych.models.option_registry import GROUPS, all_options
from diptych.models.options import SamplingOptions

FLAG: dict[str, Any] = {"action": "store_const", "const": True}
"""An option without a value, none where it is not given."""
OPENING = ("revision", "offline", "allow_pickle", "tokenizer", "dtype", "ema", "prediction")
"""Arguments of `add_opening`, under the names that `diptych.load` has for them."""
RUNNING = ("engine", "precision", "offload", "weight_precision")
"""Those of `add_engine`."""


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line that names `--help`."""

    commands: Collection[str] = ()
    """The names of its commands."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})
        self.set_defaults(parser=self)  # that of the command wins

    def refuse(self, words: Sequence[str]) -> NoReturn:
        """Report words that are neither options nor expected."""
        names = [word.partition("=")[0] for word in words if word.startswith("-")]
        near = hint(names[0], self._option_string_actions) if names else ""
        self.error(f"unrecognized arguments: {' '.join(words)}{near}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            if isinstance(action, argparse._SubParsersAction):
                self.error(str(unknown(f"unknown command {value!r}", value, action.choices)))
            raise argparse.ArgumentError(action, str(unknown(f"unknown choice {value!r}", value, action.choices)))

    def error(self, message: str) -> NoReturn:
        if match := re.fullmatch(r"argument (\S+/)?(--\S+): expected one argument", message):
            message += f"; one that begins with a dash is written {match[2]}=-VALUE"
        raise UserError(f"{message} (see `{self.prog} --help`)")

    def _print_message(self, message: str, file: IO[str] | None = None) -> None:
        if message:  # argparse swallows a closed pipe; `main` handles it
            (file or sys.stderr).write(message)


class OneName(argparse.Action):
    """Stores a value that is given under one of the option's names, and refuses it under two."""

    def __call__(
        self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
    ) -> None:
        names = vars(namespace).setdefault("given_names", {})
        before = names.setdefault(self.dest, option_string)
        if before != option_string:
            parser.error(f"{before} and {option_string} are one option: give one of them")
        setattr(namespace, self.dest, values)


def argument_type(value: Value) -> Callable[[str], Any]:
    """The `type` of an argument."""

    def read(text: str) -> Any:
        try:
            return value.parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def add_options(command: Parser, *names: str) -> None:
    """Options of `generate`, all or those of these names, each under its heading and with one value a stage."""
    chosen = [one for name, one in all_options().items() if one.arguments and (not names or name in names)]
    for heading, text in GROUPS.items():
        options = [option for option in chosen if option.group == heading]
        if options:
            group = command.add_argument_group(heading, text or None)
            for option in options:
                add_option(group, option)


def add_option(group: Any, option: Option) -> None:
    """One option of `generate` and its hidden aliases."""
    how = {"metavar": option.placeholder, "type": argument_type(option.value), "dest": option.name}
    if isinstance(option.value, Flag):
        how = {**FLAG, "dest": option.name}
    elif option.repeated:
        how["action"] = "append"
    else:
        how["action"] = OneName
    group.add_argument(*option.arguments, help=option.described, **how)
    if option.old_arguments:
        group.add_argument(*option.old_arguments, help=argparse.SUPPRESS, **how)


def add_single_options(command: Parser, *names: str) -> None:
    """Options of sampling with one value each."""
    for name in names:
        add_option(command, options_of(SamplingOptions)[name])


def add_model(command: Parser) -> None:
    """`--model` and `--lora`; `add_opening` goes with them."""
    command.add_argument(
        "--model",
        metavar="M",
        help="latent, latent-4-steps, cascade, a run or model folder, a published folder or file, or owner/name on the "
        "hub (default: latent)",
    )
    command.add_argument(
        "--lora",
        metavar="FILE[:SCALE]",
        type=argument_type(ScaledFile()),
        action="append",
        help="apply this LoRA to a latent model, scale 1 by default; may be repeated",
    )


def add_models(command: Parser, text: str, required: bool = False) -> None:
    """`--model`, once for each model."""
    command.add_argument("--model", metavar="M", action="append", dest="models", required=required, help=text)
    add_opening(command)


def add_opening(command: Parser, dtype: str = "precision: float32 (default), float16 or bfloat16") -> None:
    """How a published model is found and read."""
    published = command.add_argument_group("published models")
    published.add_argument("--revision", metavar="R", help="a branch, tag or commit on the hub")
    published.add_argument("--offline", **FLAG, help="use only the local cache of the hub")
    published.add_argument("--allow-pickle", **FLAG, help="read .ckpt, .pt and .bin too: their tensors, never code")
    published.add_argument("--tokenizer", metavar="FOLDER", type=Path, help="tokenizer for a single file")
    published.add_argument("--dtype", metavar="T", help=dtype)
    published.add_argument("--ema", **FLAG, help="the EMA weights of a file that has both")
    published.add_argument("--prediction", metavar="P", help="prediction type of a single file: eps or v")


def add_output(command: Parser, batch: int) -> None:
    """Seeds, batch size, device and folder of generated images."""
    command.add_argument(
        "--seed",
        metavar="N",
        type=argument_type(Seeds()),
        action="extend",
        default=[],
        help="one or more seeds, such as 7 or 0,4-7; -1 is a random seed (default: 0)",
    )
    add_integer(command, "--count", 1, help="number of seeds, counted up from --seed")
    add_integer(command, "--batch", 1, help=f"batch size (default: {batch})")
    add_device(command)
    command.add_argument("--out", metavar="FOLDER", type=Path, default=Path("out"), help="output folder (default: out)")


def add_checks(command: Any) -> None:
    """What sees to each image before it is written: a safety check, and a signature."""
    group = command.add_argument_group("safety and provenance", "none unless given; see docs/serving.md")
    group.add_argument(
        "--safety", metavar="MODULE:OBJECT", help="your own check of prompts and images, which may refuse them"
    )
    group.add_argument(
        "--c2pa-certificate", metavar="PEM", type=Path, help="sign images (C2PA) by this chain of certificates"
    )
    group.add_argument("--c2pa-key", metavar="PEM", type=Path, help="the private key of its first certificate")


def add_kinds(commands: Any, name: str, text: str, title: str, metavar: str) -> Any:
    """A command that is none by itself; `add_parser` of what this returns adds its kinds."""
    return commands.add_parser(name, help=text).add_subparsers(title=title, metavar=metavar, required=True)


def add_seed(command: Any, text: str, **options: Any) -> None:
    """`--seed`, one number."""
    add_integer(command, "--seed", 0, SEED_LIMIT - 1, help=text, **options)


def add_weights(command: Any, text: str) -> None:
    """`--weights`, read by `measure_commands.named`."""
    command.add_argument("--weights", metavar="NETWORK=PATH", action="append", default=[], help=text)


def add_reading(command: Any) -> None:
    """How weights of feature networks may be read."""
    command.add_argument("--allow-pickle", **FLAG, help="read .pth and .pt too: their tensors, never code")
    command.add_argument("--offline", **FLAG, help="use only the local cache of the hub")


def add_device(command: Parser, engines: bool = True) -> None:
    """`--device`, and what runs the networks there."""
    command.add_argument(
        "--device", metavar="D", default="auto", help="cpu, cuda, mps, or auto (default): cuda if there is one"
    )
    if not engines:
        return
    group = command.add_argument_group("speed", "docs/speed.md says what each is worth")
    group.add_argument(
        "--engine",
        metavar="E",
        help="what runs the networks: openvino (CPUs), compile (torch.compile), pytorch, or auto (default): OpenVINO "
        "on CPUs where it is installed",
    )
    group.add_argument(
        "--precision", metavar="P", help="float32 (auto, default): the same images; bf16, int8: faster, other images"
    )
    group = command.add_argument_group("memory of a GPU", "docs/memory.md says what each takes")
    group.add_argument(
        "--offload",
        metavar="WAY",
        help="parts (text encoder, U-Net, decoder, stages) or layers are on the GPU only while they work: the same "
        "images, later (default: none)",
    )
    group.add_argument(
        "--weight-precision", metavar="P", help="int8 or float8: weights in 8 bits, other images (default: stored)"
    )


def opening_given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of `diptych.load` that were given, but for the model, its device and LoRA files."""
    return given(arguments, *(name for name in (*OPENING, *RUNNING) if hasattr(arguments, name)))


def add_study(command: Parser, images: str) -> None:
    """What every evaluation takes; `images` says what `--images` counts."""
    add_integer(command, "--images", 1, help=images)
    add_integer(command, "--pictures", 1, dest="images", help=argparse.SUPPRESS)
    command.add_argument(
        "--data", metavar="FOLDER", type=Path, required=True, help="data folder, such as data/emoji-128"
    )
    command.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="output folder of the results")
    add_seed(command, "seed of prompts and images")
    command.add_argument("--judge", metavar="FOLDER", help="run or model folder of a judge (default: the package's)")
    add_device(command)
    add_integer(command, "--batch", 1, help="batch size")


def add_recipe(command: Parser) -> None:
    """A recipe and changes of its settings."""
    command.add_argument("recipe", metavar="RECIPE", help="a name from `diptych recipes`")
    command.add_argument(
        "assignments", metavar="a.b=c", nargs="*", help="values of the recipe to change, such as training.steps=1000"
    )
    command.set_defaults(more="assignments")


def add_integer(command: Any, name: str, low: int, high: int | None = None, metavar: str = "N", **options: Any) -> None:
    """An option that is a whole number."""
    value = Integer(low) if high is None else Integer(low, high)
    command.add_argument(name, metavar=metavar, type=argument_type(value), **options)


def given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those arguments that were given."""
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}


def options_given(arguments: argparse.Namespace) -> dict[str, Any]:
    """Those options of `generate` that were given, guides aside."""
    names = [name for name, option in all_options().items() if option.arguments and hasattr(arguments, name)]
    return given(arguments, *names)
