"""The memory that loading a model of Stable Diffusion 1.x's size takes: 4 GB of random weights in one file.

    python benchmarks/load_full_size.py              full size: writes 4 GB to a temporary folder, and deletes them
    python benchmarks/load_full_size.py --scale 2    half of each width: about 1 GB

The file is written tensor by tensor and read in a process of its own, whose peak resident memory is measured from the
moment when everything is imported. What is kept goes to benchmarks/results/load-full-size/results.json.
"""

from __future__ import annotations

import argparse
import json
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from diptych.networks.autoencoder import Autoencoder, AutoencoderConfig
from diptych.networks.unet import UNet, UNetConfig
from diptych.weights.checkpoint import Checkpoint, fill

RESULTS = Path(__file__).parent / "results" / "load-full-size" / "results.json"
LIMIT = 1.2
"""Of the file's size."""


def networks(scale: int) -> dict[str, nn.Module]:
    """Stable Diffusion 1.x on the meta device, every width divided by `scale`."""
    with torch.device("meta"):
        return {
            "unet": UNet(
                UNetConfig(
                    channels=320 // scale,
                    multipliers=(1, 2, 4, 4),
                    blocks=2,
                    attention_levels=(0, 1, 2),
                    heads=8,
                    context_width=768 // scale,
                )
            ),
            "autoencoder": Autoencoder(AutoencoderConfig(channels=128 // scale, multipliers=(1, 2, 4, 4), blocks=2)),
            "text": CLIPTextModel(
                CLIPTextConfig(
                    hidden_size=768 // scale,
                    intermediate_size=3072 // scale,
                    num_hidden_layers=12,
                    num_attention_heads=12,
                )
            ),
        }


def write(path: Path, parts: dict[str, nn.Module]) -> int:
    """Random weights for these networks in one safetensors file, one tensor in memory at a time; its bytes."""
    shapes = {f"{part}.{name}": t.shape for part, network in parts.items() for name, t in network.state_dict().items()}
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * shape.numel()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            file.write(memoryview((0.02 * torch.randn(shape)).numpy()).cast("B"))  # pyright: ignore[reportArgumentType]
    return path.stat().st_size


def resident(line: str) -> int:
    """Of this process, in bytes, pages of mapped files among it: "VmRSS" now, "VmHWM" the most at once.

    Not getrusage's peak, which a process inherits from the one that started it.
    """
    status = Path("/proc/self/status").read_text()
    return next(int(row.split()[1]) * 1024 for row in status.splitlines() if row.startswith(f"{line}:"))


def load(path: Path, scale: int) -> dict[str, Any]:
    """Read the file into the networks; what it took."""
    parts = networks(scale)
    before, began = resident("VmRSS"), time.monotonic()
    whole = Checkpoint.open(path)
    for part, network in parts.items():
        fill(network, whole.under(f"{part}."), str(path))
    seconds, peak = time.monotonic() - began, resident("VmHWM") - before
    tensors: list[Tensor] = [t for network in parts.values() for t in network.state_dict().values()]
    assert not any(tensor.is_meta for tensor in tensors)
    size = path.stat().st_size
    return {"file_bytes": size, "peak_bytes": peak, "ratio": round(peak / size, 4), "seconds": round(seconds, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scale", type=int, default=1, help="divide every width by this")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        print(json.dumps(load(arguments.read, arguments.scale)))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        print(f"writing {write(path, networks(arguments.scale)):,} bytes")
        command = [sys.executable, __file__, "--scale", str(arguments.scale), "--read", str(path)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    found = {"scale": arguments.scale, **found, "limit": LIMIT}
    print(json.dumps(found, indent=2))
    if arguments.scale == 1:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    if found["ratio"] > LIMIT:
        sys.exit(f"the peak is {found['ratio']} times the file, and {LIMIT} is the limit")


if __name__ == "__main__":
    main()
