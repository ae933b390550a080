"""What each command does. Each imports what it needs itself, so that help and mistakes answer at once."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import re
import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

SEED_LIMIT = 2**63


def generate(arguments: argparse.Namespace) -> None:
    if any(not prompt.strip() for prompt in arguments.prompts):
        raise UserError('the prompt is empty: say what to paint, for example "a red apple"')
    chosen = arguments.seed or [0]
    if arguments.count:
        if len(chosen) > 1:
            raise UserError("--count goes with one --seed: leave it out to use the seeds given")
        chosen = [(chosen[0] + i) % SEED_LIMIT for i in range(arguments.count)]
    jobs = [(prompt, seed) for prompt in arguments.prompts for seed in chosen]
    arguments.out.mkdir(parents=True, exist_ok=True)

    import diptych
    from diptych.progress import bar

    model = diptych.load(arguments.model, arguments.device)
    settings = chosen_settings(arguments, "sampler", "steps", "guidance", "negative")
    with bar() as progress:
        task = progress.add_task("painting", total=None)
        for start in range(0, len(jobs), arguments.batch):
            part = jobs[start : start + arguments.batch]
            done, batches = start // arguments.batch, -(-len(jobs) // arguments.batch)

            def show(step: int, steps: int, x0: Any, done: int = done, batches: int = batches) -> None:
                progress.update(task, completed=done * steps + step + 1, total=batches * steps)

            prompts, numbers = [prompt for prompt, _ in part], [seed for _, seed in part]
            result = model.generate(prompts, seeds=numbers, callback=show, **settings)
            for image, told in zip(result.images, result.metadata, strict=True):
                told = {"model": arguments.model or "default", **told}
                print(save(image, arguments.out, told), flush=True)


def save(image: Image, folder: Path, parameters: dict[str, Any]) -> Path:
    """Write a PNG with its parameters inside, under a name that says what it shows and that is not taken yet."""
    from PIL.PngImagePlugin import PngInfo

    told = PngInfo()
    told.add_text("Software", f"diptych {version()}")
    told.add_text("parameters", json.dumps(parameters))  # ASCII, as this chunk demands
    stem, number = f"{slug(parameters['prompt'])}-s{parameters['seed']}", 1
    while True:
        path = folder / (f"{stem}.png" if number == 1 else f"{stem}-{number}.png")
        try:
            with path.open("xb") as file:
                try:
                    image.save(file, "PNG", pnginfo=told)
                    return path
                except BaseException:
                    path.unlink()
                    raise
        except FileExistsError:
            number += 1


def slug(text: str) -> str:
    """`"A red apple!"` -> `"a-red-apple"`, at most 48 characters, letters of any script kept."""
    words = re.sub(r"[\W_]+", "-", unicodedata.normalize("NFKC", text).lower()).strip("-")
    return words[:48].strip("-") or "picture"


def train(arguments: argparse.Namespace) -> None:
    from diptych.recipes import get, run

    recipe = get(arguments.recipe).override(arguments.assignments)
    run.train(recipe, arguments.run or Path("runs") / arguments.recipe)


def precompute(arguments: argparse.Namespace) -> None:
    from diptych.recipes import get, run

    recipe = get(arguments.recipe).override(arguments.assignments)
    run.precompute(recipe, arguments.out or Path("cache") / arguments.recipe)


def evaluate(arguments: argparse.Namespace) -> None:
    import diptych
    from diptych.evaluation import study

    settings = chosen_settings(
        arguments, "pictures", "scenes", "seed", "sampler", "steps", "guidance", "judge", "batch"
    )
    model = diptych.load(arguments.model, arguments.device)
    study.evaluate(model, arguments.data, arguments.out, name=arguments.model or "default", **settings)


def info(arguments: argparse.Namespace) -> None:
    from diptych.recipes import run

    described = run.describe(arguments.name)
    if arguments.json:
        print(json.dumps(described, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("network", "parameters", title=arguments.name, title_justify="left")
    table.columns[1].justify = "right"
    for name, parameters in described["networks"].items():
        table.add_row(name, f"{parameters:,}")
    if len(described["networks"]) > 1:
        table.add_section()
        table.add_row("total", f"{described['total']:,}")
    Console().print(table)


def list_recipes(arguments: argparse.Namespace) -> None:
    from diptych.recipes import all_recipes

    known = all_recipes()
    for name, recipe in known.items():
        print(f"{name:<{max(map(len, known))}}  {recipe.description}")


def data_emoji(arguments: argparse.Namespace) -> None:
    from diptych.data import emoji

    out = arguments.out or Path("data") / f"emoji-{arguments.size}"
    manifest = emoji.build(out, size=arguments.size, scenes=arguments.scenes, seed=arguments.seed)
    kinds = ", ".join(f"{count:,} {kind}s" for kind, count in manifest["counts"]["kind"].items())
    print(f"{out}: {kinds} in {len(manifest['shards'])} shards; manifest.json has licences and hashes")


def data_check(arguments: argparse.Namespace) -> int:
    import collections

    from diptych.data.dataset import DataConfig, open_dataset
    from diptych.progress import track

    dataset = open_dataset(DataConfig(path=arguments.path, split="all", max_failure_rate=1.0))
    broken = dataset.quarantine.broken
    unreadable = len(broken)  # those are not in the dataset at all
    counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    keys: set[str] = set()  # a broken example is replaced by another, which counts once
    for index in track(range(len(dataset)), "reading"):
        example = dataset[index]
        if example.key not in keys:
            keys.add(example.key)
            for field in ("kind", "split", "style", "category"):
                if field in example.meta:
                    counts[field][example.meta[field]] += 1
    read = len(dataset) - (len(broken) - unreadable)
    listed = [{"shard": shard, "key": key, "reason": reason} for (shard, key), reason in broken.items()]
    if arguments.json:
        print(json.dumps({"readable": read, "broken": listed, "counts": counts}, indent=2))
    else:
        print(f"{arguments.path}: {read:,} examples can be read, {len(broken):,} are broken")
        for field, counter in counts.items():
            print(f"  {field}: " + ", ".join(f"{name} {count:,}" for name, count in counter.most_common()))
        for entry in listed:
            print(f"  broken: {entry['key']} in {entry['shard']}: {entry['reason']}")
    return 1 if broken else 0


def chosen_settings(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}


def version() -> str:
    try:
        return importlib.metadata.version("diptych")
    except importlib.metadata.PackageNotFoundError:  # run from the sources, not installed
        return "unknown"
