"""Configs with one value changed: every key, each to what no one would write.

PYTHONPATH=src:. python -m tests.mutations [MODEL ...]     # all of them, by hand: minutes
"""

from __future__ import annotations

import copy
import json
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from diptych.core.errors import UserError

MISSING = object()
VALUES: tuple[Any, ...] = (
    *(MISSING, None, True, -1, 0, 10**9, 2**70, 1e300, float("nan"), 0.5),
    *("x", "../..", [], [-1], [10**9, "x"], {}, {"a": {"b": [1]}}),
)
LIMIT = 10
"""Seconds within which an answer is due."""
ROOM = 12 * 2**30
"""Bytes of address space in which a model is opened, by hand."""


class Model(NamedTuple):
    """A small model on the disk."""

    write: Callable[[Path], Any]
    """Writes it into a folder."""
    use: Callable[[Path], Any]
    """Opens it there and does all that its configs have a say in."""
    files: str = "**/*.json"
    """Which files are its configs."""


class Failure(NamedTuple):
    file: str
    key: str
    value: Any
    what: str


def places(values: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in plain JSON, of lists that of the first three items; vocabularies have too many."""
    yield at
    if isinstance(values, dict):
        for key in list(values)[:60]:
            yield from places(values[key], (*at, key))
    elif isinstance(values, list):
        for key in range(min(len(values), 3)):
            yield from places(values[key], (*at, key))


def changed(values: Any, at: tuple[Any, ...], value: Any) -> Any:
    if not at:
        return None if value is MISSING else value
    values = copy.deepcopy(values)
    inner = values
    for key in at[:-1]:
        inner = inner[key]
    if value is MISSING:
        del inner[at[-1]]
    else:
        inner[at[-1]] = value
    return values


def failure(model: Model, folder: Path) -> str | None:
    """What is wrong with how a changed model answers; none for one line, and for a model that works."""
    started = time.perf_counter()
    try:
        model.use(folder)
    except UserError as error:
        if "\n" in str(error) or len(str(error)) > 1500:
            return f"no short line: {str(error)[:200]!r}"
    except BaseException as error:  # a Rust panic is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {str(error)[:200]}"
    took = time.perf_counter() - started
    return f"took {took:.0f} s" if took > LIMIT else None


def mutants(folder: Path, pattern: str) -> Iterator[tuple[Path, tuple[Any, ...], Any]]:
    for path in sorted(folder.glob(pattern)):
        values = json.loads(path.read_text())
        for at in places(values):
            for value in VALUES:
                yield path, at, value


def fuzz(model: Model, folder: Path, chosen: Callable[[int], bool] = lambda number: True) -> tuple[int, list[Failure]]:
    """How many mutants were tried, and those that failed; only those with a `chosen` number."""
    model.write(folder)
    model.use(folder)
    found, tried = [], 0
    for number, (path, at, value) in enumerate(list(mutants(folder, model.files))):
        if not chosen(number):
            continue
        before = path.read_text()
        path.write_text(json.dumps(changed(json.loads(before), at, value)))
        tried += 1
        if (what := failure(model, folder)) is not None:
            shown = "missing" if value is MISSING else value
            found.append(Failure(str(path.relative_to(folder)), ".".join(map(str, at)), shown, what))
            report("  ", *found[-1])
        path.write_text(before)
    return tried, found


def report(*words: Any) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def generated(source: Path, **opening: Any) -> None:
    import diptych

    model: Any = diptych.load(source, **opening)
    given: dict[str, Any] = {"seeds": [1], "steps": 2} if hasattr(model, "unet") else {"seeds": [1]}
    model.generate(["a cat"], **given)


def models() -> dict[str, Model]:
    from diptych.cli.describe import describe
    from tests.pretrained import every_family, sd_models

    def published(name: str, inner: str = "") -> Model:
        kind = every_family.KINDS[name]
        words = (
            (lambda folder: folder / "tokenizer") if name.startswith(("sd2-file", "ldm-text")) else lambda folder: None
        )
        return Model(kind.write, lambda folder: generated(every_family.place(kind, folder), tokenizer=words(folder)))

    def counted(name: str) -> Model:
        kind = every_family.KINDS[name]
        return Model(kind.write, lambda folder: describe(every_family.place(kind, folder)))

    found = {
        "sd-folder": published("sd1-folder-unet"),
        "sd-folder-2": Model(lambda f: sd_models.folder(f / "m", "sd2"), lambda f: generated(f / "m")),
        "sd-file": published("sd2-file"),
        "if-enlarging": counted("if-enlarging"),
        "if-base": Model(every_family.KINDS["if-base"].write, lambda f: generated(f / "model", dtype="float32")),
        "ldm-text": published("ldm-text-kl"),
    }

    def vae(folder: Path) -> None:
        sd_models.vae().save_pretrained(folder / "vae")

    def facts(folder: Path) -> None:
        every_family.KINDS["adm-classes"].write(folder)

    def ours(kind: str) -> Callable[[Path], Any]:
        def write(folder: Path) -> None:
            from tests.models.latents import system

            system(kind).save(folder / "m")

        return write

    from diptych.pretrained.load import open_autoencoder

    found["vae"] = Model(vae, lambda f: open_autoencoder(f / "vae"))
    found["adm"] = Model(facts, lambda f: describe(f / "model.safetensors"))
    found["latent-joint"] = Model(ours("joint"), lambda f: generated(f / "m"))
    found["latent-minilm"] = Model(ours("minilm"), lambda f: generated(f / "m"))
    found["converted"] = Model(converted, lambda f: generated(f / "m"))
    found["sharded"] = Model(
        lambda f: sd_models.folder(f / "m", max_shard_size="200KB"), lambda f: describe(f / "m"), "**/*.index.json"
    )
    return found


def converted(folder: Path) -> None:
    from diptych.pretrained.convert import convert
    from tests.pretrained import sd_models

    with tempfile.TemporaryDirectory() as other:
        sd_models.folder(Path(other) / "sd")
        convert(Path(other) / "sd", folder / "m")


def alarm(*_: Any) -> None:
    raise TimeoutError("no answer")


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (ROOM, ROOM))
    step = 1
    if names and names[0].isdigit():
        step, names = int(names[0]), names[1:]
    known = models()
    for name in names or list(known):
        folder = Path(tempfile.mkdtemp())
        model = known[name]

        def use(place: Path, model: Model = model) -> None:
            signal.signal(signal.SIGALRM, alarm)
            signal.alarm(2 * LIMIT)
            try:
                model.use(place)
            finally:
                signal.alarm(0)

        tried, found = fuzz(model._replace(use=use), folder, lambda number: number % step == 0)
        report(f"{name}: {len(found)} of {tried}")
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(sys.argv[1:])
