"""`diptych evaluate fid-30k`, `unconditional`, `class-conditional`: protocols of papers, their choices as options."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from diptych.cli.argument_values import Several
from diptych.cli.arguments import (
    Parser,
    add_device,
    add_integer,
    add_model,
    add_opening,
    add_options,
    add_seed,
    add_weights,
    argument_type,
    given,
    opening_given,
    options_given,
)
from diptych.cli.measure_commands import METRICS, NETWORKS, RESIZES, named
from diptych.cli.prompts_commands import SAMPLING, OrAll
from diptych.core.errors import UserError
from diptych.core.values import Text

EXAMPLES = """\
examples:
  diptych evaluate fid-30k captions_val2014.json val2014/ --preset ldm --model runs/sd --steps 50 \\
      --weights inception=inception.pth --out runs/fid
  diptych evaluate fid-30k captions_val2014.json val2014/ --generated runs/fid/images --preset ldm \\
      --network-resize clean --weights inception=inception.pth --out runs/fid-clean

docs/protocols.md says what each choice changes. An interrupted run goes on.
"""
CHOICES = ("number", "seed", "crop", "resize", "jpeg", "reference_jpeg", "network_resize")
OF_KIND = {
    "fid-30k": ("per_image", "caption", "reference"),
    "unconditional": ("manifold_reference",),
    "class-conditional": ("manifold_reference", "classes"),
}
PRESETS = {
    "fid-30k": ("common", "imagen", "ldm"),
    "unconditional": ("common", "ldm"),
    "class-conditional": ("common", "ldm"),
}
DATASETS = {
    "unconditional": ("celebahq", "ffhq", "lsun-churches", "lsun-bedrooms"),
    "class-conditional": ("imagenet",),
}
NOT_HERE = ("size", "prompt_weights")
"""Options of `generate` whose names mean something else here: `--size` and `--weights`."""
TASKS = ("fid-30k", "unconditional", "class-conditional", "super-resolution", "inpainting", "layout")
ALL = ("number", "per_image", "manifold_reference")
"""Choices in which "all" is none."""


def add_commands(commands: Any) -> None:
    """Add the protocols to `evaluate`."""
    command = add_protocol(commands, "fid-30k", "FID of images of COCO's captions, beside published figures", EXAMPLES)
    command.add_argument("annotations", metavar="FILE", type=Path, help="COCO's captions_val2014.json")
    command.add_argument("images", metavar="FOLDER", type=Path, help="its images, val2014")
    draw = command.add_argument_group("draw")
    draw.add_argument("--number", metavar="N", type=argument_type(OrAll(1)), help="captions, or all (default: 30000)")
    draw.add_argument(
        "--per-image",
        metavar="N",
        type=argument_type(OrAll(1, 1000)),
        help="captions of each image (default: 1), or all: draw among all captions",
    )
    draw.add_argument(
        "--caption", metavar="C", choices=("random", "first"), help="of an image: random (default), first"
    )
    draw.add_argument("--prompts", metavar="FILE", type=Path, help="captions that `diptych prompts coco` drew before")
    draw.add_argument(
        "--reference",
        metavar="R",
        choices=("full", "subset"),
        help="full (default): all images of the annotations; subset: those whose captions were drawn",
    )
    add_rest(command, draw, "fid-30k")

    for name in ("unconditional", "class-conditional"):
        text = "FID, Inception Score, precision and recall of samples, beside published figures"
        command = add_protocol(commands, name, f"{text}: {name} models", None)
        command.add_argument(
            "real", metavar="REAL", help="images of the data set, or an .npz of their statistics, for FID alone"
        )
        draw = command.add_argument_group("draw")
        add_integer(draw, "--number", 1, help="samples (default: 50000)")
        if name == "class-conditional":
            draw.add_argument(
                "--classes",
                metavar="C",
                choices=("random", "balanced"),
                help="random (default): each sample's class is drawn; balanced: all equally often",
            )
        draw.add_argument(
            "--manifold-reference",
            metavar="N",
            type=argument_type(OrAll(2)),
            help="reference images of precision and recall, or all (default: 10000)",
        )
        command.add_argument(
            "--dataset",
            metavar="D",
            choices=DATASETS[name],
            help=f"whose published figures stand below ours: {', '.join(DATASETS[name])}",
        )
        add_rest(command, draw, name)

    command = commands.add_parser(
        "evaluate published", help="results of `evaluate images` beside the published figures of a task"
    )
    command.add_argument("task", metavar="TASK", choices=TASKS, help=", ".join(TASKS))
    command.add_argument("results", metavar="JSON", nargs="*", type=Path, help="files of results")
    command.add_argument("--dataset", metavar="D", required=True, help="whose figures, such as imagenet")
    command.add_argument(
        "--hard", metavar="JSON", type=Path, help="inpainting: results of masks that hide 40 to 50 percent"
    )
    command.set_defaults(command=published, more="results")


def add_protocol(commands: Any, name: str, text: str, examples: str | None) -> Parser:
    command: Parser = commands.add_parser(
        f"evaluate {name}", help=text, formatter_class=argparse.RawDescriptionHelpFormatter, epilog=examples
    )
    command.set_defaults(command=evaluate, protocol=name, warns=True, shared=True)
    return command


def add_rest(command: Parser, draw: Any, name: str) -> None:
    """What all protocols take."""
    add_seed(draw, "of the draw and of the images (default: 0)")
    command.add_argument(
        "--preset",
        metavar="P",
        choices=PRESETS[name],
        default="common",
        help=f"choices as a paper states them: {', '.join(PRESETS[name])}; options change them",
    )
    command.add_argument(
        "--generated", metavar="FOLDER", type=Path, help="images that are generated already, instead of --model"
    )
    add_model(command)
    add_opening(command)
    images = command.add_argument_group("images")
    images.add_argument(
        "--size",
        metavar="PIXELS",
        dest="side",
        type=argument_type(OrAll(1, 4096)),
        help="bring both sides to this size first (default: 256)",
    )
    images.add_argument("--crop", choices=("center", "none"), help="the centre square (default), or all of an image")
    images.add_argument(
        "--resize", choices=("box", "bilinear", "bicubic", "lanczos"), help="the filter to --size (default: bicubic)"
    )
    add_integer(images, "--jpeg", 1, 100, metavar="Q", help="measure generated images as JPEGs of this quality")
    add_integer(images, "--reference-jpeg", 1, 100, metavar="Q", help="the same for real ones, at --size")
    measuring = command.add_argument_group("measures")
    measuring.add_argument(
        "--metrics", metavar="M,M", type=argument_type(Several(Text())), help=f"of {', '.join(METRICS[:6])}"
    )
    add_weights(measuring, f"weights of {', '.join(NETWORKS)}")
    measuring.add_argument(
        "--features", metavar="F", choices=NETWORKS, help="inception (default); of others nothing published compares"
    )
    measuring.add_argument(
        "--network-resize",
        metavar="R",
        choices=RESIZES[:3],
        help="to InceptionV3's size: tf1 (default: torch-fidelity), torch-bilinear (pytorch-fid), clean (clean-fid)",
    )
    add_integer(measuring, "--bootstrap", 2, 10_000, help="resamples for FID's standard error (default: none)")
    add_integer(measuring, "--splits", 1, help="parts of the Inception Score (default: 10)")
    add_integer(measuring, "--k", 1, 1000, help="neighbours of precision and recall (default: 3)")
    add_integer(command, "--batch", 1, help="images generated at a time (default: 8)")
    add_device(command)
    command.add_argument("--out", metavar="FOLDER", type=Path, required=True, help="folder of images and results")
    add_options(command, *(option for option in SAMPLING if option not in NOT_HERE))


def evaluate(arguments: argparse.Namespace) -> None:
    from diptych.cli.generate_commands import lora_files
    from diptych.cli.generate_set_command import share_of
    from diptych.cli.option_checks import check_options
    from diptych.core.disk import values_of
    from diptych.evaluation.folder import MARK, require_free, require_same

    name, options = arguments.protocol, options_given(arguments)
    place, shares, torchrun = share_of(None)
    if arguments.generated is not None and (unused := given(arguments, "model", "lora", "batch") | options):
        raise UserError(f"--{next(iter(unused)).replace('_', '-')} is for a model: leave it out beside --generated")
    if arguments.network_resize is not None and arguments.features not in (None, "inception"):
        raise UserError(f"--network-resize is to InceptionV3's size: leave it out with --features {arguments.features}")
    check_options(options, lora_files(arguments))
    require_same(arguments.out, name)
    if place and arguments.generated is not None:
        return  # the first process measures
    weights = dict(named(text) for text in arguments.weights)

    from diptych.core.devices import find_device
    from diptych.evaluation.protocol_choices import choose
    from diptych.evaluation.protocol_run import WRITES, Measuring, ProtocolRun, evaluate_captions, evaluate_samples
    from diptych.training.distributed import Shares, own_device

    if not values_of(arguments.out / MARK):
        require_free(arguments.out, WRITES)
    values = given(arguments, *CHOICES, *OF_KIND[name])
    if arguments.side is not None:
        values["size"] = arguments.side
    for key in (*ALL, "size"):
        if values.get(key) == "all":
            values[key] = None
    choices, preset = choose(name, arguments.preset, values)
    measuring = Measuring(
        weights=weights,
        device=own_device(arguments.device) if torchrun else find_device(arguments.device),
        allow_pickle=bool(arguments.allow_pickle),
        offline=bool(arguments.offline),
        **given(arguments, "features", "metrics", "bootstrap", "splits", "k"),
    )
    run = ProtocolRun(
        protocol=name,
        out=arguments.out,
        choices=choices,
        preset=preset,
        measuring=measuring,
        model=None if arguments.generated is not None else lambda: opened(arguments, options),
        generated=arguments.generated,
        name=str(arguments.generated or arguments.model or "latent"),
        dataset="coco" if name == "fid-30k" else arguments.dataset,
        batch=arguments.batch,
    )
    if arguments.generated is None and torchrun:
        run.share, run.done = (place, shares), Shares(place, shares).done
    if name == "fid-30k":
        evaluate_captions(run, arguments.annotations, arguments.images, prompts=arguments.prompts)
    else:
        evaluate_samples(run, arguments.real)


def opened(arguments: argparse.Namespace, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The model, and those options, which it takes."""
    import diptych
    from diptych.cli.option_checks import accepted_options
    from diptych.training.distributed import own_device

    device = str(own_device(arguments.device)) if int(os.environ.get("WORLD_SIZE", 1)) > 1 else arguments.device
    model = diptych.load(arguments.model, device, **opening_given(arguments), **given(arguments, "lora"))
    return model, accepted_options(model, arguments.model or "latent", options)


