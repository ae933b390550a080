"""`diptych data emoji`: captioned WebDataset shards from six open emoji sets.

Same arguments, same bytes, on any number of cores. A build writes into a temporary folder beside `out`, which is
renamed when it is complete; an interrupted build resumes there. `manifest.json` lists contents, sources and licences.
"""

from __future__ import annotations

import collections
import hashlib
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import PIL

from diptych.core.disk import Written, make_folder, put, remove, values_of, write_text
from diptych.core.errors import UserError
from diptych.core.hashing import stable_hash
from diptych.core.processors import cores
from diptych.data.emoji import captions as wording
from diptych.data.emoji.drawing_names import Drawing, drawings
from diptych.data.emoji.icon_sources import SETS, Sources, load_sources
from diptych.data.emoji.parallel_render import (
    Job,
    RenderedDrawing,
    render_drawings,
    render_scenes,
    sample,
    scene_workers,
)
from diptych.data.emoji.render import fingerprint, require_renderer
from diptych.data.shards import Shard, write_shard

FORMAT = "diptych-emoji-1"
HELD_OUT_SHARE = 0.068
"""Of the drawings whose concept has four styles or more; about 5% of all drawings."""
SHARD_SIZE = 1000
CAPTION_NAMES = {one.style: one.caption_name for one in SETS}
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
    """The temporary folder of a build."""
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

    `size` is the side of the images in pixels, `scenes` the number of composed scenes besides the single drawings,
    `cache` the folder of downloads (default $DIPTYCH_CACHE/npm or ~/.cache/diptych/npm), `workers` the number of
    processes (default: all cores). An interrupted build resumes.
    Raises a `UserError` when a source cannot be downloaded, or `out` holds other files.
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
    """`build` from parsed sources."""
    out, workers = out.absolute(), workers or cores()
    partial = unfinished(out)
    prepare_folder(partial, sources, size, scenes, seed)
    requested = drawings(sources)
    drawn, failures = render_drawings(requested, sources, size, partial, workers)
    rendered = [drawing for drawing in requested if drawing.key in drawn]
    held_out = select_held_out(sources, rendered)
    licences = {style: _credit(sources, style)["licence"]["spdx"] for style in sources.icons}
    counts: Counts = collections.defaultdict(collections.Counter)
    usable: dict[str, dict[str, RenderedDrawing]] = collections.defaultdict(
        dict
    )  # scenes are made of what may be trained on
    for drawing in rendered:
        if (drawing.codes, drawing.style) not in held_out:
            usable[drawing.style].setdefault(wording.clean_name(drawing.name), drawn[drawing.key])
    singles = [
        (d, drawn[d.key].examples, drawn[d.key].index, (d.codes, d.style) in held_out, licences[d.style])
        for d in sorted(rendered, key=lambda one: stable_hash("order", one.key))  # every shard holds all styles
    ]
    with scene_workers(dict(usable), size, workers) as pool:
        parts = render_scenes(pool, CAPTION_NAMES, licences, scenes, seed, partial)
        jobs = [
            *_shards(partial, "single", write_singles, singles),
            *_shards(partial, "scene", write_scenes, [(path, i) for path, count in parts for i in range(count)]),
        ]
        written = pool.run(_write, jobs, "writing shards")
    shards = [shard for shard, _ in written]
    counts: Counts = collections.defaultdict(collections.Counter)
    for _, counted in written:
        for name, counter in counted.items():
            counts[name].update(counter)
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
    complete = {"manifest.json", *(shard["file"] for shard in shards)}
    for path in partial.iterdir():
        if path.name not in complete:
            path.unlink()
    put(partial, out, SHARDS)
    return manifest


def prepare_folder(partial: Path, sources: Sources, size: int, scenes: int, seed: int) -> None:
    """Make the temporary folder of a build, unless it holds the start of the same build by the same code."""
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
        "zlib": zlib.ZLIB_RUNTIME_VERSION,
    }
    mark = partial / "build.json"
    if values_of(mark) == wanted:
        return
    UNFINISHED.require(partial)
    remove(partial)
    make_folder(partial)
    mark.write_text(json.dumps(wanted, indent=1) + "\n", "utf-8")


