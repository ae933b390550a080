"""Work on a folder that several processes share, and that goes on where it was broken off.

It is done in another folder beside the one that is asked for, which takes its place when all is there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from diptych.core.disk import Written, make_folder, put, remove, sweep, values_of, write_text
from diptych.core.errors import UserError
from diptych.core.terminal import print_err
from diptych.data.dataset import ImageDataset
from diptych.data.paths import walk
from diptych.data.shards import ShardSource
from diptych.encoders.cache_part import read_precomputed
from diptych.encoders.text_store import STEM
from diptych.training.distributed import Team
from diptych.training.precomputed import NAMES, Examples, read_part
from diptych.weights.files import load_safetensors
from diptych.weights.part_files import part_name

LOOSE = ("path", "quarantine", "in_memory", "max_failure_rate", "shuffle", "shuffle_window")
"""Fields of the data that do not decide what is kept."""
TEXTS = ("text.safetensors", "captions.json")
"""Files of earlier versions."""
CHANGES = {
    "autoencoder": "the autoencoder",
    "precision": "training.precision",
    "text": "the text encoder",
    "data": "the data",
}
"""What a folder is made of, for messages."""
UNFINISHED = Written(
    "unfinished work of `diptych precompute`",
    ("asked.json", "config.json", "*-*.safetensors", "*-*.json", *(f"text-*/{name}" for name in TEXTS)),
    lambda folder: "precompute" in values_of(folder / "asked.json"),
)


def made_once(
    out: Path,
    kind: Written,
    team: Team,
    asked: Callable[[], dict[str, Any]],
    make: Callable[[Path, dict[str, Any]], dict[str, Any]],
) -> Path:
    """Let `out` be of what is asked for: all processes call `make`, with the folder in which they write the parts that
    are missing, and what it returns becomes its `config.json`. Nothing where `out` is made of the same already."""
    kind.require(out)
    wanted = agreed(team, asked() if team.main else None)
    if agreed(team, team.main and is_made(out, wanted)):
        if team.main:
            print_err(f"{out} is made of these data by these models already: nothing to do")
        return out
    with unfinished(out, wanted, team) as work:
        stated = make(work, wanted)
        agreed(team)  # no other process reads in `work` any more, which is moved now
        if team.main:
            write_text(work / "config.json", json.dumps(stated) + "\n")
            put(work, out, kind)
        agreed(team)
    return out


def agreed(team: Team, value: Any = None) -> Any:
    """What the main process says, once all have come here."""
    try:
        return team.gather(value)[0]
    except RuntimeError as error:  # of torch.distributed
        raise UserError(
            "another process of this run has ended; the parts that are finished are kept, and the same command goes on "
            f"from there ({str(error).splitlines()[0][:100]})"
        ) from error


def is_made(out: Path, asked: dict[str, Any]) -> bool:
    """Whether a folder is whole and was made of what is asked for. Says what has changed where it was not; a
    `UserError` where it is of another kind."""
    made = values_of(out / "asked.json")
    if made.get("precompute", asked["precompute"]) != asked["precompute"]:
        raise UserError(f"{out} holds {made['precompute']}, and these are {asked['precompute']}: name another folder")
    if not serves(made, asked):
        changed = [name for key, name in CHANGES.items() if key in made and made[key] != asked[key]]
        if made and same_examples(made, asked):
            print_err(f"{out} holds no embeddings of its captions: they are added")
        elif changed:
            print_err(f"{out} was made before {' and '.join(changed)} changed: it is made again")
        return False
    try:
        for split in (stated := read_precomputed(out / "config.json"))["examples"]:
            if asked["precompute"] in NAMES:
                Examples(out, split, asked["precompute"])
        return "texts" not in stated or sizes_of(out, STEM, len(stated["texts"]["bytes"])) == stated["texts"]["bytes"]
    except (UserError, OSError) as error:
        print_err(f"{error}")
        return False


def serves(made: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Whether what was made is what is asked for: the same images, and embeddings where they are wanted."""
    return same_examples(made, asked) and asked["text"] in (made["text"], None)


