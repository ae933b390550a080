"""What loading costs beside Pillow alone: processor seconds of an image, and images a second with 1 to N processes.

    python -m benchmarks.data_loading

Shards of JPEGs are made: noise with the spectrum of photographs, 512 or 768 px on the shorter side. These take short
turns, each with the same number of processes:

- "decode": Pillow's decoder alone, each process with the bytes in memory: `open`, `draft`, `load`. Nothing is resized,
  cropped, made an array or handed on.
- "tuned": the same with the loader's settings of memory (`worker_pool.ENVIRONMENT`), which help Pillow too.
- "image": Pillow alone to the image that training wants: `open`, `draft`, `convert`, `resize` (Lanczos, gap 3, as
  diptych), `np.asarray`, centre crop, all within each process.
- "batches": diptych's loader to batches of bytes: tar, captions, all of "image", mirrored at random, through shared
  memory, in order, copied once into memory that is used again, as pinned memory is; on a GPU where there is one, to it.
  The decoder is Pillow's too; the headers of usual JPEGs are read by `diptych.data.jpeg`, and not by Pillow in Python.

At 256 px from 512 libjpeg decodes at a half; from 768 px to 512 the resize takes most of the time of both. A turn is a
fixed number of images, from when all processes sleep until they sleep again, and all its processor time counts, that of
the main process too. So other work on the machine disturbs the ratio of processor seconds little: it is the result, the
median of the ratios within a turn, with the quartiles. Rates are those of the machine as busy as it is.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
import torch
from PIL import Image, features

from benchmarks.common import processor
from diptych.data.dataset import DataConfig, open_dataset
from diptych.data.shards import write_shard
from diptych.data.stream import ImageBatches
from diptych.data.worker_pool import ENVIRONMENT, SLOTS, WorkerPool
from diptych.training.prefetch import prefetched
from diptych.training.training_config import TrainingConfig

OUT = Path("benchmarks/results/data-loading")
QUALITY = 90
ORDER = ("decode", "batches", "tuned", "image")
BATCH = 32
CASES = ((512, 256), (512, 512), (768, 512))
"""The shorter side of the images, and that of training."""
QUIET = 4
"""Looks at the processes, `PAUSE` seconds apart, in which all must sleep before a turn is over."""
PAUSE = 0.02
ALONE = """
import io, pickle, sys, time
import numpy as np
from PIL import Image
images, size, count = pickle.load(sys.stdin.buffer)
def finish(image):
    image = image.convert("RGB") if image.mode != "RGB" else image
    scale = size / min(image.size)
    wanted = tuple(max(size, round(side * scale)) for side in image.size)
    if wanted != image.size:
        image = image.resize(wanted, Image.Resampling.LANCZOS, reducing_gap=3.0)
    left, top = ((side - size) // 2 for side in wanted)
    return np.asarray(image)[top : top + size, left : left + size]
def turn(whole, count):
    began, used = time.monotonic(), time.process_time()
    for number in range(count):
        image = Image.open(io.BytesIO(images[number % len(images)]))
        image.draft("RGB", (size, size))
        image.load()
        if whole:
            finish(image)
    return count / (time.monotonic() - began), (time.process_time() - used) / count
turn(True, len(images))  # what is done once
print("ready", flush=True)
while command := sys.stdin.buffer.read(1):
    print(*turn(command == b"i", count), flush=True)
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
    """Images a second."""
    cpu: float
    """Seconds of all processes for an image."""


class Pillow:
    """Pillow alone in so many processes, which take their turns at the same time."""

    def __init__(self, images: list[bytes], size: int, processes: int, count: int, **settings: str) -> None:
        """settings: of the environment of the processes."""
        payload, command = pickle.dumps((images, size, count)), [sys.executable, "-c", ALONE]
        self.processes = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **settings})
            for _ in range(processes)
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
        """what: "image", or anything else to decode alone."""
        for process in self.processes:
            self.send(process, what[:1].encode())
        found = [[float(word) for word in self.line(process).split()] for process in self.processes]
        return Speed(sum(rate for rate, _ in found), statistics.mean(cpu for _, cpu in found))

    def close(self) -> None:
        for process in self.processes:
            process.communicate()


class Loader:
    """diptych's batches."""

    def __init__(self, folder: Path, size: int, processes: int, count: int) -> None:
        self.count, self.stack = count, contextlib.ExitStack()
        batches = ImageBatches(open_dataset(DataConfig(path=str(folder), size=size, flip=0.5)), seed=0)
        pieces = (list(range(start, start + BATCH)) for start in range(0, 2**30, BATCH))
        self.target: torch.Tensor | None = None
        if torch.cuda.is_available():
            config = TrainingConfig(workers=processes, worker_kind="processes")
            self.found: Iterator[dict[str, Any]] = self.stack.enter_context(
                contextlib.closing(prefetched(batches, pieces, config, torch.device("cuda")))
            )
        else:
            pool = self.stack.enter_context(WorkerPool(batches.dataset, processes, BATCH * batches.most_bytes))
            self.found = batches.from_workers(pool, pieces)
            self.target = torch.empty((BATCH, size, size, 3), dtype=torch.uint8)
        self.turn("batches")  # what is done once

    def take(self) -> None:
        made = next(self.found)
        if self.target is not None:
            self.target.copy_(made["pixels"])

    def turn(self, _: str) -> Speed:
        """From sleep to sleep; the rate without the batches that were made before."""
        used = time.process_time() + of_children()
        for _ in range(SLOTS):
            self.take()
        began = time.monotonic()
        for _ in range(self.count):
            self.take()
        rate = self.count * BATCH / (time.monotonic() - began)
        used -= time.process_time()  # without what the looks at the processes take
        quiet = 0
        while quiet < QUIET:
            time.sleep(PAUSE)
            quiet = quiet + 1 if all(state == "S" for _, state, _ in children()) else 0
        return Speed(rate, (of_children() - used) / ((self.count + SLOTS) * BATCH))


