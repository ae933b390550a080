"""What each command does. Each imports what it needs itself, so that help and mistakes answer at once."""

from __future__ import annotations

import argparse
import json
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from diptych.cli.types import read_jobs, vary
from diptych.core.errors import NothingThere, UserError
from diptych.core.terminal import console, say, tell

if TYPE_CHECKING:
    from PIL.Image import Image

PANELS = ("latent", "cascade")
"""The embedded models, by the names that `diptych.load` knows."""
SAMPLING = "sampler steps guidance threshold augmentation negative low start stop keep one_at_a_time".split()
SAMPLING += "temperature top_k top_p image strength mask paste size tile decoder weights long_prompts".split()
SAMPLING += ["schedule_type", "fit"]
"""Options of `generate` that go to the model, as its arguments."""
LONGEST_SHEET = 100
"""Rows of the sheet of `demo`."""
OPENING = "revision offline allow_pickle tokenizer dtype ema prediction".split()
"""Options that go to `diptych.load`, as its arguments."""


def generate(arguments: argparse.Namespace) -> None:
    recorded = None
    if arguments.again is not None:
        from diptych.cli.regenerate import Recorded

        recorded = Recorded.read(arguments.again)
        recorded.complete(arguments)
    vary(arguments)
    jobs = read_jobs(arguments)
    arguments.out.mkdir(parents=True, exist_ok=True)

    import diptych
    from diptych.cli import output as painting
    from diptych.models.metadata import of_stage, stage_suffix

    name = arguments.model or "latent"
    given = chosen_settings(arguments, *SAMPLING)
    painting.check(given, lora_files(arguments))
    for prompt in jobs.prompts:
        painting.unicode_text(prompt)
    for source, _ in (*(arguments.classifier or ()), *(arguments.clip or ())):
        if source != "judge":
            painting.there("guide", source)
    model = diptych.load(arguments.model, arguments.device, **chosen_settings(arguments, *OPENING, "lora"))
    settings = painting.fitting(model, name, given | opened_guides(arguments))
    if recorded is not None:
        recorded.verify(model, settings)
    for image, told, earlier in painting.paint(model, jobs, arguments.batch, **settings):
        name = stem(told)
        if recorded is not None and recorded.kept:
            (image, told), earlier = recorded.kept_of(told, earlier, image), []
            name += stage_suffix(told)
        path = save(image, arguments.out, name, told)
        if recorded is not None:
            recorded.compare(image)
        for number, picture in enumerate(earlier, 1):
            own = of_stage(told, number, picture)
            save(picture, arguments.out, path.stem + stage_suffix(own), own)


def opened_guides(arguments: argparse.Namespace) -> dict[str, Any]:
    """What --classifier and --clip name, opened once, as `generate` takes it."""
    named = [*(arguments.classifier or ()), *(arguments.clip or ())]
    if not named:
        return {}
    from diptych.pretrained.load_guide import open_guide

    how = chosen_settings(arguments, "revision", "offline", "allow_pickle")
    return {"guides": tuple((open_guide(source, **how), scale) for source, scale in named)}


def demo(arguments: argparse.Namespace) -> None:
    jobs = read_jobs(arguments)
    if len(jobs) > LONGEST_SHEET:
        raise UserError(f"demo shows at most {LONGEST_SHEET} images side by side, not {len(jobs):,}: use `generate`")
    arguments.out.mkdir(parents=True, exist_ok=True)

    import diptych
    from diptych.cli import output as painting

    panels: dict[str, list[Image]] = {}
    for panel in PANELS:
        try:
            model = diptych.load(panel, arguments.device)
        except NothingThere as error:
            say(f"diptych: {error}")
            continue
        panels[panel] = []
        for image, told, _ in painting.paint(model, jobs, arguments.batch, f"generating: {panel}"):
            save(image, arguments.out, f"{stem(told)}-{panel}", told)
            panels[panel].append(image)
    if not panels:
        raise UserError("neither panel is in this package: there is nothing to show")
    if len(panels) == len(PANELS):
        sheet = painting.side_by_side(jobs, panels)
        save(sheet, arguments.out, "both-panels", {"models": list(panels), "pictures": list(jobs)})


