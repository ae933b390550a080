"""How many pictures a second are loaded to training batches, and how many Pillow alone decodes on all cores.

    python benchmarks/data_loading.py --out benchmarks/results/data-loading

A shard of JPEGs is made: noise with the spectrum of photographs, 512 px on the shorter side. Pillow alone decodes them
(`open`, `draft`, `load`) in as many processes as there are cores, each with the bytes in memory: nothing is read,
resized, cropped or handed on. diptych's loader makes batches in as many worker processes as there are cores: on a GPU
where there is one (`prefetched`); else bytes, copied once as for a GPU. At 256 px both let libjpeg decode at a half.
The two take turns.

Two ratios: of the rates (medians), which counts on a machine that does nothing else, and of the CPU time for a picture,
in all processes together, which other work disturbs less.
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
from diptych.data.stream import ImageBatches
from diptych.data.worker_pool import WorkerPool
from diptych.training.prefetch import prefetched
from diptych.training.training_config import TrainingConfig

SIDE, QUALITY = 512, 90
SIZES = (256, 512)
ALONE = """
import io, pickle, sys, time
from PIL import Image
images, size, least = pickle.load(sys.stdin.buffer)
print("ready", flush=True)
sys.stdin.buffer.read(1)
count, began, used = 0, time.monotonic(), time.process_time()
while time.monotonic() - began < least:
    for data in images:
        image = Image.open(io.BytesIO(data))
        image.draft("RGB", (size, size))
        image.load()
    count += len(images)
print(count / (time.monotonic() - began), (time.process_time() - used) / count, flush=True)
"""


def photographs(count: int) -> list[bytes]:
    """JPEGs with the spectrum of natural images, the same each time: of three shapes, 512 px on the shorter side."""
    found = []
    for number in range(count):
        rng = np.random.default_rng(number)
        width, height = [(SIDE, SIDE), (SIDE * 4 // 3, SIDE), (SIDE, SIDE * 4 // 3)][number % 3]
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
    """Seconds of all processes for a picture."""


def pillow_alone(images: list[bytes], size: int, processes: int, seconds: float) -> Speed:
    """Pillow in so many processes, which begin at the same time."""
    payload = pickle.dumps((images, size, seconds))
    started = [
        subprocess.Popen([sys.executable, "-c", ALONE], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(processes)
    ]
    for process in started:
        assert process.stdin and process.stdout
        process.stdin.write(payload)
        process.stdin.flush()
        process.stdout.readline()
    for process in started:
        assert process.stdin
        process.stdin.write(b".")
        process.stdin.flush()
    found = [[float(word) for word in process.communicate()[0].split()] for process in started]
    return Speed(sum(rate for rate, _ in found), statistics.mean(cpu for _, cpu in found))


def loaded(folder: Path, size: int, processes: int, seconds: float, batch: int) -> Speed:
    """Batches of the loader, without the time that the workers take to start."""
    batches = ImageBatches(open_dataset(DataConfig(path=str(folder), size=size, flip=0.5)), seed=0)
    pieces = (list(range(start, start + batch)) for start in range(0, 2**30, batch))
    with contextlib.ExitStack() as stack:
        if torch.cuda.is_available():
            config = TrainingConfig(workers=processes, worker_kind="processes")
            found = stack.enter_context(contextlib.closing(prefetched(batches, pieces, config, torch.device("cuda"))))
        else:
            pool = stack.enter_context(WorkerPool(batches.dataset, processes, batch * batches.most_bytes))
            found = ({**made, "pixels": made["pixels"].clone()} for made in batches.from_workers(pool, pieces))
        for _ in range(3):
            next(found)
        count, began, used = 0, time.monotonic(), cpu_seconds()
        while time.monotonic() - began < seconds:
            made = next(found)
            assert len(made["key"]) == batch
            count += batch
        return Speed(count / (time.monotonic() - began), (cpu_seconds() - used) / count)


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
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--turns", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    images, found = photographs(given.images), dict[str, Any]()
    found["machine"] = {
        "cores": given.processes,
        "cpu": processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": [round(load, 1) for load in os.getloadavg()],
        "pillow": PIL.__version__,
    }
    found["images"] = {"count": len(images), "mean_bytes": sum(map(len, images)) // len(images), "shorter_side": SIDE}
    with tempfile.TemporaryDirectory() as folder:
        samples = [(f"{number:06d}", {"jpg": data, "txt": b"a photograph"}) for number, data in enumerate(images)]
        write_shard(Path(folder, "images.tar"), samples)
        for size in SIZES:
            turns = []
            for _ in range(given.turns):
                alone = pillow_alone(images, size, given.processes, given.seconds)
                turns.append((alone, loaded(Path(folder), size, given.processes, given.seconds, given.batch)))
            rates = [statistics.median(turn[which].rate for turn in turns) for which in (0, 1)]
            cpu = [statistics.median(turn[which].cpu for turn in turns) for which in (0, 1)]
            found[f"{size} px"] = {
                "pillow": {"rates": [round(alone.rate, 1) for alone, _ in turns], "cpu_ms": round(1e3 * cpu[0], 2)},
                "diptych": {"rates": [round(ours.rate, 1) for _, ours in turns], "cpu_ms": round(1e3 * cpu[1], 2)},
                "ratio_of_rates": round(rates[1] / rates[0], 3),
                "ratio_of_cpu_time": round(cpu[0] / cpu[1], 3),
            }
            print(
                f"{size} px: Pillow alone {rates[0]:,.0f} pictures/s ({1e3 * cpu[0]:.2f} ms of CPU each), diptych's "
                f"batches {rates[1]:,.0f} ({1e3 * cpu[1]:.2f} ms): {rates[1] / rates[0]:.2f} of the rate, "
                f"{cpu[0] / cpu[1]:.2f} by CPU time (aim 0.8)",
                flush=True,
            )
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "results.json").write_text(json.dumps(found, indent=2) + "\n")


def processor() -> str:
    """The name of the CPU."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return "unknown"


if __name__ == "__main__":
    main()
