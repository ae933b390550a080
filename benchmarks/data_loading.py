"""How many images a second are loaded to training batches, and how many Pillow alone makes on all cores.

    python benchmarks/data_loading.py --out benchmarks/results/data-loading

Shards of JPEGs are made: noise with the spectrum of photographs, 512 or 768 px on the shorter side. Three things take
short turns, in as many processes as there are cores:

- "decode": Pillow's decoder alone, each process with the bytes in memory: `open`, `draft`, `load`. Nothing is resized,
  cropped, made an array or handed on.
- "picture": Pillow alone to the picture that training wants: `open`, `draft`, `convert`, `resize` (Lanczos, gap 3,
  as diptych), `np.asarray`, centre crop, all within each process.
- "bytes": diptych's loader to batches of bytes: tar, captions, all of "picture", mirrored at random, through shared
  memory, in order, copied once, as to pinned memory; on a GPU where there is one, to it (`prefetched`).
- "floats": the same with the conversion to floating-point numbers on the CPU, where a GPU would do it.

At 256 px from 512 libjpeg decodes at a half. Ratios of the rates count on a machine that does nothing else; those of
the CPU time for an image, in all processes together, are disturbed less by other work. Both are medians of
the ratios within a turn.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import torch
from PIL import Image

from diptych.data.dataset import DataConfig, open_dataset
from diptych.data.shards import write_shard
from diptych.data.stream import ImageBatches, pictures
from diptych.data.worker_pool import WorkerPool
from diptych.training.prefetch import prefetched
from diptych.training.training_config import TrainingConfig

QUALITY = 90
ORDER, OURS = ("decode", "bytes", "picture", "floats"), ("bytes", "floats")
AHEAD = 3
"""Batches that the loader makes before they are asked for."""
CASES = ((512, 256), (512, 512), (768, 512))
"""The shorter side of the images, and that of training."""
ALONE = """
import io, pickle, sys, time
import numpy as np
from PIL import Image
images, size, least = pickle.load(sys.stdin.buffer)
def picture(image):
    image = image.convert("RGB") if image.mode != "RGB" else image
    scale = size / min(image.size)
    wanted = tuple(max(size, round(side * scale)) for side in image.size)
    if wanted != image.size:
        image = image.resize(wanted, Image.Resampling.LANCZOS, reducing_gap=3.0)
    left, top = ((side - size) // 2 for side in wanted)
    return np.asarray(image)[top : top + size, left : left + size]
def turn(whole):
    count, began, used = 0, time.monotonic(), time.process_time()
    while count == 0 or time.monotonic() - began < least:
        for data in images[count % len(images):][:8]:
            image = Image.open(io.BytesIO(data))
            image.draft("RGB", (size, size))
            image.load()
            if whole:
                picture(image)
            count += 1
    return count / (time.monotonic() - began), (time.process_time() - used) / count
least, wanted = 0.0, least
turn(True)  # what is done once
least = wanted
print("ready", flush=True)
while command := sys.stdin.buffer.read(1):
    print(*turn(command == b"p"), flush=True)
"""


def photographs(count: int, side: int = 512) -> list[bytes]:
    """JPEGs with the spectrum of natural images, the same each time: of three shapes."""
    found = []
    for number in range(count):
        rng = np.random.default_rng(number)
        width, height = [(side, side), (side * 4 // 3, side), (side, side * 4 // 3)][number % 3]
        frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
        frequency[0, 0] = 1.0
        planes = []
        for _ in range(3):
            noise = np.fft.rfft2(rng.standard_normal((height, width))) / frequency
            plane = np.fft.irfft2(noise, (height, width))
            planes.append(128 + 48 * (plane - plane.mean()) / plane.std())
        grey = sum(planes) / 3  # colours of photographs vary less than their brightness
        pixels = np.stack([0.3 * plane + 0.7 * grey for plane in planes], -1).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
        found.append(file.getvalue())
    return found


class Speed(NamedTuple):
    """What was measured once."""

    rate: float
    """Pictures a second."""
    cpu: float
    """Seconds of all processes for an image."""


class Pillow:
    """Pillow alone in so many processes, which take their turns at the same time."""

    def __init__(self, images: list[bytes], size: int, processes: int, seconds: float) -> None:
        payload, command = pickle.dumps((images, size, seconds)), [sys.executable, "-c", ALONE]
        self.processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(processes)
        ]
        for process in self.processes:
            self.send(process, payload)
        for process in self.processes:
            self.line(process)

    def send(self, process: subprocess.Popen[bytes], data: bytes) -> None:
        assert process.stdin
        process.stdin.write(data)
        process.stdin.flush()

    def line(self, process: subprocess.Popen[bytes]) -> str:
        assert process.stdout
        return process.stdout.readline().decode()

    def turn(self, what: str) -> Speed:
        """what: "decode" or "picture"."""
        for process in self.processes:
            self.send(process, what[:1].encode())
        found = [[float(word) for word in self.line(process).split()] for process in self.processes]
        return Speed(sum(rate for rate, _ in found), statistics.mean(cpu for _, cpu in found))

    def close(self) -> None:
        for process in self.processes:
            process.communicate()


class Loader:
    """diptych's batches, as "bytes" or "floats"."""

    def __init__(self, folder: Path, size: int, processes: int, seconds: float, batch: int) -> None:
        self.seconds, self.batch, self.stack, self.floats = seconds, batch, contextlib.ExitStack(), False
        batches = ImageBatches(open_dataset(DataConfig(path=str(folder), size=size, flip=0.5)), seed=0)
        pieces = (list(range(start, start + batch)) for start in range(0, 2**30, batch))
        if torch.cuda.is_available():
            config = TrainingConfig(workers=processes, worker_kind="processes")
            self.found = self.stack.enter_context(
                contextlib.closing(prefetched(batches, pieces, config, torch.device("cuda")))
            )
        else:
            pool = self.stack.enter_context(WorkerPool(batches.dataset, processes, batch * batches.most_bytes))
            self.found = batches.from_workers(pool, pieces)
        self.turn("bytes")  # what is done once

    def take(self) -> None:
        made = next(self.found)
        if "pixels" in made:
            (pictures if self.floats else torch.clone)(made["pixels"])

    def turn(self, what: str) -> Speed:
        """From when the workers are busy, until they have ended what they are at."""
        self.floats = what == "floats"
        for _ in range(AHEAD):  # made before this turn
            self.take()
        count, began, used = 0, time.monotonic(), cpu_seconds()
        while count == 0 or time.monotonic() - began < self.seconds:
            self.take()
            count += self.batch
        found = Speed(count / (time.monotonic() - began), (cpu_seconds() - used) / count)
        busy = -1.0
        while (now := cpu_seconds()) > busy:
            busy = now + 0.02
            time.sleep(0.5)
        return found


def cpu_seconds() -> float:
    """The time that this process and its children have used."""
    used, tick = time.process_time(), os.sysconf("SC_CLK_TCK")
    for task in Path("/proc/self/task").iterdir():
        for child in (task / "children").read_text().split():
            used += sum(map(int, Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[11:13])) / tick
    return used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, help="folder for the results")
    parser.add_argument("--images", type=int, default=48)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=1.5, help="of each turn")
    parser.add_argument("--turns", type=int, default=10)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {
        "machine": {
            "cores": given.processes,
            "cpu": processor(),
            "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            "load": [round(load, 1) for load in os.getloadavg()],
            "pillow": PIL.__version__,
        },
        "turns": given.turns,
        "seconds": given.seconds,
    }
    for side, size in CASES:
        images = photographs(given.images, side)
        with tempfile.TemporaryDirectory() as folder:
            samples = [(f"{number:06d}", {"jpg": data, "txt": b"a photograph"}) for number, data in enumerate(images)]
            write_shard(Path(folder, "images.tar"), samples)
            alone = Pillow(images, size, given.processes, given.seconds)
            loader = Loader(Path(folder), size, given.processes, given.seconds, given.batch)
            with contextlib.closing(alone), loader.stack:
                turns = [
                    {what: (loader if what in OURS else alone).turn(what) for what in ORDER} for _ in range(given.turns)
                ]
        name = f"{side} px to {size} px"
        found[name] = {"mean_bytes": sum(map(len, images)) // len(images), **summary(turns)}
        print(f"{name}: {json.dumps(found[name])}", flush=True)
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "results.json").write_text(json.dumps(found, indent=2) + "\n")


def summary(turns: list[dict[str, Speed]]) -> dict[str, Any]:
    """Medians of the turns, and of the ratios within each."""
    found: dict[str, Any] = {
        name: {
            "images_per_second": round(statistics.median(turn[name].rate for turn in turns), 1),
            "cpu_ms": round(1e3 * statistics.median(turn[name].cpu for turn in turns), 2),
        }
        for name in turns[0]
    }
    for ours in OURS:
        for alone in ("picture", "decode"):
            found[f"{ours} of {alone}"] = {
                "by_rate": round(statistics.median(turn[ours].rate / turn[alone].rate for turn in turns), 3),
                "by_cpu_time": round(statistics.median(turn[alone].cpu / turn[ours].cpu for turn in turns), 3),
            }
    return found


def processor() -> str:
    """The name of the CPU."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "unknown"


if __name__ == "__main__":
    main()
