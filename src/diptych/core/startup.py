"""What makes a process start and end sooner, whatever it does in between."""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import os
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def collector_paused() -> Iterator[None]:
    """Within, Python looks for no garbage: what an import makes stays, and to look through it again and again takes a
    tenth of the import of PyTorch. If PyTorch is imported within, what there is then is not looked through later
    either, a twelfth of a second each time; nor is anything at the end of the process, which would take longer still.
    """
    freeze_at_exit()
    if not gc.isenabled():  # by whoever will enable it
        yield
        return
    gc.disable()
    before = "torch" in sys.modules
    try:
        yield
    finally:
        if not before and "torch" in sys.modules:
            gc.freeze()
        gc.enable()


@functools.cache
def freeze_at_exit() -> None:
    """When the process ends, its memory is given back as a whole and not object by object."""
    atexit.register(gc.freeze)


def yield_when_busy() -> None:
    """Where other processes keep all cores busy, threads that wait for each other sleep.

    Otherwise they spin for some milliseconds: sooner to go on where they have a core each, but each operation of a
    network takes as long where another process has the core that one waits for. Read by OpenMP when PyTorch is
    imported; results are the same.
    """
    if "torch" in sys.modules:
        return
    with contextlib.suppress(OSError, ValueError, IndexError):  # no Linux
        if is_busy(Path("/proc/loadavg").read_text(), os.cpu_count() or 1):
            os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def is_busy(loads: str, count: int) -> bool:
    """Whether other processes kept all of `count` cores busy over the last minute, and do so now.

    loads: what /proc/loadavg holds, "2.41 1.96 1.20 3/214 4711" say: means over 1, 5 and 15 minutes of the processes
        that run or wait for a core, and how many there are now, this one included.
    """
    minute, _, _, now = loads.split()[:4]
    return float(minute) > count and int(now.partition("/")[0]) > count
