"""How fast InceptionV3's features are computed, beside torch-fidelity on the same weights and images, in one process.

    python -m benchmarks.inception_speed [--threads 1,2] [--batches 8,32] [--turns 5] [--out FOLDER]

Weights are random, as the tests draw them, and images are noise of 256 x 256 pixels; each side starts from 8-bit images
and ends with 2,048 features, so that bringing images to 299 x 299 counts. Outputs are compared before anything is
timed. The sides take turns, who begins changes; a ratio is of the processor seconds of one turn, which other work on
the machine disturbs little, and the result is the median of the ratios. Images a second by processor time and by the
clock are the best of all turns. torch-fidelity must be installed (`make` does). Writes results.json and results.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.common import processor
from diptych.metrics.feature_networks import InceptionFeatures
from tests.metrics.torchfidelity import inception_file, torch_fidelity

SIDE = 256
TOLERANCE = 1e-4
"""Of the largest feature: how far outputs may lie apart."""


def sides(batch: int) -> dict[str, Callable[[], Tensor]]:
    """What each side does with the same images."""
    with tempfile.TemporaryDirectory() as place:
        weights = inception_file(Path(place) / "weights.pth")
        ours = InceptionFeatures(weights, allow_pickle=True)
        with torch_fidelity():
            module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
            theirs = module.FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(weights)
            ).eval()
    values = np.random.default_rng(0).integers(0, 256, (batch, SIDE, SIDE, 3), np.uint8)
    images = [Image.fromarray(value) for value in values]
    tensor = torch.from_numpy(values).permute(0, 3, 1, 2).contiguous()

    def reference() -> Tensor:
        with torch.inference_mode():
            return theirs(tensor)[0]

    return {
        "diptych": lambda: ours(torch.stack([ours.prepare(image) for image in images])),
        "torch-fidelity": reference,
    }


def measured(threads: int, batch: int, turns: int) -> dict[str, Any]:
    torch.set_num_threads(threads)
    work = sides(batch)
    outputs = {name: run() for name, run in work.items()}  # also warms up
    apart = float((outputs["diptych"] - outputs["torch-fidelity"]).abs().max() / outputs["torch-fidelity"].abs().max())
    if apart > TOLERANCE:
        raise SystemExit(f"outputs differ by {apart:.2g} of the largest feature: there is nothing to compare")
    cpu: dict[str, list[float]] = {name: [] for name in work}
    wall: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(turns):
        for name in list(work) if turn % 2 else list(work)[::-1]:
            begun, began = time.process_time(), time.perf_counter()
            work[name]()
            cpu[name].append(time.process_time() - begun)
            wall[name].append(time.perf_counter() - began)
    ratios = [theirs / ours for ours, theirs in zip(cpu["diptych"], cpu["torch-fidelity"], strict=True)]
    return {
        "threads": threads,
        "batch": batch,
        "outputs_apart": apart,
        "ratio_cpu": statistics.median(ratios),
        "ratios_cpu": ratios,
        "ratio_wall": statistics.median(
            theirs / ours for ours, theirs in zip(wall["diptych"], wall["torch-fidelity"], strict=True)
        ),
        "images_per_cpu_second": {name: batch / min(seconds) for name, seconds in cpu.items()},
        "images_per_second": {name: batch / min(seconds) for name, seconds in wall.items()},
    }


def table(rows: list[dict[str, Any]], machine: str) -> str:
    lines = [
        machine,
        "",
        "| threads | batch | outputs apart | images per CPU-second, diptych | torch-fidelity | ratio |",
    ]
    lines[-1] += " ratio by the clock |"
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows:
        ours, theirs = (row["images_per_cpu_second"][name] for name in ("diptych", "torch-fidelity"))
        lines.append(
            f"| {row['threads']} | {row['batch']} | {row['outputs_apart']:.1e} | {ours:.2f} | {theirs:.2f} | "
            f"{row['ratio_cpu']:.2f} | {row['ratio_wall']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--threads", default="1,2", help="of PyTorch, one after the other")
    parser.add_argument("--batches", default="8,32", help="images at a time")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/inception-speed"))
    given = parser.parse_args()
    machine = f"{processor()}, {os.cpu_count()} cores, PyTorch {torch.__version__}"
    rows = []
    for threads in map(int, given.threads.split(",")):
        for batch in map(int, given.batches.split(",")):
            rows.append(measured(threads, batch, given.turns))
            print(table(rows[-1:], machine), flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "results.json").write_text(json.dumps({"machine": machine, "results": rows}, indent=1) + "\n")
    (given.out / "results.md").write_text(table(rows, machine))


if __name__ == "__main__":
    main()