def save(image: Image, folder: Path, stem: str, parameters: dict[str, Any]) -> Path:
    """Write a PNG with its parameters inside under a name that is not taken yet, and print the name."""
    from diptych.cli.output import write_png
    from diptych.models.metadata import png_texts

    path = write_png(image, folder, stem, png_texts(parameters))
    tell(str(path))
    return path


def stem(parameters: dict[str, Any]) -> str:
    """A picture's file name: what it shows, and its seed."""
    return f"{slug(parameters['prompt'])}-s{parameters['seed']}"


def slug(text: str) -> str:
    """`"A red apple!"` -> `"a-red-apple"`, at most 48 characters, letters of any script kept."""
    words = re.sub(r"[\W_]+", "-", unicodedata.normalize("NFKC", text).lower()).strip("-")
    return words[:48].strip("-") or "image"


def train(arguments: argparse.Namespace) -> None:
    from diptych.recipes import get
    from diptych.training import experiment as run

    recipe = get(arguments.recipe).override(arguments.assignments)
    run.train(recipe, arguments.run_dir or Path("runs") / arguments.recipe)


def precompute(arguments: argparse.Namespace) -> None:
    from diptych.recipes import get
    from diptych.training import experiment as run

    recipe = get(arguments.recipe).override(arguments.assignments)
    run.precompute(recipe, arguments.out or Path("cache") / arguments.recipe)


def assemble(arguments: argparse.Namespace) -> None:
    from diptych.cli.describe import describe
    from diptych.training import experiment as run

    run.assemble(arguments.stages, arguments.out, **chosen_settings(arguments, "allow_pickle"))
    show_networks(describe(arguments.out))


def evaluate(arguments: argparse.Namespace) -> None:
    import diptych
    from diptych.cli import output as painting
    from diptych.evaluation.benchmarks import prompts as study

    name = arguments.model or "default"
    given = chosen_settings(arguments, "sampler", "steps", "guidance", "stop")
    check_study(arguments, "prompts", given)
    model = diptych.load(arguments.model, arguments.device, **chosen_settings(arguments, *OPENING, "lora"))
    sampling = painting.fitting(model, name, given)
    settings = chosen_settings(arguments, "pictures", "scenes", "seed", "judge", "batch")
    study.evaluate(model, arguments.data, arguments.out, name=name, **settings, **sampling)


def evaluate_reconstruction(arguments: argparse.Namespace) -> None:
    from diptych.core.devices import find_device
    from diptych.evaluation.benchmarks.reconstruction import evaluate_reconstruction
    from diptych.pretrained.load import open_autoencoder, open_tiny_decoder

    check_study(arguments, "reconstruction")
    device, how = find_device(arguments.device), chosen_settings(arguments, *OPENING)
    distance = chosen_distance(arguments)
    names = arguments.models or ["latent"]
    models = [(name, open_autoencoder(name, **how).to(device)) for name in names]
    decoder = None
    if arguments.decoder is not None:
        decoder = open_tiny_decoder(arguments.decoder, models[0][1]).to(device)
    settings = chosen_settings(arguments, "split", "pictures", "size", "judge", "seed", "batch")
    evaluate_reconstruction(models, arguments.data, arguments.out, perceptual=distance, decoder=decoder, **settings)


def evaluate_inpainting(arguments: argparse.Namespace) -> None:
    import diptych
    from diptych.evaluation.benchmarks.inpainting import evaluate_inpainting

    check_study(arguments, "inpainting", chosen_settings(arguments, "steps"))
    how, given = chosen_settings(arguments, *OPENING), arguments.models or []
    names: list[str] = given if "latent" in given else [*given, "latent"]
    models = [(name, diptych.load(name, arguments.device, **how)) for name in names]
    settings = chosen_settings(arguments, "pictures", "seeds", "judge", "seed", "batch", "steps")
    evaluate_inpainting(models, arguments.data, arguments.out, perceptual=chosen_distance(arguments), **settings)


