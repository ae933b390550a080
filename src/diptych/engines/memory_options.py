"""The options of opening a model that are about the memory of a GPU; `engines.placement` follows them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diptych.core.errors import UserError, pick, warn

if TYPE_CHECKING:
    import torch

OFFLOADS = ("none", "parts", "layers")
PRECISIONS = ("stored", "float8", "int8")
"""Of weights."""


def check_options(offload: str, weight_precision: str) -> None:
    """Raise a `UserError` for a way that there is not."""
    pick("offload", offload, OFFLOADS)
    pick("weight precision", weight_precision, PRECISIONS)


def offload_on(device: torch.device, offload: str) -> str:
    """The way that is possible on a device; a line says where it is none."""
    pick("offload", offload, OFFLOADS)
    if offload != "none" and device.type != "cuda":
        warn(f"offload={offload} is for CUDA devices: on {device} it changes nothing")
        return "none"
    return offload


def engine_for(engine: str, offload: str, weight_precision: str, precision: str = "auto") -> str:
    """The engine that goes with these: weights that move or are in 8 bits are PyTorch's. A `UserError` for another one
    that was asked for, for a precision that PyTorch does not compute in, or for a way that there is not."""
    check_options(offload, weight_precision)
    for name, value, usual in (("offload", offload, "none"), ("weight_precision", weight_precision, "stored")):
        if value != usual:
            if engine not in ("auto", "pytorch"):
                raise UserError(f"{name}={value} does not go with the engine {engine}: leave one of them out")
            if precision == "int8":  # OpenVINO's
                raise UserError(f"{name}={value} does not go with precision=int8: leave one of them out")
            return "pytorch"
    return engine


def placed(model: Any, device: torch.device, engine: str, offload: str, weight_precision: str) -> Any:
    """A model that was opened on the host, on a device, by `engines.placement`; its origin says what changes images."""
    if device.type == "cpu" and (offload, weight_precision) == ("none", "stored"):
        return model.to(device)
    from diptych.engines.placement import place

    if weight_precision != "stored":
        model.origin = model.origin.with_options({"weight_precision": weight_precision})
    return place(model, device, offload, weight_precision, sparing=engine != "compile")
