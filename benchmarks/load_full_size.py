"""The memory that opening a Stable Diffusion 1.x file takes: 4 GB of random weights by CompVis's names, in float32.

    python benchmarks/load_full_size.py              full size: writes 4 GB to a temporary folder, and deletes them
    python benchmarks/load_full_size.py --scale 2    half of each width: about 1 GB

The file is written tensor by tensor, and opened by `diptych.load` in a process of its own, whose peak resident memory
is measured from the moment when everything is imported. What is kept goes to
benchmarks/results/load-full-size/results.json.
"""

from __future__ import annotations

import argparse
import importlib
import json
import string
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

import diptych
from diptych.networks.autoencoder import Autoencoder, AutoencoderConfig
from diptych.networks.unet import UNet, UNetConfig
from diptych.pretrained.key_map import Layout, published
from diptych.pretrained.stable_diffusion.state_dict_keys import compvis_autoencoder, compvis_unet
from diptych.pretrained.stable_diffusion.text_encoder import CLIP, PREFIX, clip_layout

RESULTS = Path(__file__).parent / "results" / "load-full-size" / "results.json"
LIMIT = 1.2
"""Of the file's size."""
VOCABULARY = 49_408
"""Of CLIP's tokenizer."""
BESIDE = ("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod")
"""Of the buffers of training, of 1,000 numbers each, those that any such file has."""
ON_THE_WAY = (
    "opening",
    "latent",
    "conditioning.clip",
    "published.sd_folder",
    "published.deepfloyd",
    "published.sd_file",
)
"""What `diptych.load` imports before it reads."""


def shapes(scale: int) -> dict[str, tuple[int, ...]]:
    """The keys and shapes of Stable Diffusion 1.x's file, every width divided by `scale`."""
    autoencoder = AutoencoderConfig(channels=128 // scale)
    unet = UNetConfig(channels=320 // scale, context_width=768 // scale)
    text = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=768 // scale,
        intermediate_size=3072 // scale,
        num_hidden_layers=12,
        num_attention_heads=12 // scale,
    )
    with torch.device("meta"):
        parts: list[tuple[nn.Module, Layout]] = [
            (UNet(unet), compvis_unet(unet)),
            (Autoencoder(autoencoder), compvis_autoencoder(autoencoder)),
            (CLIPTextModel(text), clip_layout(text, CLIP + PREFIX)),
        ]
    found: dict[str, tuple[int, ...]] = {}
    for network, layout in parts:
        own = {name.removeprefix(PREFIX): tensor for name, tensor in network.state_dict().items()}
        named = published(layout, {name: own[name] for name in layout})
        found |= {key: tuple(tensor.shape) for key, tensor in named.items()}
    return found | dict.fromkeys(BESIDE, (1000,))


def write(path: Path, sizes: dict[str, tuple[int, ...]]) -> int:
    """Random weights of these shapes in one safetensors file, one tensor in memory at a time; its bytes."""
    header: dict[str, Any] = {}
    end = 0
    for name, shape in sizes.items():
        start, end = end, end + 4 * torch.Size(shape).numel()
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in sizes.values():
            file.write(memoryview((0.02 * torch.randn(shape)).numpy()).cast("B"))  # pyright: ignore[reportArgumentType]
    return path.stat().st_size


def write_tokenizer(folder: Path) -> None:
    """A tokenizer as large as CLIP's, which knows letters and nothing else."""
    letters = ["!", *string.ascii_lowercase, *(f"{letter}</w>" for letter in string.ascii_lowercase)]
    marks = ["<|startoftext|>", "<|endoftext|>"]
    filler = [f"#{number}" for number in range(VOCABULARY - len(letters) - len(marks))]
    vocabulary = {piece: number for number, piece in enumerate([*letters, *filler, *marks])}
    CLIPTokenizer(vocab=vocabulary, merges=[], pad_token=marks[1], model_max_length=77).save_pretrained(folder)


def resident(line: str) -> int:
    """Of this process, in bytes, pages of mapped files among it: "VmRSS" now, "VmHWM" the most at once.

    Not getrusage's peak, which a process inherits from the one that started it.
    """
    status = Path("/proc/self/status").read_text()
    return next(int(row.split()[1]) * 1024 for row in status.splitlines() if row.startswith(f"{line}:"))


def load(path: Path, tokenizer: Path) -> dict[str, Any]:
    """Open the file as anyone does; what it took."""
    for name in ON_THE_WAY:
        importlib.import_module(f"diptych.{name}")
    before = resident("VmRSS")
    model: Any = diptych.load(path, "cpu", tokenizer=tokenizer)
    peak = resident("VmHWM") - before
    networks: tuple[nn.Module, ...] = (model.unet, model.autoencoder, model.text.model)
    assert not any(tensor.is_meta for network in networks for tensor in network.state_dict().values())
    size = path.stat().st_size
    return {
        "parameters": sum(p.numel() for network in networks for p in network.parameters()),
        "file_bytes": size,
        "peak_bytes": peak,
        "ratio": round(peak / size, 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scale", type=int, default=1, choices=(1, 2, 4), help="divide every width by this")
    parser.add_argument("--read", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        print(json.dumps(load(arguments.read, arguments.read.with_name("tokenizer"))))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        print(f"writing {write(path, shapes(arguments.scale)):,} bytes")
        write_tokenizer(path.with_name("tokenizer"))
        command = [sys.executable, __file__, "--read", str(path)]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    found = {"file": "Stable Diffusion 1.x, CompVis's names, float32", "scale": arguments.scale, **found}
    found["limit"] = LIMIT
    print(json.dumps(found, indent=2))
    if arguments.scale == 1:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    if found["ratio"] > LIMIT:
        sys.exit(f"the peak is {found['ratio']} times the file, and {LIMIT} is the limit")


if __name__ == "__main__":
    main()