def evaluate_super_resolution(arguments: argparse.Namespace) -> None:
    import diptych
    from diptych.evaluation.benchmarks.super_resolution import evaluate_super_resolution

    check_study(arguments, "super-resolution", chosen_settings(arguments, "sampler", "steps"))
    how = chosen_settings(arguments, *OPENING)
    models = [(name, diptych.load(name, arguments.device, **how)) for name in dict.fromkeys(arguments.models)]
    names = ("pictures", "seeds", "split", "degradation", "judge", "seed", "batch", "steps", "sampler")
    settings = chosen_settings(arguments, *names)
    evaluate_super_resolution(models, arguments.data, arguments.out, perceptual=chosen_distance(arguments), **settings)


def check_study(arguments: argparse.Namespace, kind: str, sampling: Mapping[str, Any] = MappingProxyType({})) -> None:
    """What is wrong with the settings, files and folder of a study, before a model is loaded."""
    from diptych.cli import output as painting
    from diptych.evaluation.folder import require_same
    from diptych.models.judge import judge_config

    judge = None if arguments.judge is None else Path(arguments.judge)
    painting.check(sampling, [arguments.data, *lora_files(arguments)])
    require_same(arguments.out, kind)
    judge_config(judge)


def lora_files(arguments: argparse.Namespace) -> list[Path]:
    return [file for file, _ in getattr(arguments, "lora", None) or ()]


def chosen_distance(arguments: argparse.Namespace) -> Any:
    """The perceptual distance of --perceptual, the judge's if none is named."""
    from diptych.training.tasks.perceptual import perceptual_distance

    kind, leave = arguments.perceptual or "judge", bool(arguments.allow_pickle)
    return None if kind == "none" else perceptual_distance(kind, arguments.perceptual_path, allow_pickle=leave)


def evaluate_layout(arguments: argparse.Namespace) -> None:
    import diptych
    from diptych.evaluation.benchmarks.layouts import evaluate_layouts

    if arguments.model is None:
        raise UserError("name a model of layouts as --model: `diptych train emoji-layout` makes one")
    check_study(arguments, "layouts", chosen_settings(arguments, "sampler", "steps"))
    model = diptych.load(arguments.model, arguments.device, **chosen_settings(arguments, *OPENING, "lora"))
    words = None if arguments.words is None else diptych.load(arguments.words, arguments.device)
    names = ("seeds", "seed", "judge", "batch", "steps", "guidance", "sampler")
    settings = {"scenes": arguments.pictures, **chosen_settings(arguments, *names)}
    evaluate_layouts(model, arguments.data, arguments.out, words=words, name=arguments.model, **settings)


def sweep(arguments: argparse.Namespace) -> None:
    import diptych
    from diptych.cli import output as painting
    from diptych.evaluation.benchmarks import sweep as sweeps

    name = arguments.model or "default"
    given = chosen_settings(arguments, "steps", "stop")
    check_study(arguments, arguments.sweep, given)
    model = diptych.load(arguments.model, arguments.device, **chosen_settings(arguments, *OPENING, "lora"))
    sampling = painting.fitting(model, name, given)
    settings = chosen_settings(arguments, *arguments.swept, "pictures", "seed", "judge", "batch")
    run = {"guidance": sweeps.sweep_guidance, "augmentation": sweeps.sweep_augmentation}[arguments.sweep]
    run(model, arguments.data, arguments.out, name=name, **settings, **sampling)


def unseen(arguments: argparse.Namespace) -> None:
    import diptych
    from diptych.evaluation.benchmarks import novel_words as study

    check_study(arguments, "unseen words")
    models = [(name, diptych.load(name, arguments.device)) for name in arguments.models]
    settings = chosen_settings(arguments, "pictures", "seed", "judge", "batch")
    study.compare(models, arguments.data, arguments.out, **settings)


