"""Parallel rendering of drawings and scenes in parts, in bounded memory; an interrupted build resumes.

A part is a small tar in the build's temporary folder, renamed when it is complete. It depends on its own job alone, so
neither the number of processes nor an interruption changes a byte of the result.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from diptych.core.progress import track
from diptych.data.emoji.drawing_names import Drawing
from diptych.data.emoji.icon_sources import SETS, Sources
from diptych.data.emoji.render import decode_png, draw_png, on_white, png_bytes, resolve
from diptych.data.emoji.scenes import SceneRenderer
from diptych.data.shards import Shard, write_shard

PART = 128
"""Drawings, or scenes, of one part."""
Job = tuple[Any, ...]


class Workers:
    """So many processes, each of which first calls `prepare(*given)`; one is this process itself."""

    def __init__(self, count: int, prepare: Callable[..., None] | None = None, given: Job = ()) -> None:
        self.count, self.prepare, self.given = count, prepare, given
        self.pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> Workers:
        if self.count == 1:
            _prepare(self.prepare, self.given)
        return self

    def __exit__(self, *error: Any) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)

    def run(self, function: Callable[..., Any], jobs: Sequence[Job], description: str) -> list[Any]:
        """The results of `function(*job)` for each job, in order."""
        if self.count == 1:
            return [function(*job) for job in track(jobs, description)]
        if self.pool is None and jobs:
            context = multiprocessing.get_context("spawn")  # not fork: threads of this process may hold locks
            started = (os.getpid(), self.prepare, self.given)
            self.pool = ProcessPoolExecutor(min(self.count, len(jobs)), context, _start, started)
        futures = [self.pool.submit(function, *job) for job in jobs] if self.pool else []
        for future in track(as_completed(futures), description, total=len(futures)):
            future.result()  # the first error ends it
        return [future.result() for future in futures]


def _start(parent: int, prepare: Callable[..., None] | None, given: Job) -> None:
    """In a new process: leave Ctrl-C to the parent, and end when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    _prepare(prepare, given)


def _prepare(prepare: Callable[..., None] | None, given: Job) -> None:
    if prepare is not None:
        prepare(*given)


# Drawings: as examples on white, and with their alpha channel for scenes.


@dataclass(frozen=True)
class RenderedDrawing:
    """The location of one drawing in the parts."""

    examples: Path
    cutouts: Path
    index: int


def render_drawings(
    drawings: Sequence[Drawing], sources: Sources, size: int, folder: Path, workers: int
) -> tuple[dict[str, RenderedDrawing], list[dict[str, str]]]:
    """Render the missing parts in `folder`; the location of each drawing by its key, and the failures with reasons."""
    margins = {one.style: one.margin for one in SETS}
    jobs: list[Job] = []
    names: list[tuple[Path, Path]] = []
    for start in range(0, len(drawings), PART):
        examples, cutouts = (folder / f"{kind}-{start // PART:04d}.tar" for kind in ("drawings", "cutouts"))
        names.append((examples, cutouts))
        if not examples.exists():
            icons = [
                (d.key, d.style, d.icon, margins.get(d.style, 0.04), _resolved(sources.icons[d.style], d.icon))
                for d in drawings[start : start + PART]
            ]
            jobs.append((examples, cutouts, icons, size))
    with Workers(workers) as pool:
        pool.run(_draw_part, jobs, "drawing emoji")

    drawn: dict[str, RenderedDrawing] = {}
    failures: list[dict[str, str]] = []
    for examples, cutouts in names:
        shard, index = Shard(examples), 0
        for i, entry in enumerate(shard.entries):
            if "json" in entry.members:
                failures.append(json.loads(shard.read(i, "json")))
            else:
                drawn[entry.key] = RenderedDrawing(examples, cutouts, index)
                index += 1
    return drawn, failures


def _resolved(icon_set: dict[str, Any], icon: str) -> tuple[dict[str, Any], tuple[str, ...]] | str:
    """An icon's body and flips, or the error text."""
    try:
        return resolve(icon_set, icon)
    except (ValueError, KeyError) as error:
        return _error_text(error)


def _error_text(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _draw_part(examples: Path, cutouts: Path, icons: Sequence[Job], size: int) -> None:
    """Write one part; the examples last, since their file marks the part as complete."""
    rendered, transparent = [], []
    failed = []
    for key, style, icon, margin, resolved in icons:
        try:
            if isinstance(resolved, str):
                raise LookupError
            body, flips = resolved
            image, png = draw_png(body, flips, size, margin)
        except (ValueError, KeyError, OSError, LookupError) as error:
            reason = resolved if isinstance(resolved, str) else _error_text(error)
            text = json.dumps({"style": style, "icon": icon, "error": reason})
            failed.append((f"failed-{len(failed)}", {"json": text.encode()}))
            continue
        rendered.append((key, {"png": png_bytes(on_white(image))}))
        transparent.append((key, {"png": png}))
    write_shard(cutouts, transparent)
    write_shard(examples, rendered + failed)


class Cutouts(Mapping[str, Image.Image]):
    """concept -> RGBA image, read on access."""

    def __init__(self, places: Mapping[str, RenderedDrawing], shards: dict[Path, Shard]) -> None:
        self.places, self.shards = places, shards

    def __getitem__(self, concept: str) -> Image.Image:
        place = self.places[concept]
        if place.cutouts not in self.shards:
            self.shards[place.cutouts] = Shard(place.cutouts)
        return decode_png(self.shards[place.cutouts].read(place.index, "png"))

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


# Scenes.

_renderer: SceneRenderer | None = None
"""Of this process."""


def scene_workers(drawings: Mapping[str, Mapping[str, RenderedDrawing]], size: int, workers: int) -> Workers:
    """Processes that compose scenes from these drawings: style -> concept -> drawing."""
    return Workers(workers, _prepare_renderer, (drawings, size))


def render_scenes(
    pool: Workers, caption_names: dict[str, str], licences: dict[str, str], count: int, seed: int, folder: Path
) -> list[tuple[Path, int]]:
    """Render the missing scenes in `folder`; returns their parts in order, and how many scenes each has."""
    paths = [folder / f"scenes-{start // PART:04d}.tar" for start in range(0, count, PART)]
    jobs = [
        (path, range(n * PART, min(count, (n + 1) * PART)), seed, caption_names, licences)
        for n, path in enumerate(paths)
    ]
    return list(zip(paths, pool.run(_render_part, jobs, "composing scenes"), strict=True))


def _prepare_renderer(drawings: Mapping[str, Mapping[str, RenderedDrawing]], size: int) -> None:
    global _renderer
    shards: dict[Path, Shard] = {}
    _renderer = SceneRenderer({style: Cutouts(places, shards) for style, places in drawings.items()}, size)


def _render_part(path: Path, numbers: range, seed: int, caption_names: dict[str, str], licences: dict[str, str]) -> int:
    if path.exists():
        return len(Shard(path))
    assert _renderer is not None
    samples = []
    for number in numbers:
        if (scene := _renderer.scene(number, seed, caption_names)) is not None:
            key, image, meta = scene
            samples.append(sample(key, png_bytes(image), {**meta, "licence": licences[meta["style"]]}))
    return write_shard(path, samples)["samples"]


def sample(key: str, png: bytes, meta: dict[str, Any]) -> tuple[str, dict[str, bytes]]:
    """The members of one example."""
    text = json.dumps(meta, ensure_ascii=False).encode()
    return key, {"png": png, "json": text, "txt": meta["captions"][0].encode()}
