"""How long a checkpoint holds up training: a network of 100 million parameters, whose steps are timed on the CPU.

    OMP_NUM_THREADS=1 python -m benchmarks.checkpoint_time [--layers 24] [--out benchmarks/results/checkpoint-time]

A step without a checkpoint, the one that saves, and those while it is written, in seconds by the clock: run it where
nothing else runs, with a core for the thread that writes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diptych.training.trainer import train
from diptych.training.training_config import TrainingConfig
from diptych.weights.save import save_weights

WIDTH, BATCH = 2048, 4


class Deep:
    """A network of equal layers, and the moment when each step begins, with the threads there are."""

    def __init__(self, layers: int) -> None:
        torch.manual_seed(0)
        self.module = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers)))
        self.began: list[tuple[float, bool]] = []

    def start(self, batch: dict[str, Any]) -> None:
        """Nothing depends on data."""

    def loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        writing = any(thread.name.startswith("checkpoint") for thread in threading.enumerate())
        self.began.append((time.perf_counter(), writing))
        return (self.module(batch["x"]) - batch["x"]).square().mean(1), {}

    def save(self, folder: Path) -> None:
        save_weights({"none": torch.zeros(1)}, folder)


def batch_at(positions: list[int]) -> dict[str, Any]:
    return {"x": torch.randn(len(positions), WIDTH, generator=torch.Generator().manual_seed(positions[0]))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=24, help="of 4.2 million parameters each")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--every", type=int, default=20, help="steps between two checkpoints")
    parser.add_argument("--out", type=Path, help="folder for results.json")
    arguments = parser.parse_args()
    config = TrainingConfig(
        steps=arguments.steps, batch_size=BATCH, checkpoint_every=arguments.every, threads=1, device="cpu",
        precision="fp32", validate_every=0, sample_every=0, log_every=1000, learning_rate=1e-5, workers=0,
    )  # fmt: skip
    deep = Deep(arguments.layers)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        train(deep, batch_at, config, folder)  # type: ignore[arg-type]
        whole = time.perf_counter() - began
    plain, saving, writing = list[float](), list[float](), list[float]()
    for number, ((start, _), (end, busy)) in enumerate(itertools.pairwise(deep.began), start=1):
        kind = saving if number % arguments.every == 0 else writing if busy else plain
        if number > 2:  # the first make the optimizer's state
            kind.append(end - start)
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in deep.module.parameters()), "run": round(whole, 2)}
    for name, seconds in (("plain", plain), ("saving", saving), ("while it is written", writing)):
        found[name] = {"steps": len(seconds), "median": round(statistics.median(seconds), 3)} if seconds else None
    print(json.dumps(found, indent=2))
    if arguments.out:
        arguments.out.mkdir(parents=True, exist_ok=True)
        (arguments.out / "results.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