def info(arguments: argparse.Namespace) -> None:
    if Path(arguments.name).suffix.lower() == ".png":
        from diptych.models.metadata import infotext, read_metadata

        row = read_metadata(Path(arguments.name))
        tell(json.dumps(row, indent=2) if arguments.json else infotext(row))
        return

    from diptych.cli.describe import describe

    described = describe(arguments.name, **chosen_settings(arguments, *OPENING))
    if arguments.json:
        tell(json.dumps(described, indent=2))
    else:
        show_networks(described)


def convert(arguments: argparse.Namespace) -> None:
    from diptych.pretrained import load as opening
    from diptych.pretrained.convert import convert

    path = opening.find(arguments.source, **chosen_settings(arguments, "revision", "offline", "allow_pickle"))
    options = opening.read_options(**chosen_settings(arguments, "allow_pickle", "tokenizer", "ema", "prediction"))
    overwrite, dtype = bool(arguments.overwrite), arguments.dtype or "stored"
    for line in convert(path, arguments.target, arguments.to, dtype, options, overwrite):
        tell(f"left out: {line}")
    tell(str(arguments.target))


def show_networks(described: dict[str, Any]) -> None:
    """The parameters of each network, as a table."""
    from rich.table import Table

    table = Table("network", "parameters")
    table.columns[1].justify = "right"
    for name, parameters in described["networks"].items():
        table.add_row(name, f"{parameters:,}")
    if len(described["networks"]) > 1:
        table.add_section()
        table.add_row("total", f"{described['total']:,}")
    tell(described["name"])
    console().print(table)


def list_recipes(arguments: argparse.Namespace) -> None:
    from diptych.recipes import all_recipes

    if arguments.sources is not None:
        from diptych.recipes.sources import document, table

        for line in (table(arguments.sources) if arguments.sources else document()).splitlines():
            tell(line)
        return
    known = all_recipes()
    for name, recipe in known.items():
        tell(f"{name:<{max(map(len, known))}}  {recipe.description}")


def data_emoji(arguments: argparse.Namespace) -> None:
    from diptych.data.emoji import build as emoji

    out = arguments.out or Path("data") / f"emoji-{arguments.size}"
    settings = chosen_settings(arguments, "size", "scenes", "seed", "workers")
    manifest = emoji.build(out, **settings)
    kinds = ", ".join(f"{count:,} {kind}s" for kind, count in manifest["counts"]["kind"].items())
    tell(f"{out}: {kinds} in {len(manifest['shards'])} shards; manifest.json has licences and hashes")


def data_layouts(arguments: argparse.Namespace) -> None:
    from diptych.data.annotations import MOST, write_layouts

    pictures = arguments.pictures
    found = write_layouts(arguments.annotations, pictures, arguments.classes, arguments.boxes or MOST)
    told = f"{found['boxes']:,} boxes of {len(found['classes']):,} classes in {found['pictures']:,} pictures"
    tell(f"{pictures}: {told}; train with data.path={pictures} data.caption_field=layout")


def data_captions(arguments: argparse.Namespace) -> None:
    from diptych.data.annotations import write_captions

    pictures = arguments.pictures
    found = write_captions(arguments.annotations, pictures)
    tell(
        f"{pictures}: {found['captions']:,} captions of {found['pictures']:,} pictures; train with data.path={pictures}"
    )


def data_familiar(arguments: argparse.Namespace) -> None:
    from diptych.evaluation.training_prompts import write_familiar

    for path in write_familiar(arguments.path, arguments.models, **chosen_settings(arguments, "least")):
        tell(str(path))


def data_check(arguments: argparse.Namespace) -> int:
    from diptych.data.check import examine
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
            from diptych.training import experiment_data as reading

            dataset = reading.open_all(get(arguments.recipe).override(arguments.assignments), settings)
        report = examine(dataset)
    tell(json.dumps({**report._asdict(), "whole": report.whole}, indent=2) if arguments.json else report.text())
    return 0 if report.whole else 1


def chosen_settings(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
