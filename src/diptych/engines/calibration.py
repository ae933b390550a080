"""Calibration for 8-bit integers: a model generates some images in PyTorch, and what its layers read is measured.

Weights are rounded by output channel, symmetrically; inputs as a whole, between the least and the largest value seen
(Nagel et al. 2021, sections 2.2 and 3.2).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from diptych.core.errors import DiptychWarning, UserError
from diptych.core.progress import bar
from diptych.core.steady import looks_on
from diptych.core.terminal import print_err
from diptych.engines.int8_ranges import LayerRange, folder, read_ranges, write_ranges
from diptych.engines.parts import parts
from diptych.engines.replace import Part, Runner, replace, restore

PROMPTS = ("a red apple", "two cats beside a blue chair", "a house by a lake at night", "a portrait of an old man")
"""What a model calibrates on, where nothing else is given."""
LARGE, LARGE_PROMPTS, LARGE_STEPS = 100_000_000, 1, 8
"""Networks of so many parameters calibrate on fewer prompts and steps: each takes seconds."""
LEAST_CHANNELS = 16
"""Of what a layer reads and makes; with fewer it is an end of the network."""
LEVELS, WEIGHT_LEVELS = 255, 127
"""Steps in the range of an input, and up to the largest weight."""


def is_int8(part: Part) -> bool:
    """Whether a part may run in int8: encoders and tiny decoders run once an image, or are small."""
    return part.name == "decoder" or part.method == "forward"


def int8_parts(model: Any) -> Iterator[Part]:
    """The parts of a model that may run in int8. All stages of a cascade are opened."""
    stages = range(len(model.configs)) if hasattr(model, "on_open") else ()
    for system in [model.stage(number) for number in stages] or [model]:
        yield from filter(is_int8, parts(system))


def require_ranges(model: Any) -> None:
    """Have the ranges of a model's networks on disk: it is calibrated now, if they are not there. Raises a `UserError`
    where it generates nothing from a prompt alone."""
    missing = dict.fromkeys(part.name for part in int8_parts(model) if read_ranges(part) is None)
    if not missing:
        return
    print_err(f"diptych: int8: measuring the {' and the '.join(missing)} on images of its own, once, for {folder()}")
    try:
        calibrate(model)
    except UserError as error:
        raise UserError(
            f"int8 needs a calibration with such images: see `diptych calibrate --help` ({error})"
        ) from None


def calibrate(
    model: Any, prompts: Sequence[str] | None = None, place: Path | None = None, **options: Any
) -> list[Path]:
    """Measure what the layers of a model read while it generates, and keep that on disk: the paths of the files.

    prompts: what to generate, an image each; some of diptych's own if none.
    place: the folder of the files; the cache if none.
    options: of the model's `generate`, such as steps, or an image for a model that starts from one.

    Raises a `UserError` for what `generate` refuses, and where values are not finite.
    """
    measured = list(int8_parts(model))
    large = any(sum(tensor.numel() for tensor in part.module.parameters()) >= LARGE for part in measured)
    if large and "steps" not in options and not hasattr(model, "transformer"):
        options["steps"] = LARGE_STEPS
    prompts = own_prompts(model)[: LARGE_PROMPTS if large else None] if prompts is None else prompts
    (place or folder()).mkdir(parents=True, exist_ok=True)  # or an error, before all the work
    with measuring(measured) as collectors, warnings.catch_warnings(), bar() as progress:
        warnings.simplefilter("ignore", DiptychWarning)  # of prompts: only their activations matter
        task = progress.add_task("measuring", total=None)
        for seed, prompt in enumerate(prompts):

            @looks_on
            def advance(step: int, steps: int, x0: Any, seed: int = seed) -> None:
                progress.update(task, completed=seed * steps + step + 1, total=len(prompts) * steps)

            model.generate([prompt], seeds=[seed], callback=advance, **options)
    ran = {part: collector for part, collector in collectors.items() if collector.measures}
    return [write_ranges(part, collector.ranges(), place) for part, collector in ran.items()]


def own_prompts(model: Any) -> Sequence[str]:
    """`PROMPTS`, or the numbers of as many classes."""
    text = (model.configs[0] if hasattr(model, "on_open") else model.config).text
    classes = getattr(text, "classes", None)
    return [str(number * classes // len(PROMPTS)) for number in range(len(PROMPTS))] if classes else PROMPTS


@contextlib.contextmanager
def measuring(measured: Sequence[Part]) -> Iterator[Mapping[Part, RangeCollector]]:
    """Within, parts run in PyTorch, and their layers are measured."""
    before = {part: vars(part.module).get(part.method) for part in measured}
    collectors = {part: RangeCollector(part.module) for part in measured}
    for part, collector in collectors.items():
        replace(part, MeasuredMethod(part, collector))
    try:
        yield collectors
    finally:
        for part, runner in before.items():
            restore(part) if runner is None else replace(part, runner)


class MeasuredMethod(Runner):
    """Runs a part's method in PyTorch within its collector."""

    def __init__(self, part: Part, collector: RangeCollector) -> None:
        super().__init__(part)
        self.collector = collector

    def run(self, *args: Any, **kwargs: Any) -> Tensor:
        with self.collector:
            return self.part.eager(*args, **kwargs)


