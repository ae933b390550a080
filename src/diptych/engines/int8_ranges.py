"""Between which values the layers of a network read, for 8-bit integers: measured once, kept on disk.

A file is JSON: what it is of, and for each layer the least and the largest value of its input and the error that 8 bits
are expected to make of its output. Those that diptych comes with lie in assets/int8, those made here in the cache.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from diptych.core.caches import cache_folder, short_hash
from diptych.core.disk import write_text
from diptych.engines.network_hash import lora_hash, network_config, weights_hash
from diptych.engines.replace import Part
from diptych.engines.say_once import tell
from diptych.weights.fingerprint import fingerprint

RULES = 1
"""Counted up when other layers are measured, or otherwise: what was stored before is then measured again."""
SHIPPED = Path(__file__).resolve().parent.parent / "assets" / "int8"
DIGITS = 4
"""To which values are rounded: the last ones depend on the number of threads."""


class LayerRange(NamedTuple):
    """Of the input of one layer."""

    low: float
    high: float
    error: float
    """Expected of the output, relative to its root mean square."""


@dataclass(frozen=True, kw_only=True)
class NetworkRanges:
    """Of the layers of a network."""

    layers: Mapping[str, LayerRange]
    """By the names of their weights."""
    lora: str = ""
    """The `lora_hash` of the network when it was measured."""

    def again(self, module: nn.Module, other: nn.Module) -> NetworkRanges:
        """The ranges of a module as those of another one: a copy, or one that shares layers under other names."""
        names = {id(tensor): name for name, tensor in module.named_parameters()}
        shared = {name: names[id(tensor)] for name, tensor in other.named_parameters() if id(tensor) in names}
        if not shared:
            return self
        layers = {name: self.layers[own] for name, own in shared.items() if own in self.layers}
        return NetworkRanges(layers=layers, lora=self.lora)


def folder() -> Path:
    return cache_folder("int8")


def identity_of(part: Part, weights: str) -> dict[str, Any]:
    """What ranges are of. The network's code is no part of it: layers are known by their names."""
    network = f"{type(part.module).__qualname__}.{part.method}"
    return {"rules": RULES, "network": network, "weights": weights, "config": network_config(part.module)}


def read_ranges(part: Part) -> NetworkRanges | None:
    """The ranges of a network, or of the same without its LoRA, if there are any. Says in one line why a file is not
    used."""
    plain = fingerprint(part.module)
    for weights in dict.fromkeys((weights_hash(part.module), plain)):
        identity, lora = identity_of(part, weights), "" if weights == plain else lora_hash(part.module)
        for place in (folder(), SHIPPED):
            path = place / file_name(identity)
            try:
                stored = json.loads(path.read_text(encoding="utf-8"))
                return NetworkRanges(layers=checked(stored, identity, part.module), lora=lora)
            except FileNotFoundError:
                continue
            except (OSError, ValueError, TypeError, RecursionError) as error:
                tell(f"{path} is not used: {' '.join(str(error).split())[:100]}")
    return None


def write_ranges(part: Part, layers: Mapping[str, LayerRange], place: Path | None = None) -> Path:
    """Keep the ranges of a network, as it is now with its LoRA, in the cache or a folder."""
    identity = identity_of(part, weights_hash(part.module))
    path = (place or folder()) / file_name(identity)
    path.parent.mkdir(parents=True, exist_ok=True)
    rounded = {name: [float(f"{value:.{DIGITS}g}") for value in values] for name, values in layers.items()}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(values)}" for name, values in rounded.items())
    write_text(path, f'{{"of": {json.dumps(identity)},\n"layers": {{\n{lines}\n}}}}\n')
    return path


def file_name(identity: Mapping[str, Any]) -> str:
    return f"{short_hash(json.dumps(dict(identity), sort_keys=True))}.json"


def checked(stored: Any, identity: Mapping[str, Any], module: nn.Module) -> dict[str, LayerRange]:
    """The ranges in a file. A `ValueError` says what is wrong with it."""
    if not isinstance(stored, dict) or not isinstance(stored.get("layers"), dict):
        raise ValueError("it holds no ranges")
    if stored.get("of") != identity:
        raise ValueError("its ranges are of another model")
    weights = {name for name, tensor in module.named_parameters() if tensor.ndim > 1}
    layers = {name: LayerRange(*map(float, values)) for name, values in stored["layers"].items()}
    for name, layer in layers.items():
        if name not in weights or not all(map(math.isfinite, layer)) or not layer.low <= 0 <= layer.high:
            raise ValueError(f"it has no range of {name}, but {list(layer)}")
    return layers
