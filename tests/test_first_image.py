"""The benchmark of a first image, once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_the_phases_of_a_first_image_add_up(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "benchmarks.first_image", "--runs", "1", "--ways", "generate", "--states", "cold"]
    subprocess.run([*words, "--out", str(tmp_path / "out.json")], cwd=ROOT, check=True, capture_output=True)
    found = json.loads((tmp_path / "out.json").read_text())
    phases = {name: row["median"] for name, row in found["phases"]["generate"].items()}
    but_sampling = phases.pop("all but sampling")
    assert all(seconds > 0 for seconds in phases.values())
    assert sum(phases.values()) - phases["sampling"] == pytest.approx(but_sampling, abs=0.02)
    assert found["seconds"]["generate"]["cold"]["median"] > but_sampling / 2
