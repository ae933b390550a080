"""Memory and time of measuring 30,000 images: features and statistics, beside what the network takes.

    OMP_NUM_THREADS=1 python -m benchmarks.measure_memory [--count 30000] [--out FOLDER]

Two .npz files of so many images of 32 x 32 pixels are drawn; a stub of InceptionV3's width (2,048 features, 1,008
logits) stands for the network, so that what is left is reading, features on disk, FID, KID, Inception Score and
precision and recall. Peak memory is the process's resident memory at its highest during each part (Linux's VmHWM, reset
between parts), less what was resident before the first: pages of files count. Writes results.json.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.common import processor
from diptych.metrics.feature_files import extract
from diptych.metrics.feature_networks import FeatureNetwork, InceptionFeatures
from diptych.metrics.frechet import Gaussian, frechet_distance
from diptych.metrics.image_set import ImageSet
from diptych.metrics.inception_score import inception_score
from diptych.metrics.kernels import kernel_inception_distance
from diptych.metrics.neighbours import manifolds
from diptych.networks.inception import CLASSES, FEATURES

SIDE = 32
LIMIT = 500
"""MB that no part may take."""


class Stub(InceptionFeatures):
    """InceptionV3's outputs without its work: 192 means of colours, mixed at random."""

    def __init__(self) -> None:
        network: Any = nn.Module()
        network.mix, network.fc = nn.Linear(192, FEATURES), nn.Linear(FEATURES, CLASSES)
        network.logits = lambda features: features @ network.fc.weight.T
        self.inception = network
        FeatureNetwork.__init__(self, network, "stub", SIDE, FEATURES)

    def _features(self, images: Tensor) -> Tensor:
        means = nn.functional.adaptive_avg_pool2d(images / 255, 8).flatten(1)
        return self.inception.mix(means).relu()


def draw(path: Path, count: int, seed: int) -> Path:
    """An .npz of images, blotches of colour."""
    draws = np.random.default_rng(seed)
    small = draws.integers(0, 256 - 20 * seed, (count, 8, 8, 3), np.uint8)
    np.savez(path, small.repeat(SIDE // 8, 1).repeat(SIDE // 8, 2))
    return path


def resident(peak: bool = False) -> float:
    """MB of this process, now or at its highest since the last reset."""
    found = re.search(r"VmHWM:\s+(\d+)" if peak else r"VmRSS:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) / 1024


class Parts:
    """What each part took."""

    def __init__(self) -> None:
        self.before, self.found = resident(), {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        begun, began = time.process_time(), time.perf_counter()
        yield
        self.found[name] = {
            "peak_mb": round(resident(peak=True) - self.before, 1),
            "cpu_seconds": round(time.process_time() - begun, 1),
            "seconds": round(time.perf_counter() - began, 1),
        }
        print(name, self.found[name], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=30_000, help="images on each side")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/measure-memory"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if os.fork() == 0:  # so that drawing leaves nothing in this process
            for seed, name in enumerate(("real", "made")):
                draw(folder / f"{name}.npz", given.count, seed)
            os._exit(0)
        os.wait()
        torch.manual_seed(0)
        network, parts = Stub(), Parts()
        with parts.part("features"):
            made, real = (extract(ImageSet(folder / f"{n}.npz"), network, 64, folder).values for n in ("made", "real"))
        with parts.part("fid"):
            frechet_distance(Gaussian.of(made), Gaussian.of(real))
        with parts.part("kid"):
            kernel_inception_distance(made, real)
        with parts.part("inception score"):
            inception_score(network.logits(made))
        with parts.part("precision and recall, density and coverage"):
            manifolds(made, real)
    highest = max(part["peak_mb"] for part in parts.found.values())
    about = {"machine": f"{processor()}, {os.cpu_count()} cores, PyTorch {torch.__version__}", "images": given.count}
    about |= {"threads": torch.get_num_threads(), "width": FEATURES, "before_mb": round(parts.before, 1)}
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "results.json").write_text(json.dumps(about | {"highest_mb": highest, "parts": parts.found}, indent=1))
    if highest > LIMIT:
        raise SystemExit(f"{highest} MB, and {LIMIT} were to be enough")


if __name__ == "__main__":
    main()
