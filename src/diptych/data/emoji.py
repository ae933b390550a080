"""`diptych data emoji`: captioned WebDataset shards from six open emoji sets.

Same arguments, same bytes. Everything is written into a folder beside `out` that takes its place when it is whole;
`manifest.json` says what is inside, where it came from and under which licence.
"""

from __future__ import annotations

import collections
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from diptych.data import captions as wording
from diptych.data.hashing import stable_hash
from diptych.data.names import Drawing, drawings
from diptych.data.shards import write_shard
from diptych.data.sources import SETS, Sources, load_sources
from diptych.errors import UserError
from diptych.progress import track

HELD_OUT_SHARE = 0.068
"""Of the drawings whose concept has four styles or more; about 5% of all drawings."""
SHARD_SIZE = 1000
Sample = tuple[str, dict[str, bytes]]


def build(out: Path, size: int = 128, scenes: int = 0, seed: int = 0, cache: Path | None = None) -> dict:
    """Build the emoji shards in `out` and return the manifest.

    `size` is the side of the pictures in pixels, `scenes` the number of composed scenes beside the single drawings,
    `cache` the folder of downloads. Raises `UserError` when a source cannot be had or `out` holds something else.
    """
    if not 16 <= size <= 1024:
        raise UserError(f"size must be between 16 and 1024 pixels, not {size}")
    if out.exists() and any(out.iterdir()) and not (out / "manifest.json").exists():
        raise UserError(f"{out} holds files that are not emoji shards: choose a new folder")
    return build_from(load_sources(cache), out, size, scenes, seed)


def build_from(sources: Sources, out: Path, size: int, scenes: int, seed: int) -> dict:
    """`build` from sources already at hand."""
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    pictures, failures = render_all(sources, size)
    held_out = choose_held_out(pictures)
    singles = [_single(drawing, picture, (drawing.codes, drawing.style) in held_out, sources) for drawing, picture in pictures]
    singles.sort(key=lambda sample: stable_hash("order", sample[0]))
    counts: dict[str, collections.Counter] = collections.defaultdict(collections.Counter)
    shards = _write(partial, "single", singles, counts)
    manifest = {
        "format": "diptych-emoji-1",
        "size": size,
        "seed": seed,
        "scenes": scenes,
        "counts": {name: dict(sorted(counter.items())) for name, counter in sorted(counts.items())},
        "failures": failures,
        "held_out": sorted([codes, style] for codes, style in held_out),
        "sets": [_credit(sources, one.style, one.spoken) for one in SETS if one.style in sources.icons],
        "sources": list(sources.packages),
        "shards": shards,
        "sha256": hashlib.sha256("".join(shard["sha256"] for shard in shards).encode()).hexdigest(),
    }
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    _swap(partial, out)
    return manifest


def render_all(sources: Sources, size: int) -> tuple[list[tuple[Drawing, Image.Image]], list[dict]]:
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


def render(icon_set: dict, icon: str, size: int, margin: float) -> Image.Image:
    """One icon as a `size` x `size` RGBA picture. Raises `ValueError` when it cannot be drawn or is empty."""
    import resvg_py

    data, transforms, name = {}, [], icon
    while name in icon_set.get("aliases", {}):
        alias = icon_set["aliases"][name]
        transforms += [key for key in ("hFlip", "vFlip") if alias.get(key)]
        data, name = {**alias, **data}, alias["parent"]
    data = {**icon_set["icons"][name], **{k: v for k, v in data.items() if k in ("left", "top", "width", "height")}}
    left, top, width, height = (
        data.get(key, icon_set.get(key, default)) for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    side = max(width, height)
    pad = side * margin / (1 - 2 * margin)
    box = (left - (side - width) / 2 - pad, top - (side - height) / 2 - pad, side + 2 * pad, side + 2 * pad)
    view = " ".join(f"{value:.6g}" for value in box)
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{size}" height="{size}" viewBox="{view}">{data["body"]}</svg>'
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True, width=size, height=size))
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    if "hFlip" in transforms:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if "vFlip" in transforms:
        picture = picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    if picture.getchannel("A").getextrema()[1] < 32:
        raise ValueError("the drawing is empty")
    return picture


def choose_held_out(pictures: list[tuple[Drawing, Image.Image]]) -> set[tuple[str, str]]:
    """(code points, style) pairs kept for testing, fixed forever by a hash.

    Only concepts with four styles or more, so that the concept is still seen in training; one pair a concept; and only
    drawings whose pixels no other drawing shares.
    """
    styles = collections.Counter(drawing.codes for drawing, _ in pictures)
    pixels = collections.Counter(hash_bytes(picture.tobytes()) for _, picture in pictures)
    chosen: dict[str, tuple[float, str]] = {}
    for drawing, picture in pictures:
        share = stable_hash("held-out", drawing.codes, drawing.style) / 2**64
        if styles[drawing.codes] >= 4 and share < HELD_OUT_SHARE and pixels[hash_bytes(picture.tobytes())] == 1:
            chosen[drawing.codes] = min(chosen.get(drawing.codes, (1.0, "")), (share, drawing.style))
    return {(codes, style) for codes, (_, style) in chosen.items()}


def hash_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def on_white(picture: Image.Image) -> Image.Image:
    """RGBA composited on white, as RGB."""
    ground = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(ground, picture).convert("RGB")


def png_bytes(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=6)
    return buffer.getvalue()


def sample(key: str, picture: Image.Image, meta: dict) -> Sample:
    """The members of one example."""
    text = json.dumps(meta, ensure_ascii=False).encode()
    return key, {"png": png_bytes(picture), "json": text, "txt": meta["captions"][0].encode()}


def _single(drawing: Drawing, picture: Image.Image, held_out: bool, sources: Sources) -> Sample:
    concept = wording.clean(drawing.name)
    spoken = next((one.spoken for one in SETS if one.style == drawing.style), drawing.style)
    meta = {
        "kind": "single",
        "concept": concept,
        "style": drawing.style,
        "codepoints": drawing.codes,
        "captions": wording.captions(concept, spoken, drawing.keywords, drawing.key),
        "keywords": list(drawing.keywords),
        "group": drawing.group,
        "split": "held-out" if held_out else "train",
        "licence": sources.icons[drawing.style]["info"]["license"]["spdx"],
    }
    return sample(drawing.key, on_white(picture), meta)


def _write(folder: Path, name: str, samples: Iterable[Sample], counts: dict[str, collections.Counter]) -> list[dict]:
    """Shards of at most `SHARD_SIZE` samples each, counted by kind, split, style and category."""
    shards, waiting = [], []

    def flush() -> None:
        shards.append(write_shard(folder / f"{name}-{len(shards):04d}.tar", waiting))
        waiting.clear()

    for one in samples:
        meta = json.loads(one[1]["json"])
        for field in ("kind", "split", "style", "category"):
            if field in meta:
                counts[field][meta[field]] += 1
        counts["kind and split"][f"{meta['kind']} {meta['split']}"] += 1
        waiting.append(one)
        if len(waiting) == SHARD_SIZE:
            flush()
    if waiting:
        flush()
    return shards


def _credit(sources: Sources, style: str, spoken: str) -> dict:
    info = sources.icons[style]["info"]
    return {"style": style, "name": info["name"], "spoken": spoken, "author": info["author"], "licence": info["license"]}


def _swap(partial: Path, out: Path) -> None:
    """Put the finished folder in place; a reader that has the old files open keeps them."""
    old = out.with_name(f".{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    os.replace(partial, out)
    shutil.rmtree(old, ignore_errors=True)
