"""What sampling takes of a GPU's memory, counted, and beside it what the networks allocate here.

    OMP_NUM_THREADS=1 python -m benchmarks.sampling_memory [--out FOLDER] [--no-measure]

Counts models of papers as `diptych info MODEL --memory` does and writes counted.md, the table of docs/memory.md. Then
the U-Net and the decoder of Stable Diffusion 1.x run with random weights, and the most bytes that PyTorch's allocator
gave out at a time (its profiler follows them) are written beside what was counted for the same device: measured.md. On
a GPU, `benchmarks.gpu_sampling` measures the ways themselves. Last, images of the default model are compared with those
of its weights in 8 bits: rounding.md.
"""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import processor
from benchmarks.plan_memory import MARK, allocations
from diptych.cli.memory_report import configs_and_networks, memory_of
from diptych.engines import sampling_memory
from diptych.engines.accounting import Meter, OnMeta
from diptych.engines.placement import place
from diptych.engines.sampling_memory import SIZES, NetworkPass, Sampling, Way, model_passes
from diptych.pretrained.load import open_model

COUNTED: tuple[tuple[str, int], ...] = (("sd1", 1), ("sd1", 4), ("if-1-xl", 1), ("if-2-l", 1), ("if-3-l", 1))
"""Recipes, and images at a time."""
HEAD = (
    "| recipe, images at a time | all on the GPU | offload parts | offload layers | parts, 8-bit weights |",
    "|-|-|-|-|-|",
)
PROMPTS = ("a red apple", "a cat face", "a rocket", "a blue heart", "a tree", "a crown", "a snowman", "a red car")
MEASURED = (("sd1", "U-Net", 256), ("sd1", "decoder", 256), ("sd1", "U-Net", 512), ("sd1", "decoder", 512))
"""Recipe, part, side in pixels."""


def cell(way: Way) -> str:
    """GiB of the peak, and the smallest GPU that has room."""
    size = next((size for size in SIZES if way.fits(size)), None)
    return f"{way.needed / 2**30:.1f} GiB: " + ("more than 24 GB" if size is None else f"{size} GB")


def counted() -> list[str]:
    rows: list[str] = [*HEAD]
    for name, batch in COUNTED:
        found = memory_of(name, Sampling(batch=batch, dtype=torch.float16))["ways"]
        ways = [*found["stored"], found["int8"][1]]
        rows.append(f"| `{name}`, {batch} | {' | '.join(map(cell, ways))} |")
        print(rows[-1], flush=True)
    return rows


def on_cpu(one: NetworkPass) -> int:
    """What a pass makes on a CPU, counted."""
    meter = Meter([*one.network.parameters(), *one.network.buffers()])
    with torch.no_grad(), OnMeta("cpu", meter), meter:
        kept = one.call(one.network)
    del kept
    return meter.peak_bytes


def most_allocated(call: Callable[[], Any]) -> int:
    """The most bytes that are given out at a time during a call."""
    with torch.no_grad(), allocations() as follow:
        follow(f"{MARK} 1")
        torch.empty(1)
        kept = call()
        follow(f"{MARK} 2")
        del kept
    return follow.peak


@contextlib.contextmanager
def on_device(place: str) -> Iterator[None]:
    """Within, passes get their inputs on a device and not without memory."""
    before = sampling_memory.meta
    sampling_memory.meta = lambda *shape, dtype=torch.float32: torch.zeros(shape, dtype=dtype, device=place)
    try:
        yield
    finally:
        sampling_memory.meta = before


def compared(name: str, part: str, side: int) -> str:
    """A part's activations as counted and as allocated."""
    ((config, networks),) = configs_and_networks(name)
    passes = model_passes(config, networks, Sampling(size=(side, side)))
    one = next(one for one in passes if one.name == part)
    count, real = on_cpu(one), one.network.to_empty(device="cpu")
    for tensor in (*real.parameters(), *real.buffers()):
        tensor.data.normal_(std=0.01) if tensor.is_floating_point() else tensor.data.zero_()
    with on_device("cpu"):
        found = most_allocated(lambda: one.call(real)) - most_allocated(lambda: None)
    return f"| `{name}`, {part}, {side} | {count / 2**20:.0f} | {found / 2**20:.0f} | {count / found:.3f} |"


def measured() -> list[str]:
    rows = ["| recipe, part, pixels | counted MiB | allocated MiB | counted / allocated |", "|-|-|-|-|"]
    for case in MEASURED:
        rows.append(compared(*case))
        print(rows[-1], flush=True)
    return rows


def rounding() -> list[str]:
    """How far images of the default move by weights in 8 bits: the same prompts and seeds."""
    rows = ["| model | weights | mean difference of 255 | PSNR, dB |", "|-|-|-|-|"]
    images = dict[str, np.ndarray]()
    for weights in ("stored", "int8", "float8"):
        model = place(open_model("latent"), torch.device("cpu"), weights=weights)
        made = model.generate(list(PROMPTS), seeds=list(range(len(PROMPTS)))).images
        images[weights] = np.stack([np.asarray(image) for image in made]).astype(float)
    for weights in ("int8", "float8"):
        apart = images[weights] - images["stored"]
        psnr = 10 * np.log10(255**2 / np.square(apart).mean())
        rows.append(f"| `latent` | {weights} | {np.abs(apart).mean():.2f} | {psnr:.1f} |")
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/sampling-memory"))
    parser.add_argument("--no-measure", action="store_true", help="count alone")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "counted.md").write_text("\n".join(["In float16, T5 in bfloat16.", "", *counted(), ""]))
    if not given.no_measure:
        machine = f"{processor()}, {os.cpu_count()} cores, PyTorch {torch.__version__}"
        text = f"Measured on {machine}, one image, guided, in float32."
        (given.out / "rounding.md").write_text(
            "\n".join([f"{len(PROMPTS)} images, default settings.", "", *rounding(), ""])
        )
        (given.out / "measured.md").write_text("\n".join([text, "", *measured(), ""]))


if __name__ == "__main__":
    main()
