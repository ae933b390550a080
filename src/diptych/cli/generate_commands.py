"""`diptych generate` and `diptych demo`. What they need is imported when they run, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import contextlib
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.cli.arguments import (
    FLAG,
    Parser,
    add_checks,
    add_integer,
    add_model,
    add_opening,
    add_options,
    add_output,
    given,
    opening_given,
    options_given,
)
from diptych.cli.image_list import apply_variations, read_image_list
from diptych.core.errors import NotFound, UserError
from diptych.core.terminal import print_err
from diptych.models.option_registry import all_options

if TYPE_CHECKING:
    from PIL.Image import Image

DEFAULT_MODELS = ("latent", "cascade")
"""The embedded models, by the names that `diptych.load` has for them."""
BATCH, DEMO_BATCH = 8, 4
"""Images generated at a time, where `--batch` does not say."""
MOST_ON_A_SHEET = 100
"""Images of each model on the sheet of `demo`."""
EXAMPLES = """\
examples:
  diptych generate "a red apple" "a cat face" --count 4 --sampler dpmpp-2m --steps 20 --guidance 5
  diptych generate "a red apple" --model cascade --seed 1-4,9 --steps 24,8,8 --threshold dynamic:0.95,,
  diptych generate "a blue apple" --image out/a-red-apple-s0.png --strength 0.6

