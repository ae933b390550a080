"""What `torch.compile` made, kept for the next process: kernels and their choices, without which a start takes minutes.

A file holds what PyTorch calls cache artifacts. Its key names all that they depend on, so that another version, card or
network has another file; a damaged one is told in a line, and made again.
"""

from __future__ import annotations

import importlib.util
import platform
from typing import Any

import torch
from torch import nn

from diptych.core.terminal import print_err
from diptych.engines import compiled_cache


def key_of(module: nn.Module, method: str, shapes: Any, regions: str) -> dict[str, Any]:
    """What the kernels of a method for these shapes depend on."""
    first = next(module.parameters())
    triton = importlib.util.find_spec("triton")
    card: Any = platform.processor()
    if first.device.type == "cuda":
        found = torch.cuda.get_device_properties(first.device)
        card = [found.name, found.major, found.minor, found.multi_processor_count]
    return {
        "artifacts": "torch.compile",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": None if triton is None else importlib.import_module("triton").__version__,
        "python": platform.python_version(),
        "card": card,
        "network": [type(module).__name__, str(getattr(module, "config", "")), method, str(first.dtype)],
        "shapes": str(shapes),
        "regions": regions,
        "code": compiled_cache.code_hash(),
    }


def load(key: dict[str, Any], name: str) -> bool:
    """Give PyTorch the artifacts that were stored under a key; whether there were any. name: of the network, for what
    is said of a damaged file."""
    try:
        body = compiled_cache.read(key)
    except ValueError as error:
        print_err(f"the compiled {name} is made again: {error}")
        return False
    if body is None:
        return False
    try:
        return torch.compiler.load_cache_artifacts(body.tobytes()) is not None
    except Exception as error:  # what PyTorch unpacks may be of any kind
        print_err(f"the compiled {name} is made again: PyTorch does not read it ({type(error).__name__})")
        return False


def save(key: dict[str, Any]) -> None:
    """Store what this process has compiled so far, under a key."""
    made = torch.compiler.save_cache_artifacts()
    if made is not None:
        compiled_cache.write(key, made[0])