def worth_int8(x: Tensor, weight: Tensor) -> bool:
    """Whether a layer may read and multiply integers. Not those at the ends of a network, those of vectors (time and
    pooled text, one row an image), and 1x1 shortcuts, which change the channels of a sum that no norm has bounded: they
    cost little, and most of the error would be theirs."""
    made, read = weight.shape[:2]
    shortcut = weight.ndim == 4 and weight[0, 0].numel() == 1 and made != read
    return x.ndim > 2 and min(made, read) >= LEAST_CHANNELS and not shortcut


class RangeCollector(TorchFunctionMode):
    """Within, measures the layers of a module: the least and largest value of what each reads, and mean squares."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.weights = {tensor.data_ptr(): (name, tensor) for name, tensor in module.named_parameters()}
        self.measures: dict[str, Tensor] = {}
        """Of all calls: least and largest value read, sums of the mean squares of what was read and of what was made,
        and their number. A tensor for each call, however small, would keep the memory of others from being used again.
        """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func in (F.linear, F.conv2d) and len(args) > 1:
            name, weight = self.weights.get(args[1].data_ptr(), (None, None))
            if name is not None and weight is not None and worth_int8(args[0], weight):
                x, made = args[0].detach().float(), out.detach().float()
                squares = torch.stack([x.square().mean(), made.square().mean(), torch.ones((), device=x.device)])
                values = torch.cat([torch.stack(x.aminmax()), squares]).double().cpu()
                known = self.measures.setdefault(name, values)
                if known is not values:
                    torch.minimum(known[0], values[0], out=known[0])
                    torch.maximum(known[1], values[1], out=known[1])
                    known[2:] += values[2:]
        return out

    def ranges(self) -> dict[str, LayerRange]:
        """Of all layers that ran. A `UserError` where they read values that are not finite."""
        weights = dict(self.weights.values())
        made = {}
        for name, values in self.measures.items():
            if not values.isfinite().all():
                raise UserError(f"the layer {name} reads values that are not finite: no range can be measured")
            low, high, *squares, calls = values.tolist()
            low, high = min(low, 0.0), max(high, 0.0)  # 0 is in each border
            read, written = (square / calls for square in squares)
            made[name] = LayerRange(low, high, expected_error(weights[name], low, high, read, written))
        return made


def expected_error(weight: Tensor, low: float, high: float, read: float, made: float) -> float:
    """How far rounding moves a layer's output, relative to its root mean square.

    Rounding to steps of s is as good as noise of variance s^2 / 12 (Widrow 1956), in inputs and weights alike: that of
    an output channel is s_x^2 / 12 |w|^2 + s_w^2 / 12 |x|^2.

    read, made: mean squares of a layer's inputs and outputs.
    """
    rows = weight.detach().float().flatten(1)
    step, steps = (high - low) / LEVELS, rows.abs().amax(1) / WEIGHT_LEVELS
    noise = step**2 / 12 * rows.square().sum(1) + steps.square() / 12 * rows.shape[1] * read
    return (noise.mean().item() / max(made, 1e-30)) ** 0.5
