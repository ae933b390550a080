"""What was compiled for a model is opened while the model is read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from diptych.engines.replace import Part

pytest.importorskip("openvino")

from diptych.engines import compiled_cache, open_ahead, openvino_network


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path))
    monkeypatch.delenv("DIPTYCH_ENGINE")
    forget(monkeypatch)
    return tmp_path / "compiled"


def forget(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process."""
    for name in ("_opened", "_threads", "_last"):
        monkeypatch.setattr(open_ahead, name, {})


def runner() -> Any:
    torch.manual_seed(0)
    layer = nn.Linear(3, 4).eval().requires_grad_(False)
    return openvino_network.OpenVINOMethod(Part(layer, "forward", "layer"), "float32", "a model")


@torch.no_grad()
def test_what_was_used_last_is_open_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3)
    expected = runner()(x)
    forget(monkeypatch)
    open_ahead.open_ahead("a model")
    monkeypatch.setattr(compiled_cache, "read", lambda key: pytest.fail("read again"))
    assert torch.equal(runner()(x), expected)


@torch.no_grad()
def test_a_wrong_guess_changes_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3)
    run = runner()
    run(x)
    forget(monkeypatch)
    open_ahead.open_ahead("a model")
    other = runner()
    other.part.module.weight.mul_(2)
    assert torch.allclose(other(x), other.part.eager(x), atol=1e-6)
    (notes,) = cache.glob("last-*.json")
    for text in ("{", "[]", "3", json.dumps({"layer": "../../etc/passwd"}), json.dumps({"layer": 3})):
        notes.write_text(text)
        forget(monkeypatch)
        open_ahead.open_ahead("a model")
        assert torch.allclose(runner()(x), runner().part.eager(x), atol=1e-6)


def test_nothing_is_opened_for_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.no_grad():
        runner()(torch.randn(2, 3))
    forget(monkeypatch)
    open_ahead.open_ahead("a model", "pytorch")
    monkeypatch.setenv("DIPTYCH_ENGINE", "pytorch")
    open_ahead.open_ahead("a model")
    assert not open_ahead._threads


def test_the_end_of_a_process_waits_for_what_is_being_opened() -> None:
    program = """
import sys, time
from pathlib import Path
from diptych.engines import open_ahead
open_ahead._notes = lambda source: Path(sys.executable)
open_ahead._open = lambda source: (time.sleep(0.3), print("opened", flush=True))
open_ahead.open_ahead("a model")
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "opened\n", "")