def published(arguments: argparse.Namespace) -> None:
    from diptych.cli.measure_report import read_results
    from diptych.core.errors import pick
    from diptych.core.terminal import console, print_out
    from diptych.evaluation import published_results

    if arguments.hard is not None and arguments.task != "inpainting":
        raise UserError("--hard is for inpainting: leave it out")
    dataset = pick(
        "data set with published results", arguments.dataset, tuple(published_results.datasets(arguments.task))
    )
    files = {str(path): read_results(path) for path in arguments.results}
    rows = {name: {one["metric"]: one for one in results} for name, results in files.items()}
    if arguments.hard is not None:
        files[str(arguments.hard)] = read_results(arguments.hard)
        hard = {f"{one['metric']}_hard": one for one in files[str(arguments.hard)]}
        first = next(iter(rows), str(arguments.hard))
        rows[first] = rows.get(first, {}) | hard
    groups = published_results.published(arguments.task, dataset)
    networks = {name: published_results.network_of(results) for name, results in files.items()}
    of_networks = {network or "InceptionV3" for network in networks.values()}
    if len(of_networks) > 1:
        raise UserError(f"these results have features of {' and '.join(sorted(of_networks))}: place them apart")
    foreign = None if of_networks <= {"InceptionV3"} else f"{of_networks.pop()} features"
    console().print(published_results.comparison(f"{arguments.task}, {dataset}", rows, groups, foreign))
    for name, results in files.items():
        without = () if networks[name] else ("network", "network resize")
        for line in published_results.differences(published_results.choices_of(results), groups, without):
            print_out(f"{name} and {line}")
        for line in published_results.unsaid_of(results):
            print_out(f"{name}: {line}")
