"""The arithmetic of a run: float32, or bfloat16 autocast; chosen once and kept, since it decides what is learnt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from diptych.core.devices import fast_bf16
from diptych.core.disk import values_of
from diptych.core.terminal import print_err
from diptych.training.distributed import Team
from diptych.training.training_config import TrainingConfig

UNRECORDED = "unrecorded"
"""What a run of an earlier version began with: float32 on CPUs, bfloat16 on GPUs that have it."""


class Precision(NamedTuple):
    """How a run computes."""

    bf16: bool
    record: dict[str, str]
    """What is kept in config.json: what a run whose `training.precision` is `auto` began with."""
    line: str = ""
    """What to say where that is not what would be chosen for a new run on this device."""


def settle_precision(folder: Path, config: TrainingConfig, team: Team) -> Precision:
    """The precision of the run in `folder`, the same in all processes. A line says where it is not what a new run would
    have here; nothing is written."""
    if config.precision != "auto":
        return Precision(config.precision == "bf16", {})
    values = values_of(folder / "config.json") if team.main else {}
    begun = values.get("precision", UNRECORDED) if "training" in values else None
    rows = team.gather((begun, fast_bf16(team.device)))
    chosen = choose(rows[0][0], all(fast for _, fast in rows), team.device.type)
    if chosen.line and team.main:
        print_err(chosen.line)
    return chosen


def choose(begun: str | None, fast: bool, device: str) -> Precision:
    """begun: what the run began with, `UNRECORDED`, or none of a new one. fast: whether the device is made for bf16."""
    if begun is None:
        return Precision(fast, {"precision": "bf16" if fast else "fp32"})
    bf16 = fast and (device == "cuda" if begun == UNRECORDED else begun == "bf16")
    record = {"precision": ("bf16" if bf16 else "fp32") if begun == UNRECORDED else begun}
    line = ""
    if fast and not bf16:
        line = "the run began with fp32 and stays with it: this device has bf16, which a new run would use"
    elif begun == "bf16" and not bf16:
        line = "the run began with bf16, which is slow on this device: it goes on with fp32"
    return Precision(bf16, record, line)


def autocast(bf16: bool, device: torch.device) -> Callable[[], torch.autocast]:
    """What to wrap a forward pass in: bfloat16 autocast, or nothing."""
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high" if bf16 else "highest")
    return lambda: torch.autocast(device.type, torch.bfloat16, enabled=bf16)
