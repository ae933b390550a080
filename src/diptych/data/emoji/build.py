"""`diptych data emoji`: captioned WebDataset shards from six open emoji sets.

Same arguments, same bytes, on any number of cores. Everything is written into a folder beside `out` that takes its
place when it is whole, and in which a build that was cut off goes on;
`manifest.json` says what is inside, where it came from and under which licence.
"""

from __future__ import annotations

import collections
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import PIL

from diptych.core.disk import Written, make_folder, put, remove, values_of, write_text
from diptych.core.errors import UserError
from diptych.core.hashing import stable_hash
from diptych.data.emoji import captions as wording
from diptych.data.emoji.drawing_names import Drawing, drawings
from diptych.data.emoji.icon_sources import SETS, Sources, load_sources
from diptych.data.emoji.parallel_render import Drawn, cores, paint_scenes, render_drawings, sample
from diptych.data.emoji.render import fingerprint, require_renderer
from diptych.data.shards import Shard, write_shard

FORMAT = "diptych-emoji-1"
HELD_OUT_SHARE = 0.068
"""Of the drawings whose concept has four styles or more; about 5% of all drawings."""
SHARD_SIZE = 1000
SPOKEN = {one.style: one.spoken for one in SETS}
Sample = tuple[str, dict[str, bytes]]
Counts = dict[str, collections.Counter[str]]


SHARDS = Written(
    "emoji shards",
    ("manifest.json", "single-*.tar", "scene-*.tar"),
    lambda folder: str(values_of(folder / "manifest.json").get("format")).startswith("diptych-emoji"),
)
UNFINISHED = Written(
    "an unfinished build of emoji shards",
    ("build.json", "manifest.json", "*.tar", ".*.tar.partial"),
    lambda folder: any(
        str(values_of(folder / name).get("format")).startswith("diptych-emoji")
        for name in ("build.json", "manifest.json")
    ),
)


def unfinished(out: Path) -> Path:
    """Where a build works until it is finished."""
    return out.with_name(f".{out.name}.partial")


