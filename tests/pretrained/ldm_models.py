"""latent-diffusion's models in miniature, as files in CompVis's layout, filled by a rule that needs no weights at hand.

Every tensor is drawn from one seeded generator in the order of the keys' names, so that the original modules can be
filled with the same numbers: `ldm_originals.py` does so, and keeps what they answer in ldm_pins.json.
"""

from __future__ import annotations

import hashlib
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.encoders.tiny_encoders import WORDS

Shapes = Mapping[str, tuple[int, ...]]
LETTERS = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *LETTERS]
TOKENS = 20
"""Length to which prompts are padded; 77 in the published models."""
CLASSES = 1001
STEPS = 5
SIZE = 32
"""Side of the images that are made, in pixels."""
UNDRAWN = ("betas", "scale_factor")


def tokenizer_folder(folder: Path) -> Path:
    """BERT's tokenizer with a few words, as a list of its tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return folder


def drawn(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """A tensor for each key: matrices and kernels of unit gain, norms near 1, biases near 0, embeddings near 1 too."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for key in sorted(shapes):
        draw = torch.randn(shapes[key], generator=generator)
        if draw.ndim == 1:
            tensors[key] = float(key.endswith("weight")) + 0.1 * draw
        else:
            tensors[key] = draw if "emb" in key.split(".")[-2] else draw / draw[0].numel() ** 0.5
    return tensors


def digest(shapes: Shapes) -> str:
    """Sixteen hex digits of all keys and shapes."""
    lines = [f"{key} {tuple(shapes[key])}\n" for key in sorted(shapes)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def some(tensor: Tensor, number: int = 20) -> Tensor:
    """About so many values, spread over all."""
    return tensor.flatten()[:: max(tensor.numel() // number, 1) | 1]


def betas(start: float, end: float) -> Tensor:
    """As latent-diffusion's buffer of that name holds them."""
    return (torch.linspace(start**0.5, end**0.5, 1000, dtype=torch.float64) ** 2).float()


def write(path: Path, tensors: Mapping[str, Any], pickled: bool = False) -> Path:
    """A single file; as a pickle, nested as PyTorch Lightning has it."""
    if pickled:
        torch.save({"state_dict": dict(tensors), "global_step": 1}, path)
    else:
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, path)
    return path
