"""A short hash of weights."""

from __future__ import annotations

import hashlib

import torch
from torch import nn


def fingerprint(*modules: nn.Module) -> str:
    """Sixteen hex digits of a hash over all parameters and buffers, names included."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