def build(
    out: Path,
    size: int = 128,
    scenes: int = 12000,
    seed: int = 0,
    cache: Path | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Build the emoji shards in `out` and return the manifest.

    `size` is the side of the images in pixels, `scenes` the number of composed scenes beside the single drawings,
    `cache` the folder of downloads (default $DIPTYCH_CACHE/npm or ~/.cache/diptych/npm), `workers` the number of
    processes (default: all cores). A build that was cut off goes on when it is asked for again.
    Raises `UserError` when a source cannot be had or `out` holds something else.
    """
    if not 16 <= size <= 1024:
        raise UserError(f"size must be between 16 and 1024 pixels, not {size}")
    if scenes < 0:
        raise UserError(f"scenes must be at least 0, not {scenes}")
    if workers is not None and workers < 1:
        raise UserError(f"workers must be at least 1, not {workers}")
    SHARDS.require(out)
    UNFINISHED.require(unfinished(out))
    require_renderer()
    return build_from(load_sources(cache), out, size, scenes, seed, workers)


def build_from(
    sources: Sources, out: Path, size: int, scenes: int, seed: int, workers: int | None = None
) -> dict[str, Any]:
    """`build` from sources already at hand."""
    out, workers = out.absolute(), workers or cores()
    partial = unfinished(out)
    begin(partial, sources, size, scenes, seed)
    every = drawings(sources)
    drawn, failures = render_drawings(every, sources, size, partial, workers)
    known = [drawing for drawing in every if drawing.key in drawn]
    held_out = choose_held_out(sources, known)
    licences = {style: _credit(sources, style)["licence"]["spdx"] for style in sources.icons}
    counts: Counts = collections.defaultdict(collections.Counter)
    shards = _write(partial, "single", _singles(known, drawn, held_out, licences), counts)
    usable: dict[str, dict[str, Drawn]] = collections.defaultdict(dict)  # scenes are made of what may be trained on
    for drawing in known:
        if (drawing.codes, drawing.style) not in held_out:
            usable[drawing.style].setdefault(wording.clean(drawing.name), drawn[drawing.key])
    parts = paint_scenes(dict(usable), SPOKEN, licences, size, scenes, seed, partial, workers)
    shards += _write(partial, "scene", _scenes(parts), counts)
    manifest = {
        "format": FORMAT,
        "size": size,
        "seed": seed,
        "scenes": scenes,
        "counts": {name: dict(sorted(counter.items())) for name, counter in sorted(counts.items())},
        "failures": failures,
        "held_out": sorted(held_out),
        "sets": [_credit(sources, style) for style in sources.icons],
        "sources": list(sources.packages),
        "shards": shards,
        "sha256": hashlib.sha256("".join(shard["sha256"] for shard in shards).encode()).hexdigest(),
    }
    write_text(partial / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False) + "\n")
    kept = {"manifest.json", *(shard["file"] for shard in shards)}
    for path in partial.iterdir():
        if path.name not in kept:
            path.unlink()
    put(partial, out, SHARDS)
    return manifest


def begin(partial: Path, sources: Sources, size: int, scenes: int, seed: int) -> None:
    """Make the folder in which a build works, or keep what is left there of the same build, made by the same code."""
    code = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))))
    icons = json.dumps([sources.icons, sources.names] if not sources.packages else sources.packages, sort_keys=True)
    wanted = {
        "format": FORMAT,
        "size": size,
        "scenes": scenes,
        "seed": seed,
        "sources": hashlib.sha256(icons.encode()).hexdigest(),
        "code": code.hexdigest(),
        "pillow": PIL.__version__,
    }
    mark = partial / "build.json"
    if values_of(mark) == wanted:
        return
    UNFINISHED.require(partial)
    remove(partial)
    make_folder(partial)
    mark.write_text(json.dumps(wanted, indent=1) + "\n", "utf-8")


def choose_held_out(sources: Sources, drawn: list[Drawing]) -> set[tuple[str, str]]:
    """(code points, style) pairs kept for testing, fixed forever by a hash.

    Only concepts with four styles or more, so that the concept is still seen in training; at most one pair a concept;
    only drawings that look like no other and whose name and style no other has.
    """
    drawn = [drawing for drawing in drawn if not drawing.by_hand]
    styles = collections.Counter(drawing.codes for drawing in drawn)
    looks = collections.Counter(fingerprint(sources.icons[d.style], d.icon) for d in drawn)
    named = collections.Counter((wording.clean(d.name), d.style) for d in drawn)
    chosen: dict[str, tuple[int, str]] = {}
    for drawing in drawn:
        share = stable_hash("held-out", drawing.codes, drawing.style)
        alone = looks[fingerprint(sources.icons[drawing.style], drawing.icon)] == 1
        alone = alone and named[wording.clean(drawing.name), drawing.style] == 1
        if alone and styles[drawing.codes] >= 4 and share < HELD_OUT_SHARE * 2**64:
            chosen[drawing.codes] = min(chosen.get(drawing.codes, (2**64, "")), (share, drawing.style))
    return {(codes, style) for codes, (_, style) in chosen.items()}


def _singles(
    known: list[Drawing], drawn: dict[str, Drawn], held_out: set[tuple[str, str]], licences: dict[str, str]
) -> Iterator[Sample]:
    shards: dict[Path, Shard] = {}
    for drawing in sorted(known, key=lambda one: stable_hash("order", one.key)):  # every shard holds all styles
        place = drawn[drawing.key]
        if place.examples not in shards:
            shards[place.examples] = Shard(place.examples)
        concept = wording.clean(drawing.name)
        meta = {
            "kind": "single",
            "concept": concept,
            "style": drawing.style,
            "codepoints": drawing.codes,
            "captions": wording.captions(
                concept, SPOKEN.get(drawing.style, drawing.style), drawing.keywords, drawing.key
            ),
            "keywords": list(drawing.keywords),
            "group": drawing.group,
            "split": "held-out" if (drawing.codes, drawing.style) in held_out else "train",
            "licence": licences[drawing.style],
        }
        yield sample(drawing.key, shards[place.examples].read(place.index, "png"), meta)


def _scenes(parts: list[Path]) -> Iterator[Sample]:
    for path in parts:
        shard = Shard(path)
        for i, entry in enumerate(shard.entries):
            yield entry.key, {name: shard.read(i, name) for name in entry.members}


def _write(folder: Path, name: str, samples: Iterable[Sample], counts: Counts) -> list[dict[str, Any]]:
    """Shards of at most `SHARD_SIZE` samples each, counted by kind, split, style and category."""
    shards: list[dict[str, Any]] = []
    waiting: list[Sample] = []

    def flush() -> None:
        shards.append(write_shard(folder / f"{name}-{len(shards):04d}.tar", waiting))
        waiting.clear()

    for one in samples:
        meta = json.loads(one[1]["json"])
        counts["kind"][meta["kind"]] += 1
        counts["split"][f"{meta['kind']} {meta['split']}"] += 1
        counts["style"][f"{meta['kind']} {meta['style']}"] += 1
        if "category" in meta:
            counts["category"][f"{meta['category']} {meta['split']}"] += 1
        waiting.append(one)
        if len(waiting) == SHARD_SIZE:
            flush()
    if waiting:
        flush()
    return shards


def _credit(sources: Sources, style: str) -> dict[str, Any]:
    info = sources.icons[style]["info"]
    return {"style": style, "name": info["name"], "author": info["author"], "licence": info["license"]}
