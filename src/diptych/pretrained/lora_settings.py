"""What is stated of a LoRA beside its matrices: by diffusers in the file's header, by PEFT in adapter_config.json."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diptych.core.config import read_json
from diptych.core.errors import UserError
from diptych.core.values import short_repr
from diptych.weights.files import load_metadata

HEADER = "lora_adapter_metadata"
"""Where diffusers states settings: JSON in the header of a safetensors file, each after the name of its network."""
CONFIG = "adapter_config.json"
"""Where PEFT states them, beside the file."""
METHODS = {"LOHA": "LoHa", "LOKR": "LoKr", "OFT": "OFT", "BOFT": "BOFT", "IA3": "(IA)3", "ADALORA": "AdaLoRA"}
FOLLOWED = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")
WITHOUT_EFFECT = (
    *(
        "base_model_name_or_path",
        "revision",
        "task_type",
        "inference_mode",
        "peft_version",
        "peft_type",
        "auto_mapping",
    ),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "lora_dropout", "loftq_config"),
    *("eva_config", "corda_config", "lora_ga_config", "megatron_config", "megatron_core", "qalora_group_size"),
    *("runtime_config", "ensure_weight_tying"),
)
"""What is for training alone, or shows in the tensors."""
MUST_BE: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "init_lora_weights": (True, "gaussian", "orthogonal", "eva"),
}
"""What else a setting may say than nothing; other ways to begin change the model's own weights too."""
NAMES = {"use_dora": "DoRA", "use_qalora": "QALoRA", "lora_bias": "biases", "alora_invocation_tokens": "aLoRA"}


@dataclass(frozen=True)
class LoraSettings:
    """Of each network by its name, of all others under "", what is stated."""

    where: str
    networks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def alpha(self, layer: str, rank: int) -> float:
        """A layer's alpha, its rank where none is stated.

        A pattern names layers by their whole names or by how these end. Rank-stabilised LoRA (Kalajdzievski 2023)
        divides by the root of the rank, which is another alpha. A `UserError` for a rank that is stated otherwise.
        """
        network, _, inner = layer.partition(".")
        values = self.networks.get(network, self.networks.get("", {}))
        stated = self.of_layer(values, "rank_pattern", "r", inner)
        if "" in self.networks and stated not in (None, rank):  # PEFT's, which builds its layers by it
            raise UserError(
                f"{self.where} states the rank {short_repr(stated)} for {layer}, whose matrices have rank {rank}"
            )
        alpha = self.of_layer(values, "alpha_pattern", "lora_alpha", inner)
        alpha = rank if alpha is None else alpha
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha < 1e6:
            raise UserError(f"{self.where} has the alpha {short_repr(alpha)} for {layer}")
        return alpha * math.sqrt(rank) if values.get("use_rslora") else float(alpha)

    def of_layer(self, values: Mapping[str, Any], patterns: str, usual: str, layer: str) -> Any:
        pattern_values = values.get(patterns) or {}
        if not isinstance(pattern_values, Mapping) or not all(map(simple, pattern_values)):
            raise UserError(f"{self.where} has no patterns of layers as {patterns}, but {short_repr(pattern_values)}")
        try:
            matching = [
                value for pattern, value in pattern_values.items() if re.fullmatch(rf"(.*\.)?({pattern})", layer)
            ]
        except re.error:
            raise UserError(
                f"{self.where} has no patterns of layers as {patterns}, but {short_repr(pattern_values)}"
            ) from None
        return matching[0] if matching else values.get(usual)


def simple(pattern: str) -> bool:
    """Whether a pattern is matched at once: no group that is repeated, and few parts of any length."""
    return len(pattern) < 1000 and not re.search(r"\)[*+?{]", pattern) and len(re.findall(r"[*+{]", pattern)) <= 3


def stated_settings(file: Path, of_peft: bool) -> LoraSettings:
    """What is stated of a file; `of_peft` says that its tensors have PEFT's names, and that its config is beside it.

    Raises a `UserError` for another method than LoRA, and for a setting that diptych does not follow.
    """
    header = stated_in_header(file)
    config = file.parent / CONFIG
    if not of_peft or not config.is_file():
        return header
    values = read_json(config)
    if not isinstance(values, dict):
        raise UserError(f"{config} does not hold a JSON object; get or make it again")
    require_lora(values, str(config))
    for network, others in header.networks.items():
        for name in FOLLOWED:
            if name in others and others[name] != values.get(name):
                raise UserError(f"{header.where} and {config} state different things: {network}.{name}")
    return LoraSettings(str(config), {"": values})


def stated_in_header(file: Path) -> LoraSettings:
    where = f"{file}: {HEADER} in its header"
    with file.open("rb") as opened:
        safe = opened.read(9)[8:] == b"{"
    if not safe:
        return LoraSettings(where)
    try:
        settings = json.loads(load_metadata(file).get(HEADER, "{}"))
    except (ValueError, RecursionError):
        settings = None
    if not isinstance(settings, dict):
        raise UserError(f"{where} is no JSON object")
    networks: dict[str, dict[str, Any]] = {}
    for key, value in settings.items():
        network, _, name = key.rpartition(".")
        networks.setdefault(network, {})[name] = value
    for values in networks.values():
        require_lora(values, where)
    return LoraSettings(where, networks)


def require_lora(values: Mapping[str, Any], where: str) -> None:
    """Raise a `UserError` unless these settings are of a plain LoRA."""
    kind = values.get("peft_type")
    if kind not in ("LORA", None):
        name = METHODS.get(kind, kind) if isinstance(kind, str) else kind
        raise UserError(f"{where} is of another method than LoRA, {short_repr(name)}; it cannot be applied")
    for name, value in values.items():
        if name in FOLLOWED or name in WITHOUT_EFFECT or value in (None, False, [], {}, *MUST_BE.get(name, ())):
            continue
        what = f" ({NAMES[name]})" if name in NAMES else ""
        raise UserError(f"{where}: diptych does not follow {name} = {short_repr(value)}{what}; it cannot be applied")
