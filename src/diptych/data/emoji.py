"""`diptych data emoji`: captioned WebDataset shards from six open emoji sets.

Same arguments, same bytes. Everything is written into a folder beside `out` that takes its place when it is whole;
`manifest.json` says what is inside, where it came from and under which licence.
"""

from __future__ import annotations

import collections
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from diptych.data import captions as wording
from diptych.data.hashing import stable_hash
from diptych.data.names import Drawing, drawings
from diptych.data.render import fingerprint, on_white, png_bytes, render
from diptych.data.scenes import Painter
from diptych.data.shards import write_shard
from diptych.data.sources import SETS, Sources, load_sources
from diptych.errors import UserError
from diptych.progress import track

HELD_OUT_SHARE = 0.068
"""Of the drawings whose concept has four styles or more; about 5% of all drawings."""
SHARD_SIZE = 1000
SPOKEN = {one.style: one.spoken for one in SETS}
Sample = tuple[str, dict[str, bytes]]
Counts = dict[str, collections.Counter[str]]


def build(out: Path, size: int = 128, scenes: int = 12000, seed: int = 0, cache: Path | None = None) -> dict[str, Any]:
    """Build the emoji shards in `out` and return the manifest.

    `size` is the side of the pictures in pixels, `scenes` the number of composed scenes beside the single drawings,
    `cache` the folder of downloads (default $DIPTYCH_CACHE/npm or ~/.cache/diptych/npm).
    Raises `UserError` when a source cannot be had or `out` holds something else.
    """
    if not 16 <= size <= 1024:
        raise UserError(f"size must be between 16 and 1024 pixels, not {size}")
    if scenes < 0:
        raise UserError(f"scenes must be at least 0, not {scenes}")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: choose a folder")
    if out.exists() and any(out.iterdir()) and not (out / "manifest.json").exists():
        raise UserError(f"{out} holds files that are not emoji shards: choose a new folder")
    return build_from(load_sources(cache), out, size, scenes, seed)


def build_from(sources: Sources, out: Path, size: int, scenes: int, seed: int) -> dict[str, Any]:
    """`build` from sources already at hand."""
    out = out.absolute()
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    pictures, failures = render_all(sources, size)
    held_out = choose_held_out(sources, [drawing for drawing, _ in pictures])
    counts: Counts = collections.defaultdict(collections.Counter)
    shards = _write(partial, "single", _singles(pictures, held_out, sources), counts)
    shards += _write(partial, "scene", _scenes(pictures, held_out, sources, size, scenes, seed), counts)
    manifest = {
        "format": "diptych-emoji-1",
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
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", "utf-8")
    _swap(partial, out)
    return manifest


def render_all(sources: Sources, size: int) -> tuple[list[tuple[Drawing, Image.Image]], list[dict[str, str]]]:
    """RGBA pictures of all drawings, and what could not be drawn and why."""
    pictures, failures = [], []
    margins = {one.style: one.margin for one in SETS}
    for drawing in track(drawings(sources), "rendering emoji"):
        try:
            picture = render(sources.icons[drawing.style], drawing.icon, size, margins.get(drawing.style, 0.04))
        except (ValueError, KeyError, OSError) as error:
            failures.append({"style": drawing.style, "icon": drawing.icon, "error": f"{type(error).__name__}: {error}"})
            continue
        pictures.append((drawing, picture))
    return pictures, failures


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
    pictures: list[tuple[Drawing, Image.Image]], held_out: set[tuple[str, str]], sources: Sources
) -> list[Sample]:
    samples = []
    for drawing, picture in pictures:
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
            "licence": _credit(sources, drawing.style)["licence"]["spdx"],
        }
        samples.append(_sample(drawing.key, on_white(picture), meta))
    return sorted(samples, key=lambda sample: stable_hash("order", sample[0]))  # every shard holds all styles


def _scenes(
    pictures: list[tuple[Drawing, Image.Image]],
    held_out: set[tuple[str, str]],
    sources: Sources,
    size: int,
    count: int,
    seed: int,
) -> Iterator[Sample]:
    """Scenes of the drawings that may be trained on."""
    usable: dict[str, dict[str, Image.Image]] = collections.defaultdict(dict)
    for drawing, picture in pictures:
        if (drawing.codes, drawing.style) not in held_out:
            usable[drawing.style].setdefault(wording.clean(drawing.name), picture)
    painter = Painter(usable, size)
    for key, picture, meta in track(painter.scenes(count, seed, SPOKEN), "painting scenes", count):
        meta["licence"] = _credit(sources, meta["style"])["licence"]["spdx"]
        yield _sample(key, picture, meta)


def _sample(key: str, picture: Image.Image, meta: dict[str, Any]) -> Sample:
    """The members of one example."""
    text = json.dumps(meta, ensure_ascii=False).encode()
    return key, {"png": png_bytes(picture), "json": text, "txt": meta["captions"][0].encode()}


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


def _swap(partial: Path, out: Path) -> None:
    """Put the finished folder in place; a reader that has the old files open keeps them."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    os.replace(partial, out)
    shutil.rmtree(old, ignore_errors=True)
