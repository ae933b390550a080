"""`diptych evaluate images` and `evaluate compare`: measures of images on disk."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from diptych.cli.argument_values import Several
from diptych.cli.arguments import Parser, add_device, add_integer, add_reading, add_weights, argument_type, given
from diptych.core.errors import UserError
from diptych.core.values import Text

EXAMPLES = """\
examples:
  diptych evaluate images real/ generated/ --metrics fid,kid,is --weights inception=inception.pth --out results.json
  diptych evaluate images coco/val2014 generated/ --size 256 --weights inception=inception.pth --statistics coco-256.npz
  diptych evaluate images coco-256.npz generated/ --size 256 --weights inception=inception.pth
  diptych evaluate images generated/ --metrics clip-score --weights clip=openai/clip-vit-large-patch14

REAL and GENERATED are folders of images or of .tar shards, shards in a store, or .npz files. docs/evaluation.md
says what each measure depends on.
"""
NETWORKS = ("inception", "vgg16", "clip", "judge")
METRICS = ("fid", "kid", "is", "precision-recall", "clip-score", "cmmd", "psnr", "ssim", "lpips")
MEASURED_BY = {
    "splits": ("is",),
    "subsets": ("kid",),
    "subset_size": ("kid",),
    "k": ("precision-recall",),
    "bootstrap": ("fid",),
    "seed": ("kid", "is"),
}
"""Options, and the metrics that they are for."""
RESIZES = ("tf1", "torch-bilinear", "clean", "clip", "torch-bicubic", "torch-antialiased")


def add_commands(commands: Any) -> None:
    """Add `evaluate images` and `evaluate compare`."""
    command: Parser = commands.add_parser(
        "evaluate images",
        help="FID, KID, Inception Score, precision and recall, CLIP score and more, of images on disk",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES,
    )
    command.add_argument(
        "sets", metavar="REAL GENERATED", nargs="+", help="both, or GENERATED alone for is and clip-score"
    )
    command.add_argument(
        "--metrics", metavar="M,M", type=argument_type(Several(Text())), help=f"of {', '.join(METRICS)} (default: fid)"
    )
    add_weights(command, f"weights of {', '.join(NETWORKS)}")
    networks = command.add_argument_group("features")
    networks.add_argument(
        "--features", metavar="F", choices=NETWORKS, help="of fid, kid, precision-recall (default: inception)"
    )
    networks.add_argument(
        "--network-resize",
        metavar="R",
        dest="network_resize",
        choices=RESIZES,
        help="to the network's size: tf1 (default of inception: torch-fidelity), torch-bilinear (pytorch-fid), clean",
    )
    add_reading(networks)
    images = command.add_argument_group("images")
    add_integer(images, "--size", 1, 4096, metavar="PIXELS", help="bring both sides to this size first")
    images.add_argument("--crop", choices=("center", "none"), help="with --size: the centre square (default), or all")
    images.add_argument(
        "--resize",
        choices=("box", "bilinear", "bicubic", "lanczos"),
        help="with --size: the filter (default: bicubic)",
    )
    add_integer(images, "--jpeg", 1, 100, metavar="Q", help="encode generated images as JPEG of this quality first")
    add_integer(images, "--reference-jpeg", 1, 100, metavar="Q", help="the same for real ones")
    add_integer(images, "--limit", 1, help="the first N generated images alone")
    add_integer(images, "--reference-limit", 1, help="the first N real images alone")
    settings = command.add_argument_group("settings")
    add_integer(settings, "--splits", 1, help="parts of the Inception Score (default: 10)")
    add_integer(settings, "--subsets", 1, help="draws of KID (default: 100)")
    add_integer(settings, "--subset-size", 2, help="images in a draw of KID (default: 1000)")
    add_integer(settings, "--k", 1, 1000, help="neighbours of precision-recall (default: 3)")
    add_integer(settings, "--seed", 0, 2**32 - 1, help="of KID's draws and the Inception Score's order (default: 2020)")
    add_integer(settings, "--bootstrap", 2, 10_000, help="resamples for FID's standard error (default: none)")
    add_integer(settings, "--batch", 1, 4096, help="images a network reads at a time (default: 32)")
    add_device(command, engines=False)
    command.add_argument("--statistics", metavar="NPZ", type=Path, help="also save the reference's mean and covariance")
    command.add_argument("--out", metavar="JSON", type=Path, help="file of the results")
    command.set_defaults(command=measure, more="sets", warns=True)

    command = commands.add_parser("evaluate compare", help="results of `evaluate images` side by side, if they compare")
    command.add_argument("results", metavar="JSON", nargs="+", type=Path, help="files of results, two or more")
    command.set_defaults(command=compare, more="results")


def measure(arguments: argparse.Namespace) -> None:
    from diptych.core.disk import require_place
    from diptych.metrics.image_set import Processing

    if len(arguments.sets) > 2:
        raise UserError(f"two sets are compared, REAL and GENERATED, not {len(arguments.sets)}")
    *real, generated = arguments.sets
    metrics = arguments.metrics or (["fid"] if real else ["is"])
    require_effect(arguments, metrics)
    weights = dict(named(text) for text in arguments.weights)
    for path in (arguments.out, arguments.statistics):
        if path is not None:
            require_place(path.parent)
            if path.is_dir():
                raise UserError(f"{path} is a folder: name a file")
    if arguments.statistics is not None and not real:
        raise UserError("--statistics saves those of REAL: name both sets")
    if arguments.statistics is not None and arguments.statistics.suffix.casefold() != ".npz":
        raise UserError(f"--statistics writes an .npz: name one, not {arguments.statistics}")
    processing = Processing(**given(arguments, "size", "crop", "resize", "jpeg"))
    if processing.size is None and given(arguments, "crop", "resize"):
        raise UserError("--crop and --resize say how images are brought to --size: name one")
    reference = Processing(**given(arguments, "size", "crop", "resize"), jpeg=arguments.reference_jpeg)

    from diptych.cli.measure_report import print_results, write_results
    from diptych.core.devices import find_device
    from diptych.evaluation.folder import failures_of
    from diptych.evaluation.set_files import made_with
    from diptych.metrics.image_set import ImageSet
    from diptych.metrics.measure import MeasureConfig, Measurement, open_reference

    config = MeasureConfig(
        resize=arguments.network_resize,
        **given(arguments, "features", "splits", "subsets", "subset_size", "k", "seed", "bootstrap", "batch"),
    )
    made = ImageSet(generated, processing, arguments.limit)
    images, statistics = open_reference(real[0] if real else None, reference, arguments.reference_limit)
    if arguments.statistics is not None and images is None:
        raise UserError(f"--statistics saves those of images, and {real[0]} holds statistics already")
    measurement = Measurement(
        made,
        images,
        statistics,
        config,
        weights,
        find_device(arguments.device),
        bool(arguments.allow_pickle),
        bool(arguments.offline),
    )
    measurement.warn_of_left_out()
    results = measurement.measure(metrics)
    if made := made_with(Path(generated)):
        results = [{**one, "made_with": made} for one in results]
    failed = []  # a file that cannot be written takes nothing from what was computed
    if arguments.out is not None:
        failed += failures_of(lambda: write_results(arguments.out, results))
    print_results(results)
    if arguments.statistics is not None:
        failed += failures_of(lambda: measurement.save_statistics(arguments.statistics, "real"))
    if failed:
        raise UserError(f"the results are above, but not all was written: {'; '.join(failed)}")


def require_effect(arguments: argparse.Namespace, metrics: list[str]) -> None:
    """Raise a `UserError` for an option that changes nothing of these metrics: results would not be what was asked."""
    if not set(metrics) <= set(METRICS):
        return  # which ones there are is said later
    for name, own in MEASURED_BY.items():
        if name == "seed" and arguments.bootstrap is not None:
            continue
        if getattr(arguments, name) is not None and not set(own) & set(metrics):
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} is for {', '.join(own)}, not for {', '.join(metrics)}: leave it out")
    if arguments.network_resize is not None and arguments.statistics is None:
        from diptych.metrics.measure import OWN_NETWORK, PAIRED

        chosen = arguments.features or "inception"
        if all(name in PAIRED or OWN_NETWORK.get(name, chosen) != chosen for name in metrics):
            networks = ", ".join(sorted({OWN_NETWORK[name] for name in metrics if name in OWN_NETWORK}))
            instead = f": those of {', '.join(metrics)} are of {networks}" if networks else ""
            raise UserError(f"--network-resize is how images come to --features ({chosen}){instead}")


def named(text: str) -> tuple[str, str]:
    """NETWORK=PATH."""
    from diptych.core.errors import pick

    network, equals, path = text.partition("=")
    if not equals or not path:
        raise UserError(f"--weights takes NETWORK=PATH, such as inception=weights.pth, not {text!r}")
    return pick("network of --weights", network, NETWORKS), path


def compare(arguments: argparse.Namespace) -> None:
    from diptych.cli.measure_report import print_comparison, read_results

    if len(arguments.results) < 2:
        raise UserError("name two files of results or more")
    print_comparison([(path, read_results(path)) for path in arguments.results])
