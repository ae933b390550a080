"""OpenVINO's runtime on the CPU. Nothing here imports PyTorch."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from diptych.engines.compiled_cache import Stored

CONVERTER = "openvino.tools.ovc"


def import_openvino() -> Any:
    """OpenVINO without its converter of other formats, which is not needed: with what reports its use over the network,
    it takes as long to import as the rest."""
    missing = CONVERTER not in sys.modules
    if missing:
        sys.modules[CONVERTER] = None  # type: ignore[assignment]
    try:
        return importlib.import_module("openvino")
    finally:
        if missing:
            del sys.modules[CONVERTER]


if TYPE_CHECKING:
    import openvino as ov
else:
    ov = import_openvino()

DEVICE = "CPU"
HINTS = {"float32": "f32", "bf16": "bf16", "int8": "f32"}


@functools.cache
def core() -> ov.Core:
    return ov.Core()


forked = False
"""Whether this process was forked from one in which OpenVINO ran: its threads are not here, and it would wait for them
for ever."""


def after_fork() -> None:
    global forked
    forked = core.cache_info().currsize > 0


os.register_at_fork(after_in_child=after_fork)


def compile_options(precision: str, threads: int, streams: int = 1) -> dict[str, Any]:
    """How a network is compiled: in a precision, for so many rows at a time, which share the threads."""
    hint = "LATENCY" if streams == 1 else "THROUGHPUT"
    options = {"INFERENCE_PRECISION_HINT": HINTS[precision], "PERFORMANCE_HINT": hint}
    return {**options, "INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": streams}


def open_compiled(stored: Stored) -> ov.CompiledModel:
    """What was compiled earlier. A `RuntimeError` if OpenVINO cannot read it."""
    return core().import_model(ov.Tensor(stored.body), DEVICE, stored.key["options"])


def exported(compiled: ov.CompiledModel) -> bytes | memoryview:
    """What `open_compiled` opens, as bytes."""
    stream: Any = compiled.export_model()
    return stream.getbuffer() if hasattr(stream, "getbuffer") else stream