def same_examples(made: dict[str, Any], asked: dict[str, Any]) -> bool:
    """Whether the examples are the same, whatever is embedded of them: data, models and limit of the captions."""

    def examples(values: dict[str, Any]) -> dict[str, Any]:
        cut_for = values.get("captions") or values.get("text")
        # earlier versions did not state the precision
        rest = {"precision": asked.get("precision")} | {
            k: v for k, v in values.items() if k not in ("text", "captions")
        }
        return {**rest, "captions": cut_for}

    return examples(made) == examples(asked)


def take_over(out: Path, work: Path, asked: dict[str, Any], team: Team) -> None:
    """Let parts of the examples that are whole in `out` be parts of the work on it, where they are the same: each
    process looks at its share. A part is never written to, so here and there it may be one file."""
    stated = values_of(out / "config.json")
    if not agreed(team, team.main and "parts" in stated and same_examples(values_of(out / "asked.json"), asked)):
        return
    kept, size = asked["precompute"], stated["parts"]["size"]
    parts = [(split, number) for split, count in stated["examples"].items() for number in range(-(-count // size))]
    for split, number in (parts[index] for index in team.share(range(len(parts)))):
        name, count = part_name(f"{kept}-{split}", number), min(size, stated["examples"][split] - number * size)
        with contextlib.suppress(OSError, UserError):  # missing or damaged, or on a disk without links: made again
            if not (work / name).exists() and read_part(load_safetensors(out / name), kept, count) is not None:
                os.link(out / name, work / name)
    agreed(team)


@contextlib.contextmanager
def unfinished(out: Path, asked: dict[str, Any], team: Team | None = None) -> Iterator[Path]:
    """The folder in which work on `out` is kept until it is finished, with what an earlier call left of the same work.
    It stays when the work is broken off. Held by a lock of the main process."""
    place = Path(os.path.realpath(out))
    work = place.with_name(f".{place.name}.unfinished")
    descriptor = None
    try:
        if team is None or team.main:
            if work.is_dir():
                sweep(work)
            UNFINISHED.require(work)
            make_folder(work)
            descriptor = os.open(work, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"another process is precomputing {out}: wait for it, or name another folder") from None
            if (begun := values_of(work / "asked.json")) != asked:
                same = begun and same_examples(begun, asked)  # but for what is embedded
                if begun and not same:
                    print_err(f"{work} was begun before the data or a model changed: its parts are made again")
                for path in work.glob(f"{STEM}-*" if same else "*"):
                    remove(path)
                write_text(work / "asked.json", json.dumps(asked, indent=2) + "\n")
        if team is not None:
            agreed(team)
        yield work
    finally:
        if descriptor is not None:
            os.close(descriptor)


def sizes_of(folder: Path, stem: str, count: int) -> list[int]:
    """The bytes of each part."""
    return [(folder / part_name(stem, number)).stat().st_size for number in range(count)]


def contents_of(dataset: ImageDataset, loose: Sequence[str] = LOOSE) -> str:
    """A hash of what decides what is kept of a data set: how it is read, but for some fields, and the files or objects
    that it lies in."""
    usual = type(dataset.config)().to_dict()  # what is not set is left out: a field that came later changes nothing
    values = {key: value for key, value in dataset.config.to_dict().items() if value != usual[key] and key not in loose}
    path, digest = Path(dataset.config.path), hashlib.sha256(json.dumps(values, sort_keys=True).encode())
    if isinstance(source := dataset.source, ShardSource) and source.remote:
        for file in source.files:
            digest.update(f"{file.name} {file.identity}\n".encode())
        return digest.hexdigest()
    for file in sorted(walk(path, {}) if path.is_dir() else [path]):  # as it is read: links to folders are followed
        if file.name != "quarantine.jsonl":
            stat = file.stat()
            digest.update(f"{os.fsencode(file.relative_to(path))} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def missing_parts(work: Path, stem: str, count: int, team: Team) -> list[int]:
    """The parts that are not in `work`, as the main process sees it: those that are there are whole."""
    missing = [number for number in range(count) if not (work / part_name(stem, number)).is_file()] if team.main else []
    return agreed(team, missing)
