"""Layers of a graph in 8-bit integers, as OpenVINO recognises them.

Inputs pass a FakeQuantize between the ends of their range; weights are integers times a scale for each output channel.
OpenVINO's low-precision transformations make kernels of integers of the two; all else stays in floating point.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import openvino as ov
import torch
from openvino import opset15 as op
from torch import Tensor

from diptych.engines.calibration import LEVELS, WEIGHT_LEVELS
from diptych.engines.int8_ranges import LayerRange
from diptych.engines.openvino_graph import Recorder

MOST_ERROR = 0.1
"""Expected of a layer's output; layers with a larger one stay in floating point."""


class Int8Layers:
    """Makes the inputs and weights of those layers integers that have a range and are not too far off."""

    def __init__(self, layers: Mapping[str, LayerRange]) -> None:
        self.layers = {name: one for name, one in layers.items() if one.error <= MOST_ERROR and one.low < one.high}
        self.inputs: dict[tuple[int, LayerRange], Any] = {}

    def __contains__(self, name: str | None) -> bool:
        return name in self.layers

    def input(self, graph: Recorder, x: Tensor, name: str) -> Any:
        """The node of a layer's input, rounded; layers that read the same share it."""
        layer = self.layers[name]
        key = (id(x), layer._replace(error=0.0))
        if key not in self.inputs:
            low, high = (op.constant(np.array([value], np.float32)) for value in layer[:2])
            self.inputs[key] = op.fake_quantize(graph.node(x), low, high, low, high, LEVELS + 1)
        return self.inputs[key]

    def weight(self, value: Tensor) -> Any:
        """The node of a weight (O, ...) as integers times scales."""
        integers, scales = rounded_weight(value)
        return op.multiply(op.convert(op.constant(integers.numpy()), ov.Type.f32), op.constant(scales.numpy()))


def rounded_weight(value: Tensor) -> tuple[Tensor, Tensor]:
    """A weight (O, ...) as int8 and a scale for each output channel (O, 1, ...)."""
    value = value.detach().float()
    scales = value.abs().amax(tuple(range(1, value.ndim)), keepdim=True) / WEIGHT_LEVELS
    scales = scales.masked_fill(scales == 0, 1.0)
    return (value / scales).round().to(torch.int8).contiguous(), scales.contiguous()
