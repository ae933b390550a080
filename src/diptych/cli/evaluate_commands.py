"""`diptych evaluate ...`, `sweep ...` and `unseen`: the studies of `diptych.evaluation.benchmarks`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from diptych.cli.argument_values import Several
from diptych.cli.arguments import (
    FLAG,
    OPENING,
    Parser,
    add_integer,
    add_kinds,
    add_model,
    add_models,
    add_opening,
    add_options,
    add_reading,
    add_single_options,
    add_study,
    add_weights,
    argument_type,
    given,
    opening_given,
    options_given,
)
from diptych.cli.measure_commands import NETWORKS, named
from diptych.core.errors import UserError
from diptych.core.values import Number, Text

SPLITS = ("held-out", "train", "all")
FRACTION = Number(0, 1)


def add_commands(commands: Any) -> None:
    """Add `evaluate` and its kinds, `sweep` and `unseen`."""
    command = commands.add_parser("evaluate", help="score generated images of seen and held-out prompts with the judge")
    add_model(command)
    add_opening(command)
    add_study(command, "number of seen prompts, and of held-out prompts")
    add_integer(command, "--scenes", 0, help="held-out scenes of each category")
    add_options(command, "sampler", "steps", "guidance", "stop")
    command.set_defaults(command=evaluate)

    command = commands.add_parser("evaluate reconstruction", help="score how well autoencoders reconstruct images")
    add_models(
        command,
        "an autoencoder, or a model that contains one, as in generate; may be repeated (default: latent)",
    )
    add_study(command, "number of images (default: 400)")
    command.add_argument("--split", metavar="S", choices=SPLITS, help="held-out (default), train or all")
    add_integer(command, "--size", 1, metavar="PIXELS", help="side of the images (default: their own, up to 256)")
    add_perceptual(command)
    command.add_argument("--decoder", metavar="D", help="also a tiny decoder: its run or model folder")
    command.set_defaults(command=evaluate_reconstruction)

    command = commands.add_parser("evaluate inpainting", help="score how well masked regions are filled")
    add_models(command, "a latent model, as in generate; may be repeated; the default model is added")
    add_study(command, "number of images (default: 100)")
    add_integer(command, "--seeds", 2, metavar="K", help="seeds for each image: mask and noise (default: 3)")
    add_single_options(command, "steps")
    add_perceptual(command)
    add_inception(command)
    command.set_defaults(command=evaluate_inpainting)

    command = commands.add_parser(
        "evaluate super-resolution", help="score how well low-resolution images are upsampled"
    )
    add_models(command, "a super-resolution model, as in generate; may be repeated", required=True)
    add_study(command, "number of images (default: 200)")
    add_integer(command, "--seeds", 1, metavar="K", help="seeds for each image (default: 2)")
    command.add_argument("--split", metavar="S", choices=SPLITS, help="held-out (default), train or all")
    command.add_argument(
        "--degradation", metavar="D", help="how low-resolution images are made: bicubic (default), bsr, bsr-light"
    )
    add_single_options(command, "sampler", "steps")
    add_perceptual(command)
    add_inception(command)
    command.set_defaults(command=evaluate_super_resolution)

    command = commands.add_parser("evaluate layout", help="score whether objects are in the boxes of their layout")
    add_model(command)
    add_opening(command)
    command.add_argument("--words", metavar="M", help="text-conditional model to compare with, such as latent")
    add_study(command, "held-out scenes (default: all)")
    add_integer(command, "--seeds", 1, metavar="K", help="images of each scene (default: 4)")
    add_options(command, "sampler", "steps", "guidance")
    add_inception(command)
    command.set_defaults(command=evaluate_layout)

    command = commands.add_parser(
        "evaluate blind-spots", help="what FID and other measures miss: degraded drawings whose order is known"
    )
    add_study(command, "drawings to degrade; as many others are the reference (default: 1000)")
    command.add_argument(
        "--features", metavar="F", choices=NETWORKS, help="compared by FID and the like (default: judge)"
    )
    add_weights(command, "weights of those features")
    command.add_argument("--scorer", metavar="M", help="of images and captions: judge (default), or a CLIP")
    add_integer(command, "--trials", 2, help="things that are drawn 1, 2, 3 and 4 times (default: 200)")
    add_integer(command, "--resamples", 2, 10_000, help="half samples for intervals (default: 40)")
    add_integer(command, "--k", 1, 1000, help="neighbours of precision, recall, density and coverage (default: 3)")
    add_integer(command, "--people", 1, 1000, help="prompts whose images are written for people (default: 12)")
    command.add_argument("--answers", metavar="STUDY", type=Path, help="a study of those images, with answers")
    add_reading(command)
    command.set_defaults(command=evaluate_blind_spots)

    text = "score a model over guidance scales, or over augmentation levels"
    kinds = add_kinds(commands, "sweep", text, "what to sweep", "SETTING")
    command = kinds.add_parser("guidance", help="guidance scales with each threshold, for the first stage that runs")
    add_model(command)
    add_opening(command)
    add_study(command, "prompts of each cell")
    command.add_argument(
        "--guidances", metavar="G,G", type=argument_type(Several(Number())), help="(default: from 1 to 30)"
    )
    command.add_argument(
        "--thresholds", metavar="T,T", type=argument_type(Several(Text())), help="(default: none,static,dynamic)"
    )
    add_sweep(command, "guidance", "guidances", "thresholds")
    command = kinds.add_parser("augmentation", help="augmentation levels of the stages that upsample")
    add_model(command)
    add_opening(command)
    add_study(command, "images to enlarge at each level")
    command.add_argument(
        "--levels", metavar="L,L", type=argument_type(Several(FRACTION)), help="(default: from 0 to 0.5)"
    )
    command.add_argument("--truth", **FLAG, help="upsample real images that were made small, and compare")
    add_integer(command, "--stage", 0, help="only this stage, from 0 (default: all)")
    add_sweep(command, "augmentation", "levels", "truth", "stage")

    command = commands.add_parser("unseen", help="compare models on words that occur in no training caption")
    text = "as in generate; may be repeated"
    command.add_argument("--model", metavar="M", action="append", dest="models", required=True, help=text)
    add_study(command, "number of images of each wording")
    command.set_defaults(command=unseen)


def add_perceptual(command: Parser) -> None:
    """The perceptual distance."""
    command.add_argument("--perceptual", metavar="P", help="judge (default), lpips, or none")
    command.add_argument("--perceptual-path", metavar="PATH", help="weights of VGG16 for lpips, or another judge")


def add_inception(command: Parser) -> None:
    """InceptionV3's measures beside the judge's."""
    command.add_argument(
        "--features",
        metavar="F",
        choices=("judge", "inception"),
        help="judge (default), or inception: also FID, Inception Score, precision and recall, as in papers",
    )
    command.add_argument("--inception-weights", metavar="PATH", help="InceptionV3's, the file of torch-fidelity")
    add_integer(command, "--splits", 1, help="inception: parts of the Inception Score (default: 10)")
    add_integer(command, "--k", 1, 1000, help="inception: neighbours of precision and recall (default: 3)")


def add_sweep(command: Parser, kind: str, *swept: str) -> None:
    add_options(command, "steps", "stop")
    command.set_defaults(command=sweep, sweep=kind, swept=swept)


def evaluate(arguments: argparse.Namespace) -> None:
    import diptych
    from diptych.cli.option_checks import accepted_options
    from diptych.evaluation.benchmarks import prompts

    name, options = arguments.model or "default", options_given(arguments)
    check_study(arguments, "prompts", options)
    model = diptych.load(arguments.model, arguments.device, **opening_given(arguments), **given(arguments, "lora"))
    options = accepted_options(model, name, options)
    settings = given(arguments, "images", "scenes", "seed", "judge", "batch")
    prompts.evaluate(model, arguments.data, arguments.out, name=name, **settings, **options)


def evaluate_reconstruction(arguments: argparse.Namespace) -> None:
    from diptych.core.devices import find_device
    from diptych.evaluation.benchmarks.reconstruction import evaluate_reconstruction
    from diptych.pretrained.load import open_autoencoder, open_tiny_decoder

    check_study(arguments, "reconstruction")
    device, how = find_device(arguments.device), given(arguments, *OPENING)
    distance = open_distance(arguments)
    models = [(name, open_autoencoder(name, **how).to(device)) for name in arguments.models or ["latent"]]
    decoder = None
    if arguments.decoder is not None:
        decoder = open_tiny_decoder(arguments.decoder, models[0][1]).to(device)
    settings = given(arguments, "split", "images", "size", "judge", "seed", "batch")
    evaluate_reconstruction(models, arguments.data, arguments.out, perceptual=distance, decoder=decoder, **settings)


def evaluate_inpainting(arguments: argparse.Namespace) -> None:
    import diptych
    from diptych.evaluation.benchmarks.inpainting import evaluate_inpainting

    check_study(arguments, "inpainting", given(arguments, "steps"))
    inception = open_inception(arguments)
    names: list[str] = arguments.models or []
    names = names if "latent" in names else [*names, "latent"]
    models = [(name, diptych.load(name, arguments.device, **opening_given(arguments))) for name in names]
    settings = given(arguments, "images", "seeds", "judge", "seed", "batch", "steps")
    settings |= {"perceptual": open_distance(arguments), "inception": inception}
    evaluate_inpainting(models, arguments.data, arguments.out, **settings)


def evaluate_super_resolution(arguments: argparse.Namespace) -> None:
    import diptych
    from diptych.evaluation.benchmarks.super_resolution import evaluate_super_resolution

    check_study(arguments, "super-resolution", given(arguments, "sampler", "steps"))
    inception = open_inception(arguments)
    names = dict.fromkeys(arguments.models)
    models = [(name, diptych.load(name, arguments.device, **opening_given(arguments))) for name in names]
    settings = given(arguments, "images", "seeds", "split", "degradation", "judge", "seed", "batch", "steps", "sampler")
    perceptual = open_distance(arguments)
    evaluate_super_resolution(
        models, arguments.data, arguments.out, perceptual=perceptual, inception=inception, **settings
    )


def evaluate_layout(arguments: argparse.Namespace) -> None:
    import diptych
    from diptych.cli.option_checks import accepted_options
    from diptych.evaluation.benchmarks.layouts import evaluate_layouts

    if arguments.model is None:
        raise UserError("name a model of layouts as --model: `diptych train emoji-layout` makes one")
    options = options_given(arguments)
    check_study(arguments, "layouts", options)
    inception = open_inception(arguments)
    model = diptych.load(arguments.model, arguments.device, **opening_given(arguments), **given(arguments, "lora"))
    options = accepted_options(model, arguments.model, options)
    words = None if arguments.words is None else diptych.load(arguments.words, arguments.device)
    settings = given(arguments, "seeds", "seed", "judge", "batch") | {"inception": inception}
    if arguments.images is not None:
        settings["scenes"] = arguments.images
    evaluate_layouts(model, arguments.data, arguments.out, words=words, name=arguments.model, **settings, **options)


def evaluate_blind_spots(arguments: argparse.Namespace) -> None:
    from diptych.core.devices import find_device
    from diptych.evaluation.benchmarks.blind_spots import measure_blind_spots
    from diptych.evaluation.text_image_scorer import open_scorer
    from diptych.metrics.feature_networks import open_features

    check_study(arguments, "blind-spots")
    if arguments.answers is not None and not arguments.answers.is_dir():
        raise UserError(f"no study at {arguments.answers}: `diptych study make` makes one")
    weights = dict(named(text) for text in arguments.weights)
    kind, judge = arguments.features or "judge", arguments.judge
    paths, how = {"judge": judge, **weights}, given(arguments, "offline", "allow_pickle")
    network = open_features(kind, paths.get(kind), None, find_device(arguments.device), **how)
    scorer = open_scorer(arguments.scorer or judge or "judge", arguments.device, **how)
    settings = given(arguments, "images", "trials", "resamples", "k", "seed", "batch", "people", "answers")
    measure_blind_spots(arguments.data, arguments.out, network, scorer, **settings)


def sweep(arguments: argparse.Namespace) -> None:
    import diptych
    from diptych.cli.option_checks import accepted_options
    from diptych.evaluation.benchmarks import sweep as sweeps

    name, options = arguments.model or "default", options_given(arguments)
    check_study(arguments, arguments.sweep, options)
    model = diptych.load(arguments.model, arguments.device, **opening_given(arguments), **given(arguments, "lora"))
    options = accepted_options(model, name, options)
    settings = given(arguments, *arguments.swept, "images", "seed", "judge", "batch")
    run = {"guidance": sweeps.sweep_guidance, "augmentation": sweeps.sweep_augmentation}[arguments.sweep]
    run(model, arguments.data, arguments.out, name=name, **settings, **options)


def unseen(arguments: argparse.Namespace) -> None:
    import diptych
    from diptych.evaluation.benchmarks import novel_words

    check_study(arguments, "unseen words")
    models = [(name, diptych.load(name, arguments.device)) for name in arguments.models]
    settings = given(arguments, "images", "seed", "judge", "batch")
    novel_words.compare(models, arguments.data, arguments.out, **settings)


def check_study(arguments: argparse.Namespace, kind: str, options: Mapping[str, Any] = MappingProxyType({})) -> None:
    """Raise a `UserError` for wrong options, files and folders of a study, before a model is opened."""
    from diptych.cli.generate_commands import lora_files
    from diptych.cli.option_checks import check_options
    from diptych.evaluation.folder import require_same
    from diptych.models.judge import judge_config

    check_options(options, [arguments.data, *lora_files(arguments)])
    require_same(arguments.out, kind)
    judge_config(None if arguments.judge is None else Path(arguments.judge))


def open_distance(arguments: argparse.Namespace) -> Any:
    """The perceptual distance of --perceptual, the judge's if none is named."""
    from diptych.training.tasks.perceptual import perceptual_distance

    kind, pickles = arguments.perceptual or "judge", bool(arguments.allow_pickle)
    return None if kind == "none" else perceptual_distance(kind, arguments.perceptual_path, allow_pickle=pickles)


def open_inception(arguments: argparse.Namespace) -> Any:
    """The measures of --features inception, or none. A `UserError` for options that lack it, or weights that are not
    there, before a model is opened."""
    if arguments.features != "inception":
        for name in given(arguments, "inception_weights", "splits", "k"):
            raise UserError(f"--{name.replace('_', '-')} is for --features inception: give both, or leave it out")
        return None
    from diptych.core.devices import find_device
    from diptych.evaluation.inception_measures import InceptionMeasures
    from diptych.metrics.feature_networks import MISSING, InceptionFeatures

    if arguments.inception_weights is None:
        raise UserError(f"--features inception needs {MISSING['inception']}: name them as --inception-weights PATH")
    network = InceptionFeatures(arguments.inception_weights, allow_pickle=bool(arguments.allow_pickle))
    return InceptionMeasures(network.to(find_device(arguments.device)), **given(arguments, "splits", "k"))
