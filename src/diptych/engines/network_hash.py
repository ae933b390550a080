"""What a network is, for caches: its config, its weights, and what LoRA adds to them."""

from __future__ import annotations

import json
from typing import Any

from torch import nn

from diptych.core.caches import short_hash
from diptych.networks.lora import adapters
from diptych.weights.fingerprint import fingerprint


def network_config(module: nn.Module) -> Any:
    """Its config as JSON has it, or the layers of one that has none."""
    config = getattr(module, "config", None)
    return repr(module) if config is None else json.loads(config.to_json())


def weights_hash(module: nn.Module) -> str:
    """Of all tensors and of what LoRA adds to them."""
    changes = [
        (name, str(place), each.scale, each.live, each.change.alpha, fingerprint(each.change))
        for place, layer in module.named_modules()
        for name, each in adapters(layer)
    ]
    return fingerprint(module) + (short_hash(repr(changes)) if changes else "")


def lora_hash(module: nn.Module) -> str:
    """Of what LoRA adds, wherever its layers are; empty without."""
    changes = sorted(
        (name, each.scale, each.live, each.change.alpha, fingerprint(each.change))
        for layer in module.modules()
        for name, each in adapters(layer)
    )
    return short_hash(repr(changes)) if changes else ""