Each PNG stores its settings: `diptych generate --from IMAGE.png` generates it again. docs/options.md lists the options.
"""


def add_commands(commands: Any) -> None:
    """Add `generate` and `demo`."""
    command: Parser = commands.add_parser(
        "generate",
        help="generate images from prompts, or from an image",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    command.add_argument(
        "prompts", metavar="PROMPT", nargs="*", help="prompts, each generated with each seed; optional with --image"
    )
    command.add_argument(
        "--from",
        metavar="PNG",
        type=Path,
        dest="from_png",
        help="generate this image again from its metadata; other options replace their values in it",
    )
    add_model(command)
    add_output(command, BATCH)
    command.add_argument("--peak-memory", **FLAG, help="print the most memory that was used; always on a GPU")
    add_integer(command, "--variations", 1, help="N images like --image: --count N with --strength 0.6")
    add_set(command)
    add_checks(command)
    add_options(command)
    add_opening(command)
    command.set_defaults(command=generate, more="prompts", warns=True, shared=True)
    (stages,) = [group for group in command._action_groups if group.title == "cascades"]
    stages.description = per_stage_help()

    command = commands.add_parser("demo", help="generate the same prompts with both default models, side by side")
    command.add_argument("prompts", metavar="PROMPT", nargs="+", help="prompts, each generated with each seed")
    add_output(command, DEMO_BATCH)
    command.set_defaults(command=demo, more="prompts", warns=True)


def add_set(command: Parser) -> None:
    """What asks for a set of images."""
    group = command.add_argument_group(
        "sets of images",
        "for evaluation, in a folder of their own; the same command goes on where one was interrupted, and torchrun "
        "divides a set among processes",
    )
    group.add_argument(
        "--prompts",
        metavar="FILE",
        type=Path,
        dest="prompt_file",
        help="the prompts: .txt, .csv, .tsv, .jsonl, .json (COCO's captions too) or .parquet",
    )
    add_integer(group, "--images-per-prompt", 1, help="images of each prompt (default: 1)")
    group.add_argument("--shard", metavar="I/N", help="make the I-th of N shares alone, from 1/N to N/N")
    group.add_argument("--format", metavar="F", choices=("png", "jpeg"), help="png (default) or jpeg")
    add_integer(group, "--quality", 1, 100, help="of jpeg (default: 95)")
    add_integer(group, "--limit", 1, help="the first N prompts alone; may be raised later")


def per_stage_help() -> str:
    """Which options take one value for each stage, and how."""
    names = [option.arguments[0] for option in all_options().values() if option.per_stage]
    text = f"{', '.join(names)} take one value for all stages, or one for each: --steps 24,8,8."
    return textwrap.fill(f"{text} An empty value, or -, is the stage's default: --steps 24,,", 100)


def generate(arguments: argparse.Namespace) -> None:
    if arguments.prompt_file is not None:
        from diptych.cli.generate_set_command import generate_set

        return generate_set(arguments)
    recorded = None
    if arguments.from_png is not None:
        from diptych.cli.regenerate import Recorded

        recorded = Recorded.read(arguments.from_png)
        recorded.complete(arguments)
    apply_variations(arguments)
    wanted = read_image_list(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)

    with loading(arguments.model or "latent", arguments.engine):
        import diptych
        from diptych.cli.image_checks import ImageChecks
        from diptych.cli.option_checks import accepted_options, check_options
        from diptych.cli.output import file_stem, generate_images, save_image
        from diptych.models.metadata import of_stage, stage_suffix

        checks, options = ImageChecks.open(arguments, wanted), options_given(arguments)
        check_options(options, lora_files(arguments))
        model = diptych.load(arguments.model, arguments.device, **opening_given(arguments), **given(arguments, "lora"))
        options |= open_guides(arguments)
    options = options if recorded is None else recorded.fitting(model, options)
    options = accepted_options(model, arguments.model or "latent", options)
    if recorded is not None:
        recorded.verify(model, options)
    for image, metadata, earlier in checks.allowed(generate_images(model, wanted, arguments.batch or BATCH, **options)):
        name = file_stem(metadata)
        if recorded is not None and recorded.kept:
            (image, metadata), earlier = recorded.kept_image(metadata, earlier, image), []
            name += stage_suffix(metadata)
        path = save_image(image, arguments.out, name, metadata, checks.signer)
        if recorded is not None:
            recorded.compare(image)
        for number, stage_image in enumerate(earlier, 1):
            row = of_stage(metadata, number, stage_image)
            save_image(stage_image, arguments.out, path.stem + stage_suffix(row), row, checks.signer)
    tell_peak(model, bool(arguments.peak_memory))


def tell_peak(model: Any, asked: bool) -> None:
    """The most memory that a model used, where that was asked for or it is on a GPU."""
    device = getattr(model, "device", None)
    if device is not None and (asked or device.type == "cuda"):
        from diptych.core.memory_use import peak_line

        print_err(peak_line(device))


@contextlib.contextmanager
def loading(model: str, engine: str | None = None) -> Iterator[None]:
    """Within, PyTorch is imported and a model opened: seconds, which a terminal is told of."""
    from diptych.core.progress import waiting
    from diptych.core.startup import collector_paused, yield_when_busy
    from diptych.engines.open_ahead import open_ahead

    yield_when_busy()
    open_ahead(model, engine)
    with collector_paused(), waiting(f"loading {model}", in_files=False):
        yield


def open_guides(arguments: argparse.Namespace) -> dict[str, Any]:
    """What --classifier and --clip name, opened, as `generate` takes it."""
    if not arguments.guides:
        return {}
    from diptych.pretrained.load_guide import open_guide

    how = given(arguments, "revision", "offline", "allow_pickle")
    return {"guides": tuple((open_guide(source, **how), scale) for source, scale in arguments.guides)}


def lora_files(arguments: argparse.Namespace) -> list[Path]:
    return [file for file, _ in getattr(arguments, "lora", None) or ()]


def demo(arguments: argparse.Namespace) -> None:
    wanted = read_image_list(arguments)
    if len(wanted) > MOST_ON_A_SHEET:
        raise UserError(
            f"demo shows at most {MOST_ON_A_SHEET} images side by side, not {len(wanted):,}: use `generate`"
        )
    arguments.out.mkdir(parents=True, exist_ok=True)

    with loading(DEFAULT_MODELS[0], arguments.engine):
        import diptych
        from diptych.cli.output import comparison_sheet, file_stem, generate_images, save_image

    images: dict[str, list[Image]] = {}
    for name in DEFAULT_MODELS:
        try:
            with loading(name, arguments.engine):
                model = diptych.load(name, arguments.device, **opening_given(arguments))
        except NotFound as error:
            print_err(f"diptych: {error}")
            continue
        images[name] = []
        for image, metadata, _ in generate_images(model, wanted, arguments.batch or DEMO_BATCH, f"generating: {name}"):
            save_image(image, arguments.out, f"{file_stem(metadata)}-{name}", metadata)
            images[name].append(image)
    if not images:
        raise UserError("this package has no default model: there is nothing to generate")
    if len(images) == len(DEFAULT_MODELS):
        sheet = comparison_sheet(wanted, images)
        save_image(sheet, arguments.out, "both-panels", {"models": list(images), "pictures": list(wanted)})