def select_held_out(sources: Sources, drawn: list[Drawing]) -> set[tuple[str, str]]:
    """(code points, style) pairs of the held-out split, fixed by a hash.

    Only concepts with four styles or more, so that training sees the concept; at most one pair per concept; only
    drawings that are unique in appearance and in name and style.
    """
    drawn = [drawing for drawing in drawn if not drawing.by_hand]
    styles = collections.Counter(drawing.codes for drawing in drawn)
    appearances = collections.Counter(fingerprint(sources.icons[d.style], d.icon) for d in drawn)
    names = collections.Counter((wording.clean_name(d.name), d.style) for d in drawn)
    selected: dict[str, tuple[int, str]] = {}
    for drawing in drawn:
        share = stable_hash("held-out", drawing.codes, drawing.style)
        unique = appearances[fingerprint(sources.icons[drawing.style], drawing.icon)] == 1
        unique = unique and names[wording.clean_name(drawing.name), drawing.style] == 1
        if unique and styles[drawing.codes] >= 4 and share < HELD_OUT_SHARE * 2**64:
            selected[drawing.codes] = min(selected.get(drawing.codes, (2**64, "")), (share, drawing.style))
    return {(codes, style) for codes, (_, style) in selected.items()}


def _shards(folder: Path, name: str, samples: Callable[..., Iterator[Sample]], items: list[Any]) -> Iterator[Job]:
    """Jobs for `_write`: shards of at most `SHARD_SIZE` samples."""
    for number, start in enumerate(range(0, len(items), SHARD_SIZE)):
        yield folder / f"{name}-{number:04d}.tar", samples, items[start : start + SHARD_SIZE]


def write_singles(items: list[tuple[Drawing, Path, int, bool, str]]) -> Iterator[Sample]:
    """The examples of single drawings."""
    shards: dict[Path, Shard] = {}
    for drawing, examples, index, held_out, licence in items:
        if examples not in shards:
            shards[examples] = Shard(examples)
        concept = wording.clean_name(drawing.name)
        meta = {
            "kind": "single",
            "concept": concept,
            "style": drawing.style,
            "codepoints": drawing.codes,
            "captions": wording.captions(
                concept, CAPTION_NAMES.get(drawing.style, drawing.style), drawing.keywords, drawing.key
            ),
            "keywords": list(drawing.keywords),
            "group": drawing.group,
            "split": "held-out" if held_out else "train",
            "licence": licence,
        }
        yield sample(drawing.key, shards[examples].read(index, "png"), meta)


def write_scenes(items: list[tuple[Path, int]]) -> Iterator[Sample]:
    """The examples of scenes, from their parts."""
    shards: dict[Path, Shard] = {}
    for path, index in items:
        if path not in shards:
            shards[path] = Shard(path)
        entry = shards[path].entries[index]
        yield entry.key, {name: shards[path].read(index, name) for name in entry.members}


def _write(path: Path, samples: Callable[[Any], Iterator[Sample]], items: list[Any]) -> tuple[dict[str, Any], Counts]:
    """One shard: its entry in the manifest, and its examples counted by kind, split, style and category."""
    counts: Counts = {name: collections.Counter() for name in ("kind", "split", "style", "category")}

    def counted() -> Iterator[Sample]:
        for example in samples(items):
            meta = json.loads(example[1]["json"])
            counts["kind"][meta["kind"]] += 1
            counts["split"][f"{meta['kind']} {meta['split']}"] += 1
            counts["style"][f"{meta['kind']} {meta['style']}"] += 1
            if "category" in meta:
                counts["category"][f"{meta['category']} {meta['split']}"] += 1
            yield example

    return write_shard(path, counted()), {name: counter for name, counter in counts.items() if counter}


def _credit(sources: Sources, style: str) -> dict[str, Any]:
    info = sources.icons[style]["info"]
    return {"style": style, "name": info["name"], "author": info["author"], "licence": info["license"]}
