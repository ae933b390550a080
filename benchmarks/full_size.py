"""One forward and backward of each paper-size recipe: at full size where memory allows, else at full depth and narrow.

    python benchmarks/full_size.py                          every recipe of pixel diffusion
    python benchmarks/full_size.py imagen-sr-256 --crop 64  that one, on 64-px images

Each runs in a process of its own, so that its peak memory is its own. What does not fit in the memory runs with all its
levels and blocks, at an eighth of the width.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diptych.diffusion.denoiser import Denoiser
from diptych.models.pixel_config import PixelDiffusionConfig
from diptych.networks.adm_config import AdmUNetConfig
from diptych.networks.efficient_unet import EfficientUNetConfig
from diptych.networks.unet import UNetConfig
from diptych.recipes import get
from diptych.recipes.papers.imagen import RECIPES
from diptych.training.experiment_config import PixelTraining

DIVIDE = 8
"""Width of what does not fit, as a divisor."""
Network = UNetConfig | EfficientUNetConfig | AdmUNetConfig
TOKENS = 16
"""Of the prompt: enough to be attended to."""
ACTIVATIONS = 2.0
"""GiB to leave for them beside weights and gradients, at 64-px images and batch 1."""


def stage(name: str) -> PixelDiffusionConfig:
    """The stage that a recipe trains."""
    system = get(name).system
    assert isinstance(system, PixelTraining), f"{name} is no recipe of pixel diffusion"
    return system.model


def narrowed(network: Network, divide: int) -> Network:
    """All levels and blocks, every width divided."""
    widths = {
        field: getattr(network, field) // divide
        for field in ("channels", "head_width", "context_width", "context_projection", "pooled_width")
        if getattr(network, field, None) is not None
    }
    return dataclasses.replace(network, **widths)


@functools.lru_cache
def count(network: Network) -> int:
    """Exact number of parameters."""
    with torch.device("meta"):
        return sum(p.numel() for p in network.build().parameters())


def condition(network: Network, batch: int, size: int) -> dict[str, Tensor]:
    """Random numbers for everything that a network may be told."""
    cond: dict[str, Tensor] = {}
    if network.context_width is not None:
        cond["context"] = torch.randn(batch, TOKENS, network.context_width)
        cond["context_mask"] = torch.ones(batch, TOKENS, dtype=torch.bool)
    if network.pooled_width is not None:
        cond["pooled"] = torch.randn(batch, network.pooled_width)
    if network.concat_channels:
        cond["concat"] = torch.randn(batch, network.concat_channels, size, size)
    if network.augmented:
        cond["level"] = torch.rand(batch)
    return cond


def run_once(
    config: PixelDiffusionConfig,
    network: Network,
    size: int,
    batch: int = 1,
    device: str = "cpu",
    dtype: str = "float32",
) -> dict[str, Any]:
    """The stage's loss of one random batch, with that network, and its gradient: seconds, bytes, what was missed."""
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    with torch.device(device):
        model = network.build().to(kind)
    with torch.no_grad():
        for p in model.parameters():  # what starts at zero would stop the gradient
            if not p.any():
                p.normal_(std=0.02)
    denoiser = Denoiser(model, config.schedule.build(), config.prediction, config.learned_variance)
    cond = {
        key: value.to(device, kind if value.is_floating_point() else value.dtype)
        for key, value in condition(network, batch, size).items()
    }
    x0, noise = (torch.randn(batch, 3, size, size, device=device, dtype=kind) for _ in range(2))

    def clock() -> float:
        if device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    began = clock()
    loss = denoiser.loss(x0, noise, 0.5, cond).mean()
    forward = clock()
    loss.backward()
    backward = clock()
    on_cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {
        "loss": loss.item(),
        "forward_seconds": forward - began,
        "backward_seconds": backward - forward,
        "peak_bytes": on_cpu if device == "cpu" else torch.cuda.max_memory_allocated(),
        "missed": [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()],
    }


def one(name: str, crop: int, memory: float, device: str, dtype: str) -> dict[str, Any]:
    """A recipe's pass, at full size if weights, gradients and activations fit in so many GiB."""
    config = stage(name)
    network, size = config.network, min(crop, config.size)
    full = count(network)
    need = 2 * full * getattr(torch, dtype).itemsize / 2**30 + ACTIVATIONS * (size / 64) ** 2
    fits = need <= memory
    network = network if fits else narrowed(network, DIVIDE)
    told = {
        "recipe": name,
        "parameters": full,
        "ran": "full size" if fits else f"full depth, width / {DIVIDE}",
        "ran_parameters": count(network),
        "pixels": size,
        "device": torch.cuda.get_device_name() if device != "cpu" else "cpu",
        "dtype": dtype,
    }
    return told | run_once(config, network, size, device=device, dtype=dtype)


def table(rows: list[dict[str, Any]]) -> str:
    """The results in Markdown."""
    lines = ["| recipe | parameters | ran | pixels | forward | backward | peak memory |", "|-|-:|-|-:|-:|-:|-:|"]
    for row in rows:
        times = (
            f"{row['forward_seconds']:.2f} s | {row['backward_seconds']:.2f} s | {row['peak_bytes'] / 2**30:.1f} GiB"
        )
        lines.append(f"| {row['recipe']} | {row['parameters']:,} | {row['ran']} | {row['pixels']} | {times} |")
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("recipes", nargs="*", help=f"of {', '.join(RECIPES)}; all if none are named")
    parser.add_argument("--crop", type=int, default=64, help="side of the images, at most the recipe's own (64)")
    parser.add_argument("--memory", type=float, metavar="GIB", help="what may be used; none for what is free")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the results there as JSON")
    parser.add_argument("--here", action="store_true", help="in this process, printing JSON")
    options = parser.parse_args(argv)
    memory = free_memory(options.device) if options.memory is None else options.memory
    names = options.recipes or list(RECIPES)
    if options.here:
        for name in names:
            print(json.dumps(one(name, options.crop, memory, options.device, options.dtype)))
        return 0
    rows = []
    for name in names:
        settings = ["--crop", options.crop, "--memory", memory, "--device", options.device, "--dtype", options.dtype]
        command = [sys.executable, __file__, name, "--here", *map(str, settings)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(table(rows[-1:]).splitlines()[-1], flush=True)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(rows, indent=2) + "\n")
    print(table(rows), end="")
    return 0 if not any(row["missed"] for row in rows) else 1


def free_memory(device: str) -> float:
    """GiB that can be used now."""
    if device != "cpu":
        return torch.cuda.mem_get_info()[0] / 2**30
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 2**20
    except (OSError, StopIteration):
        return 8.0  # not Linux: what most machines have free


if __name__ == "__main__":
    sys.exit(main())
