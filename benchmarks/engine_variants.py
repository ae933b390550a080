"""The ways in which diptych runs a model on a CPU, each on a copy that shares the model's weights."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

from torch import nn

from benchmarks.side_by_side import BF16, FLOAT32, Contestant, NotHere, Work
from diptych.engines.accelerate import accelerate
from diptych.engines.calibration import int8_parts, measuring
from diptych.engines.int8_ranges import NetworkRanges
from diptych.engines.parts import parts
from diptych.engines.replace import replace

M = TypeVar("M", bound=nn.Module)


class Variant(NamedTuple):
    """An engine with a precision."""

    name: str
    engine: str
    precision: str
    tolerance: float
    """Of a forward, in units of the largest value."""
    exact: bool
    """Whether whole images may be held against the reference's, within 1 of 255."""


VARIANTS = {
    "pytorch": Variant("diptych, PyTorch", "pytorch", "float32", FLOAT32, True),
    "float32": Variant("diptych, OpenVINO float32", "openvino", "float32", FLOAT32, True),
    "bf16": Variant("diptych, OpenVINO bf16", "openvino", "bf16", BF16, False),
    "int8": Variant("diptych, OpenVINO int8", "openvino", "int8", 1e-1, False),
}
"""By the names that --engines takes."""


def chosen(names: list[str] | None) -> list[Variant]:
    """The variants of --engines."""
    if unknown := set(names or ()) - set(VARIANTS):
        print(f"no engine {', '.join(sorted(unknown))}: the engines are {', '.join(VARIANTS)}", file=sys.stderr)
        raise SystemExit(2)
    return [VARIANTS[name] for name in names or VARIANTS]


def sharing_copy(model: M) -> M:
    """A copy of a model with the same tensors, on which an engine may be put without the other noticing."""
    tensors = [*model.parameters(), *model.buffers()]
    for part in getattr(model, "_frozen", {}).values():  # parts that are no submodules
        module = part if isinstance(part, nn.Module) else getattr(part, "model", None)
        tensors += [*module.parameters(), *module.buffers()] if isinstance(module, nn.Module) else []
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors})


class EagerCalls:
    """Counts the convolutions that PyTorch computes in a model's networks: of compiled ones, none."""

    def __init__(self) -> None:
        self.count = 0

    def watch(self, model: Any) -> None:
        """Without hooks: engines leave layers that have some to PyTorch."""
        for part in parts(model):
            for module in part.module.modules():
                if isinstance(module, nn.Conv2d):
                    vars(module)["_conv_forward"] = functools.partial(self.called, module)

    def called(self, module: nn.Conv2d, *arguments: Any) -> Any:
        self.count += 1
        return type(module)._conv_forward(module, *arguments)

    def fault(self) -> str | None:
        """Whether there were some since the last call."""
        count, self.count = self.count, 0
        return f"its networks ran in PyTorch ({count} convolutions)" if count else None


def in_int8(model: Any, work: Work) -> None:
    """Measure what the networks of a model read in its work, and have them run in int8."""
    try:
        from diptych.engines.openvino_network import OpenVINOMethod
    except ImportError as missing:
        raise NotHere(f"needs diptych[cpu]: {missing}") from None
    with measuring(list(int8_parts(model))) as collectors:
        work()
    for part, collector in collectors.items():
        if collector.measures:
            replace(part, OpenVINOMethod(part, "int8", ranges=NetworkRanges(layers=collector.ranges())))


def on_engine(model: M, variant: Variant, calls: EagerCalls, work: Callable[[M], Work]) -> M:
    """A model as a variant runs it, with the weights of the one that is given. `calls` counts what falls back. Int8 is
    calibrated on the work itself: what a model of random weights generates has other values than the work's inputs."""
    other = sharing_copy(model)
    if variant.precision == "int8":
        in_int8(other, work(other))
    else:
        accelerate(other, variant.engine, variant.precision)
    if variant.engine != "pytorch":
        calls.watch(other)
    return other


def entrants(
    model: M,
    variants: Sequence[Variant],
    work: Callable[[M], Work],
    bounds: tuple[float, float] | None = None,
    **about: Any,
) -> list[Contestant]:
    """diptych's contestants: `work` of the model on each variant. bounds: the tolerance of exact variants and of the
    others, where it is not that of a forward."""
    made = []
    for variant in variants:
        calls = EagerCalls()

        def prepare(variant: Variant = variant, calls: EagerCalls = calls) -> Work:
            return work(on_engine(model, variant, calls, work))

        tolerance = variant.tolerance if bounds is None else bounds[not variant.exact]
        made.append(Contestant(name=variant.name, prepare=prepare, tolerance=tolerance, about=about, fault=calls.fault))
    return made
