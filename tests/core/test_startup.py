"""The collector pauses while modules are imported, and threads sleep where they would wait for a busy core."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import pytest

from diptych.core import startup
from diptych.core.startup import collector_paused, is_busy, yield_when_busy


def test_the_collector_pauses_and_goes_on() -> None:
    assert gc.isenabled()
    with collector_paused():
        assert not gc.isenabled()
        with collector_paused():
            pass
        assert not gc.isenabled(), "the outer one is not over"
    assert gc.isenabled()
    with pytest.raises(KeyError), collector_paused():
        raise KeyError
    assert gc.isenabled()
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled(), "the caller's choice"
    finally:
        gc.enable()


def test_a_process_that_imported_something_ends_without_collecting() -> None:
    code = """
import atexit, gc
atexit.register(lambda: print(gc.get_freeze_count() > 0))  # runs last
from diptych.core.startup import collector_paused
for _ in range(2):
    with collector_paused():
        assert gc.get_freeze_count() == 0, "what the process drops is still collected while it runs"
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stdout + done.stderr


@pytest.mark.parametrize(
    ("loads", "busy"),
    [
        ("2.41 1.96 1.20 3/214 4711", True),
        ("2.41 1.96 1.20 2/214 4711", False),  # it was, but one core is free now
        ("1.90 5.96 7.20 9/214 4711", False),  # it begins to be
        ("0.00 0.00 0.00 1/214 4711", False),
    ],
)
def test_busy_is_a_machine_without_a_free_core(loads: str, busy: bool) -> None:
    assert is_busy(loads, 2) == busy
    assert not is_busy(loads, 16)


def test_threads_sleep_on_a_busy_machine_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr(startup, "is_busy", lambda loads, count: True)
    monkeypatch.setattr(startup.Path, "read_text", lambda self: "")
    monkeypatch.setitem(sys.modules, "torch", None)
    yield_when_busy()
    assert "OMP_WAIT_POLICY" not in os.environ, "PyTorch has read it already"
    monkeypatch.delitem(sys.modules, "torch")
    yield_when_busy()
    assert os.environ["OMP_WAIT_POLICY"] == "passive"
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    yield_when_busy()
    assert os.environ["OMP_WAIT_POLICY"] == "active"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    monkeypatch.setattr(startup, "is_busy", lambda loads, count: False)
    yield_when_busy()
    assert "OMP_WAIT_POLICY" not in os.environ


def test_what_importing_pytorch_made_is_not_looked_through_again() -> None:
    code = """
import gc, weakref
from diptych.core.startup import collector_paused
with collector_paused():
    import torch
assert gc.get_freeze_count() > 100_000, gc.get_freeze_count()
class Node: pass
one = Node(); one.self = one; gone = weakref.ref(one)
del one
gc.collect()
print(gone() is None)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "True\n", done.stdout + done.stderr
