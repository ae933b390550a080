"""Emoji drawings and scenes made in parts: on all cores, in bounded memory, going on where a build was cut off.

A part is a small tar in the build's work folder that appears under its name when it is whole. What a part holds depends
on its own job alone, so neither the number of processes nor an interruption changes a byte of the result.
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
from diptych.data.emoji.render import draw, on_white, picture_of, png_bytes, resolve
from diptych.data.emoji.scenes import Painter
from diptych.data.shards import Shard, write_shard

PART = 128
"""Drawings, or scenes, of one part."""
Job = tuple[Any, ...]


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_processes(
    function: Callable[..., None],
    jobs: Sequence[Job],
    workers: int,
    description: str,
    prepare: Callable[..., None] | None = None,
    given: Job = (),
) -> None:
    """Call `function(*job)` for each job, on so many processes, each of which first calls `prepare(*given)`."""
    if workers == 1 or len(jobs) < 2:
        if jobs and prepare is not None:
            prepare(*given)
        for job in track(jobs, description):
            function(*job)
        return
    context = multiprocessing.get_context("spawn")  # not fork: threads of this process may hold locks
    started = (os.getpid(), prepare, given)
    with ProcessPoolExecutor(min(workers, len(jobs)), context, initializer=_start, initargs=started) as pool:
        futures = [pool.submit(function, *job) for job in jobs]
        try:
            for future in track(as_completed(futures), description, total=len(futures)):
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def _start(parent: int, prepare: Callable[..., None] | None, given: Job) -> None:
    """In a new process: leave Ctrl-C to the parent, and end when the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    if prepare is not None:
        prepare(*given)


# Drawings: as examples on white, and with their alpha channel for scenes.


@dataclass(frozen=True)
class Drawn:
    """Where one drawing lies in the parts."""

    examples: Path
    cutouts: Path
    index: int


def render_drawings(
    drawings: Sequence[Drawing], sources: Sources, size: int, folder: Path, workers: int
) -> tuple[dict[str, Drawn], list[dict[str, str]]]:
    """Draw all that `folder` lacks; where each drawing lies by its key, and what could not be drawn and why."""
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
    in_processes(_draw_part, jobs, workers, "drawing emoji")

    drawn: dict[str, Drawn] = {}
    failures: list[dict[str, str]] = []
    for examples, cutouts in names:
        shard, index = Shard(examples), 0
        for i, entry in enumerate(shard.entries):
            if "json" in entry.members:
                failures.append(json.loads(shard.read(i, "json")))
            else:
                drawn[entry.key] = Drawn(examples, cutouts, index)
                index += 1
    return drawn, failures


def _resolved(icon_set: dict[str, Any], icon: str) -> tuple[dict[str, Any], tuple[str, ...]] | str:
    """An icon's body and flips, or why there are none."""
    try:
        return resolve(icon_set, icon)
    except (ValueError, KeyError) as error:
        return _said(error)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _draw_part(examples: Path, cutouts: Path, icons: Sequence[Job], size: int) -> None:
    """Write one part; the examples last, since their file says that the part is whole."""
    whole, alpha = [], []
    failed = []
    for key, style, icon, margin, found in icons:
        try:
            if isinstance(found, str):
                raise LookupError
            body, flips = found
            picture = draw(body, flips, size, margin)
        except (ValueError, KeyError, OSError, LookupError) as error:
            reason = found if isinstance(found, str) else _said(error)
            text = json.dumps({"style": style, "icon": icon, "error": reason})
            failed.append((f"failed-{len(failed)}", {"json": text.encode()}))
            continue
        whole.append((key, {"png": png_bytes(on_white(picture))}))
        alpha.append((key, {"png": png_bytes(picture, level=1)}))
    write_shard(cutouts, alpha)
    write_shard(examples, whole + failed)


class Cutouts(Mapping[str, Image.Image]):
    """concept -> RGBA picture, read when it is asked for."""

    def __init__(self, places: Mapping[str, Drawn], shards: dict[Path, Shard]) -> None:
        self.places, self.shards = places, shards

    def __getitem__(self, concept: str) -> Image.Image:
        place = self.places[concept]
        if place.cutouts not in self.shards:
            self.shards[place.cutouts] = Shard(place.cutouts)
        return picture_of(self.shards[place.cutouts].read(place.index, "png"))

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


# Scenes.

_painter: Painter | None = None
"""Of this process."""


def paint_scenes(
    usable: Mapping[str, Mapping[str, Drawn]],
    spoken: dict[str, str],
    licences: dict[str, str],
    size: int,
    count: int,
    seed: int,
    folder: Path,
    workers: int,
) -> list[Path]:
    """Paint all scenes that `folder` lacks; their parts in order."""
    paths = [folder / f"scenes-{start // PART:04d}.tar" for start in range(0, count, PART)]
    jobs = [
        (path, range(n * PART, min(count, (n + 1) * PART)), seed, spoken, licences)
        for n, path in enumerate(paths)
        if not path.exists()
    ]
    in_processes(_paint_part, jobs, workers, "composing scenes", _prepare_painter, (usable, size))
    return paths


def _prepare_painter(usable: Mapping[str, Mapping[str, Drawn]], size: int) -> None:
    global _painter
    shards: dict[Path, Shard] = {}
    _painter = Painter({style: Cutouts(places, shards) for style, places in usable.items()}, size)


def _paint_part(path: Path, numbers: range, seed: int, spoken: dict[str, str], licences: dict[str, str]) -> None:
    assert _painter is not None
    samples = []
    for number in numbers:
        if (found := _painter.scene(number, seed, spoken)) is not None:
            key, picture, meta = found
            samples.append(sample(key, png_bytes(picture), {**meta, "licence": licences[meta["style"]]}))
    write_shard(path, samples)


def sample(key: str, png: bytes, meta: dict[str, Any]) -> tuple[str, dict[str, bytes]]:
    """The members of one example."""
    text = json.dumps(meta, ensure_ascii=False).encode()
    return key, {"png": png, "json": text, "txt": meta["captions"][0].encode()}
