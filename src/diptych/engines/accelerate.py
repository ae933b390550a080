"""Choosing what runs the networks of a model."""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
from torch import Tensor, nn

from diptych.core.errors import UserError, pick
from diptych.engines.compute_precision import Precision, choose_precision
from diptych.engines.parts import parts
from diptych.engines.replace import Part, Runner, replace
from diptych.engines.say_once import short, tell

ENGINES = ("auto", "pytorch", "openvino", "compile")
"""auto: $DIPTYCH_ENGINE, or OpenVINO on CPUs where it is installed, else PyTorch."""
LEAST_PARAMETERS = 500_000
"""Smaller networks are not worth a compilation, unless an engine is named."""


def accelerate(model: Any, engine: str = "auto", precision: str = "auto") -> dict[str, str]:
    """Have an engine run the networks of a model, whenever no gradients are asked of them.

    Returns what was chosen, where it is not PyTorch in the type of the weights, for the metadata of images. Raises a
    `UserError` for an engine or precision that there is not, or that cannot be had here.
    """
    device = model.device
    chosen = choose_precision(precision, device)
    kind = choose_engine(engine, device, chosen)
    least = LEAST_PARAMETERS if engine == precision == "auto" else 0
    if kind == "pytorch" and engine == "auto" and device.type == "cpu" and not os.environ.get("DIPTYCH_ENGINE"):
        tell("networks run in PyTorch: pip install 'diptych[cpu]', for OpenVINO, makes them faster")
    kind = importable(kind, engine, chosen)
    source = model.origin.source if getattr(model, "origin", None) else ""
    if chosen == "int8":
        from diptych.engines.calibration import require_ranges

        require_ranges(model)

    def on(system: Any) -> bool:
        """Whether any part of a system is run by the engine."""
        some = False
        for part in parts(system):
            if kind == "openvino" and (others := other_types(part.module)):
                tell(f"networks with weights in {others} run in PyTorch: OpenVINO is for float32")
            elif size(part.module) >= least and (runner := runner_for(kind, part, chosen, source)) is not None:
                replace(part, runner)
                some = True
        return some

    others = [types for part in parts(model) if (types := other_types(part.module))]
    if others and kind == "openvino" and (engine == kind or chosen == "int8"):
        asked = f"the engine {kind}" if engine == kind else "int8"
        raise UserError(f"{asked} is for weights in float32, and these are in {others[0]}: leave out one of the two")
    some = on(model)
    if hasattr(model, "on_open"):  # a cascade, which opens its stages late
        model.on_open, some = on, True
    kind = kind if some else "pytorch"
    said = {"engine": kind if kind != "pytorch" else None, "precision": chosen if chosen != "float32" else None}
    return {name: value for name, value in said.items() if value is not None}


def choose_engine(engine: str, device: torch.device, precision: Precision) -> str:
    """`pytorch`, `openvino` or `compile`: what is meant on a device. A `UserError` where it cannot be had."""
    named = engine
    if engine == "auto":
        engine = pick("$DIPTYCH_ENGINE", os.environ.get("DIPTYCH_ENGINE") or "auto", ENGINES)
        named = f"{engine} of $DIPTYCH_ENGINE"
    pick("engine", engine, ENGINES)
    here = importlib.util.find_spec("openvino") is not None
    missing = "is not installed: pip install 'diptych[cpu]'"
    if engine == "compile":
        require_cuda(device, named)
    if engine == "openvino":
        if device.type != "cpu":
            raise UserError(f"the engine {named} runs on CPUs, and the model is on {device}")
        if not here:
            raise UserError(f"OpenVINO {missing}")
    if precision == "int8" and (engine in ("pytorch", "compile") or device.type != "cpu" or not here):
        why = (
            f"the engine {named} does not" if engine in ("pytorch", "compile") else f"on CPUs, where OpenVINO {missing}"
        )
        raise UserError(f"OpenVINO computes in int8, {why}")
    if engine == "auto":
        return "openvino" if device.type == "cpu" and here else "pytorch"
    return engine


def importable(kind: str, engine: str, precision: Precision) -> str:
    """The engine, or PyTorch in the place of an OpenVINO that cannot be imported; a `UserError` if that was asked
    for."""
    if kind != "openvino":
        return kind
    try:
        importlib.import_module("diptych.engines.openvino_core")  # before others import OpenVINO with all that it has
    except Exception as error:  # of whatever is missing, mostly a library
        said = f"OpenVINO cannot be imported ({short(error)})"
        if "openvino" in (engine, os.environ.get("DIPTYCH_ENGINE")) or precision == "int8":
            raise UserError(f"{said}: install it again, or choose the engine pytorch") from None
        tell(f"{said}: networks run in PyTorch")
        return "pytorch"
    return kind


def other_types(module: nn.Module) -> str:
    """The types of a module's weights other than float32, as a text."""
    types = {str(parameter.dtype).removeprefix("torch.") for parameter in module.parameters()} - {"float32"}
    return ", ".join(sorted(types))


def runner_for(kind: str, part: Part, precision: Precision, source: str = "") -> Runner | None:
    """What runs a part; none for PyTorch itself, in the type of the weights."""
    if kind == "openvino":
        from diptych.engines.openvino_network import OpenVINOMethod

        if precision != "int8":
            return OpenVINOMethod(part, precision, source)
        from diptych.engines.calibration import is_int8
        from diptych.engines.int8_ranges import read_ranges

        ranges = read_ranges(part) if is_int8(part) else None
        return OpenVINOMethod(part, "float32" if ranges is None else "int8", source, ranges)
    if kind == "compile":
        from diptych.engines.cuda_method import CudaMethod

        return CudaMethod(part, bf16=precision == "bf16")
    return InBfloat16(part) if precision == "bf16" else None


def require_cuda(device: torch.device, named: str = "compile") -> None:
    """Raise a `UserError` where the engine compile cannot run."""
    if device.type != "cuda":
        raise UserError(f"the engine {named} is for CUDA devices, and the model is on {device}: leave it out")
    if importlib.util.find_spec("triton") is None:
        raise UserError(f"the engine {named} needs triton, which this PyTorch came without: install a build for CUDA")


class InBfloat16(Runner):
    """Runs a part's method in PyTorch, with matrix products and convolutions in bfloat16."""

    def run(self, *args: Any, **kwargs: Any) -> Tensor:
        device = next(self.part.module.parameters()).device
        with torch.autocast(device.type, torch.bfloat16):
            return self.part.eager(*args, **kwargs).float()


def size(module: nn.Module) -> int:
    """Its parameters."""
    return sum(parameter.numel() for parameter in module.parameters())