def children() -> list[tuple[int, str, float]]:
    """(process, state, processor seconds) of each process that this one started."""
    found, tick = [], os.sysconf("SC_CLK_TCK")
    for task in Path("/proc/self/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            words = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            used = sum(map(int, words[11:13])) / tick
            with contextlib.suppress(OSError):  # in nanoseconds, where the kernel counts them
                used = int(Path(f"/proc/{child}/schedstat").read_text().split()[0]) / 1e9
            found.append((child, words[0], used))
    return found


def of_children() -> float:
    """The processor seconds of all of them."""
    return sum(used for _, _, used in children())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, default=OUT, help="folder for the results")
    parser.add_argument("--images", type=int, default=24, help="different images")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)), help="up to so many")
    parser.add_argument("--turns", type=int, default=10)
    given = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {"machine": machine(), "turns": given.turns, "batch": BATCH, "quality": QUALITY}
    for side, size in CASES:
        images = photographs(given.images, side)
        case: dict[str, Any] = {"mean_bytes": sum(map(len, images)) // len(images)}
        found[f"{side} px to {size} px"] = case
        with tempfile.TemporaryDirectory() as folder:
            samples = [(f"{number:06d}", {"jpg": data, "txt": b"a photograph"}) for number, data in enumerate(images)]
            write_shard(Path(folder, "images.tar"), samples)
            for processes in range(1, given.processes + 1):
                case[f"processes: {processes}"] = measured(images, Path(folder), size, processes, given.turns)
        print("\n".join(lines_of(f"{side} px to {size} px", case)), flush=True)
    found["load at the end"] = [round(load, 1) for load in os.getloadavg()]
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "results.json").write_text(json.dumps(found, indent=2) + "\n")
    (given.out / "results.txt").write_text(text_of(found))


def measured(images: list[bytes], folder: Path, size: int, processes: int, turns: int) -> dict[str, Any]:
    """The medians of some turns of each, with so many processes."""
    count = 2 * len(images)
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(contextlib.closing(Pillow(images, size, processes, count)))
        tuned = stack.enter_context(contextlib.closing(Pillow(images, size, processes, count, **ENVIRONMENT)))
        loader = Loader(folder, size, processes, 3)
        stack.enter_context(loader.stack)
        of = {"decode": plain, "image": plain, "tuned": tuned, "batches": loader}
        return summary([{what: of[what].turn(what) for what in ORDER} for _ in range(turns)])


def machine() -> dict[str, Any]:
    turbo = features.check_feature("libjpeg_turbo")
    return {
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load before": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
        "pillow": PIL.__version__,
        "jpeg": f"libjpeg-turbo {features.version_feature('libjpeg_turbo')}" if turbo else features.version("jpg"),
    }


def summary(turns: list[dict[str, Speed]]) -> dict[str, Any]:
    """Medians of the turns, and of the ratios within each with their quartiles."""
    found: dict[str, Any] = {
        name: {
            "images_per_second": round(statistics.median(turn[name].rate for turn in turns), 1),
            "cpu_ms": round(1e3 * statistics.median(turn[name].cpu for turn in turns), 3),
        }
        for name in turns[0]
    }
    for alone in ("decode", "tuned", "image"):
        cpu = [turn[alone].cpu / turn["batches"].cpu for turn in turns]
        found[f"batches of {alone}"] = {
            "by_cpu_time": round(statistics.median(cpu), 3),
            "quartiles": [round(value, 3) for value in np.quantile(cpu, (0.25, 0.75)).tolist()],
            "by_rate": round(statistics.median(turn["batches"].rate / turn[alone].rate for turn in turns), 3),
        }
    return found


def text_of(found: dict[str, Any]) -> str:
    about = [f"{name}: {value}" for name, value in found["machine"].items()]
    about += [f"load at the end: {found['load at the end']}", f"turns: {found['turns']}, batches of {found['batch']}"]
    cases = [lines_of(name, case) for name, case in found.items() if " px to " in name]
    return "\n".join([*about, *(line for case in cases for line in ["", *case])]) + "\n"


def lines_of(name: str, case: dict[str, Any]) -> list[str]:
    lines = [f"{name}, JPEGs of {case['mean_bytes']:,} bytes (quality {QUALITY})"]
    lines.append("                  ms of processor an image           images a second")
    lines.append("  processes  decode   tuned   image batches   decode   tuned   image batches")
    rows = {key.removeprefix("processes: "): row for key, row in case.items() if key.startswith("processes")}
    columns = ("decode", "tuned", "image", "batches")
    for key, row in rows.items():
        times = "".join(f"{row[what]['cpu_ms']:8.2f}" for what in columns)
        rates = "".join(f"{row[what]['images_per_second']:8.1f}" for what in columns)
        lines.append(f"  {key:>9}{times} {rates}")
    for what in columns[:3]:
        for key, row in rows.items():
            share = row[f"batches of {what}"]
            low, high = share["quartiles"]
            lines.append(
                f"  {what} : batches, processes {key}: {share['by_cpu_time']:.3f} by processor time "
                f"({low:.3f} to {high:.3f}), {share['by_rate']:.3f} by rate"
            )
    return lines


if __name__ == "__main__":
    main()
