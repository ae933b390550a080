"""Time of `diptych data emoji`: wall clock, processor seconds of all its processes, and where they go.

    python -m benchmarks.emoji_data --size 128 --scenes 5000
    python -m benchmarks.emoji_data --size 512 --scenes 1000 --sample 60     of so many drawings and scenes, alone

The emoji sets must be in the cache (`make gpu-check` fetches them). Wall time is that of this machine as busy as it is;
processor seconds say what the work needs anywhere. `ideal` divides what the processes do by `--cores` and adds what
the first process does alone: a lower bound for a machine with that many cores as fast as these.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.common import processor

OUT = Path("benchmarks/results/emoji-data")


def build(size: int, scenes: int, workers: int, out: Path) -> dict[str, float]:
    """Build once in a process of its own; its seconds."""
    program = (
        "import json, resource, sys, time; from pathlib import Path\n"
        "from diptych.data.emoji.build import build\n"
        "began = time.monotonic()\n"
        f"made = build(Path({str(out)!r}), {size}, {scenes}, workers={workers})\n"
        "own, of = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))\n"
        "print(json.dumps({'wall': time.monotonic() - began, 'first process': own.ru_utime + own.ru_stime,"
        " 'workers': of.ru_utime + of.ru_stime, 'examples': sum(one['samples'] for one in made['shards']),"
        " 'sha256': made['sha256']}))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def measured(size: int, scenes: int, workers: int, cores: int) -> dict[str, Any]:
    """What a build takes here, and the least that it could on so many cores."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = build(size, scenes, workers, Path(folder) / "data")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "size": size, "scenes": scenes, "processor": processor(), "cores here": os.cpu_count(),
        "load before": round(os.getloadavg()[2], 1), **found, "worker processes": workers,
        "command wall": time.monotonic() - began,
        "processor seconds": seconds, f"ideal on {cores} cores": found["first process"] + found["workers"] / cores,
    }  # fmt: skip


def sampled(size: int, scenes: int, count: int, cores: int) -> dict[str, Any]:
    """Processor seconds of `count` drawings and scenes in one process, and of all by their number."""
    from diptych.data.emoji.build import CAPTION_NAMES
    from diptych.data.emoji.captions import clean_name
    from diptych.data.emoji.drawing_names import Drawing, drawings
    from diptych.data.emoji.icon_sources import SETS, load_sources
    from diptych.data.emoji.parallel_render import PART
    from diptych.data.emoji.render import decode_png, draw_png, on_white, png_bytes, resolve
    from diptych.data.emoji.scenes import SceneRenderer

    began = time.process_time()
    sources = load_sources()
    drawn, margins = drawings(sources), {one.style: one.margin for one in SETS}
    first = time.process_time() - began
    away = [0.0]
    """Seconds of what a build has done before a scene asks for a drawing."""

    class Drawn(dict[str, Drawing]):
        """Concepts, drawn when they are read."""

        def __getitem__(self, name: str) -> Any:
            before, one = time.process_time(), super().__getitem__(name)
            png = draw_png(*resolve(sources.icons[one.style], one.icon), size, margins.get(one.style, 0.04))[1]
            away[0] += time.process_time() - before
            return decode_png(png)

    styles: dict[str, Drawn] = {}
    for one in drawn:
        styles.setdefault(one.style, Drawn()).setdefault(clean_name(one.name), one)
    before = time.process_time()
    for one in drawn[:: max(1, len(drawn) // count)][:count]:
        try:
            body, flips = resolve(sources.icons[one.style], one.icon)
            png_bytes(on_white(draw_png(body, flips, size, margins.get(one.style, 0.04))[0]))
        except (ValueError, KeyError):
            continue
    a_drawing = (time.process_time() - before) / count
    renderer, before = SceneRenderer(styles, size), time.process_time()  # type: ignore[arg-type]
    for number in range(min(count, scenes, PART)):
        if (scene := renderer.scene(number, 0, CAPTION_NAMES)) is not None:
            png_bytes(scene[1])
    a_scene = (time.process_time() - before - away[0]) / max(min(count, scenes, PART), 1)
    work = a_drawing * len(drawn) + a_scene * scenes
    return {
        "size": size, "scenes": scenes, "sample": count, "processor": processor(), "load": round(os.getloadavg()[0], 1),
        "first process": first, "milliseconds a drawing": 1000 * a_drawing, "milliseconds a scene": 1000 * a_scene,
        "processor seconds of all": work + first, f"ideal on {cores} cores": first + work / cores,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--scenes", type=int, default=5000)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--cores", type=int, default=16, help="of the machine that `ideal` is for")
    parser.add_argument("--out", type=Path, default=OUT, metavar="FOLDER")
    parser.add_argument("--sample", type=int, metavar="N", help="only so many drawings and scenes, in one process")
    options = parser.parse_args()
    size, scenes, cores = options.size, options.scenes, options.cores
    found = (
        sampled(size, scenes, options.sample, cores)
        if options.sample
        else measured(size, scenes, options.workers, cores)
    )
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{size}px-{scenes}-scenes{'-sampled' if options.sample else ''}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
